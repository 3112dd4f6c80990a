"""The routes of the OpenAI API: a body in, a plan of it, an answer at once or as it comes."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from farstep_proto import paths
from farstep_proto.v1 import sampling_pb2, training_pb2
from farstep_sampler.descriptions import GATE, OPENAI_ERROR, SAMPLING_ERRORS, openai_answer, openai_body
from farstep_sampler.openai_api.asking import Sampling, streamed, whole
from farstep_sampler.openai_api.bodies import B, ChatBody, CompletionBody, parse
from farstep_sampler.openai_api.chat import Chat, plan_chat
from farstep_sampler.openai_api.completions import Completions, plan_completions
from farstep_sampler.openai_api.errors import NoSuchModel, error_event
from farstep_sampler.openai_api.model_names import ModelChoice, choose_model, list_models
from farstep_sampler.openai_api.settings import OpenAiSettings
from farstep_sampler.openai_api.tokenizing import Tokenizer
from farstep_sampler.request import gate_of_headers
from farstep_sampler.streaming import SSE_HEARTBEAT, Stream, counted, first_of, while_connected
from farstep_sampler.submissions import Submissions
from farstep_serving.bodies import bodies_of, read_body
from farstep_serving.descriptions import describe
from farstep_serving.keys import Caller, caller_of

PATHS = (paths.OPENAI_CHAT, paths.OPENAI_COMPLETIONS, paths.OPENAI_MODELS)


class Backend(Sampling, Protocol):
    """What stands behind the routes, as far as they need it."""

    async def list_policies(
        self, caller: Caller, *, after: int, wait_s: float
    ) -> sampling_pb2.ListPoliciesResponse: ...

    async def info(self) -> training_pb2.ServerInfo: ...

    async def tokenizer(self) -> training_pb2.TokenizerFiles: ...


def is_openai_path(path: str) -> bool:
    return any(path == each or path.startswith(f"{each}/") for each in PATHS)


def openai_routes(backend: Backend, submissions: Submissions, settings: OpenAiSettings) -> list[Route]:
    handlers = _Handlers(backend, submissions, settings)
    return [
        Route(paths.OPENAI_CHAT, handlers.chat, methods=["POST"]),
        Route(paths.OPENAI_COMPLETIONS, handlers.completions, methods=["POST"]),
        Route(paths.OPENAI_MODELS, handlers.models, methods=["GET"]),
        Route(paths.OPENAI_MODEL, handlers.model, methods=["GET"]),
    ]


class _Handlers:
    def __init__(self, backend: Backend, submissions: Submissions, settings: OpenAiSettings) -> None:
        self._backend = backend
        self._submissions = submissions
        self._settings = settings
        self._created = int(time.time())
        self._tokenizer: Tokenizer | None = None
        self._loading = asyncio.Lock()

    @describe(
        "Complete a chat",
        takes=openai_body(ChatBody),
        gives=openai_answer("chat.completion", streams=True),
        parameters=GATE,
        errors=SAMPLING_ERRORS,
        error=OPENAI_ERROR,
    )
    async def chat(self, request: Request) -> Response:
        body = await _parsed(request, ChatBody)
        self._submissions.check_room()
        info, model = await self._model(body.model, request)
        plan = await plan_chat(
            body,
            model,
            await self._load_tokenizer(info),
            source=_source(model, info),
            tool_parser=self._settings.tool_parser,
        )
        return await self._answer(request, plan)

    @describe(
        "Complete a text",
        takes=openai_body(CompletionBody),
        gives=openai_answer("text_completion", streams=True),
        parameters=GATE,
        errors=SAMPLING_ERRORS,
        error=OPENAI_ERROR,
    )
    async def completions(self, request: Request) -> Response:
        body = await _parsed(request, CompletionBody)
        self._submissions.check_room()
        info, model = await self._model(body.model, request)
        tokenizer = await self._load_tokenizer(info)
        plan = await plan_completions(body, model, tokenizer, source=_source(model, info), max_seq_len=info.max_seq_len)
        return await self._answer(request, plan)

    @describe("List models", gives=openai_answer("list"), error=OPENAI_ERROR)
    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": await self._list(caller_of(request))})

    @describe("Look at a model", gives=openai_answer("model"), error=OPENAI_ERROR)
    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        for model in await self._list(caller_of(request)):
            if model["id"] == name:
                return JSONResponse(model)
        raise NoSuchModel(name)

    async def _answer(self, request: Request, plan: Chat | Completions) -> Response:
        if plan.body.stream:
            return await self._stream(request, plan)
        responses = await while_connected(
            request, whole(plan.asks, self._backend, self._submissions, caller_of(request))
        )
        answer = plan.whole(responses)
        return JSONResponse(answer, headers={paths.EXACT_POLICY_VERSION: str(answer["policy_version"])})

    async def _stream(self, request: Request, plan: Chat | Completions) -> Response:
        gains = streamed(plan.asks, self._backend, partial(counted, self._submissions), caller_of(request))
        first, rest = await first_of(request, gains)
        return Stream(
            plan.chunks(rest),
            media_type=paths.EVENT_STREAM,
            heartbeat=SSE_HEARTBEAT,
            on_error=error_event,
            headers={paths.EXACT_POLICY_VERSION: str(first[0].reader.policy_version)},
        )

    async def _model(self, name: str, request: Request) -> tuple[training_pb2.ServerInfo, ModelChoice]:
        info = await self._backend.info()
        policies = (await self._backend.list_policies(caller_of(request), after=-1, wait_s=0)).policies
        gate = gate_of_headers(request.headers)
        return info, choose_model(name, base=self._base_names(info), policies=policies, gate=gate)

    async def _list(self, caller: Caller) -> list[dict[str, object]]:
        info = await self._backend.info()
        policies = (await self._backend.list_policies(caller, after=-1, wait_s=0)).policies
        return list_models(self._base_names(info), policies, created=self._created, max_model_len=info.max_seq_len)

    def _base_names(self, info: training_pb2.ServerInfo) -> list[str]:
        return [info.base_model, *self._settings.served_names]

    async def _load_tokenizer(self, info: training_pb2.ServerInfo) -> Tokenizer:
        async with self._loading:
            if self._tokenizer is None:
                files = await self._backend.tokenizer()
                self._tokenizer = await Tokenizer.load(files, max_seq_len=info.max_seq_len, vocab_size=info.vocab_size)
            return self._tokenizer


async def _parsed(request: Request, kind: type[B]) -> B:
    body = await read_body(request)
    return await bodies_of(request).decoded(len(body), lambda: parse(kind, body))


def _source(model: ModelChoice, info: training_pb2.ServerInfo) -> str:
    return model.run_id or model.model_path or info.base_model
