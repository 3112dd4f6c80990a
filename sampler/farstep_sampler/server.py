"""The HTTP surface of a sampler: a route table over a backend, the same for a replica and for a router."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_proto import paths
from farstep_proto.errors import Conflict, NotFound, PolicyNotReady, TooManyRequests
from farstep_proto.names import check_run_id
from farstep_proto.v1 import common_pb2, operations_pb2, sampling_pb2, training_pb2
from farstep_sampler.descriptions import EVENTS, GATE, SAMPLING_ERRORS, VERSION
from farstep_sampler.events import Events
from farstep_sampler.openai_api import errors as openai_errors
from farstep_sampler.openai_api.routes import is_openai_path, openai_routes
from farstep_sampler.openai_api.settings import OpenAiSettings
from farstep_sampler.request import gate_of_headers, version_of
from farstep_sampler.streaming import counted, event_stream, while_connected
from farstep_sampler.submissions import Submissions, Work, checked_key
from farstep_sampler.versions import VersionGate
from farstep_serving.app import make_app
from farstep_serving.bodies import MAX_BODY_BYTES, bodies_of, read_body
from farstep_serving.descriptions import CLIENT, WAIT_S, describe, query
from farstep_serving.keys import Caller, Keys, caller_of, for_operators
from farstep_serving.messages import decode, read_message, respond, respond_error, wait_s_of
from farstep_serving.operation_routes import operation_routes

MAX_WAIT_S = 60.0
_OPENAI = OpenAiSettings()


class Backend(Protocol):
    """What stands behind the routes: a replica's engine, or a router's replicas."""

    def prepare(self, request: sampling_pb2.SampleRequest, gate: VersionGate, caller: Caller) -> Work:
        """Checks a request; what is returned runs it. Raises InvalidInput naming the field."""
        ...

    def open_stream(self, request: sampling_pb2.SampleRequest, gate: VersionGate, caller: Caller) -> Events:
        """Checks a request as `prepare`; what is returned says its events, or raises why there are none."""
        ...

    async def list_policies(self, caller: Caller, *, after: int, wait_s: float) -> sampling_pb2.ListPoliciesResponse:
        """All policies that the caller may see, as soon as their revision is over `after`, or the time is up."""
        ...

    def drain(self) -> None:
        """Takes nothing new from now on."""
        ...

    async def wait_for_policy(
        self, run_id: str, caller: Caller, *, min_version: int, wait_s: float
    ) -> sampling_pb2.PolicyState:
        """Waits until a run's version is served. Raises PolicyNotReady."""
        ...

    async def load_policy(self, model_path: str, caller: Caller) -> sampling_pb2.PolicyState: ...

    @describe("Tell what the server is", gives=training_pb2.ServerInfo)
    async def info(self) -> training_pb2.ServerInfo: ...

    @describe("Fetch the tokenizer", gives=training_pb2.TokenizerFiles)
    async def tokenizer(self) -> training_pb2.TokenizerFiles: ...

    def check_health(self) -> None:
        """Raises Internal when it cannot serve any more."""
        ...


def make_sampler_app(
    backend: Backend,
    submissions: Submissions,
    *,
    keys: Keys,
    more_routes: Sequence[Route] = (),
    openai: OpenAiSettings = _OPENAI,
) -> Starlette:
    """An app with the native routes, those of the OpenAI API, and whatever routes come with them."""
    handlers = _Handlers(backend, submissions)
    routes = [
        Route(paths.HEALTH, handlers.health, methods=["GET"]),
        Route(paths.INFO, handlers.info, methods=["GET"]),
        Route(paths.TOKENIZER, handlers.tokenizer, methods=["GET"]),
        Route(paths.SAMPLES, handlers.submit, methods=["POST"]),
        Route(paths.SAMPLE, handlers.sample, methods=["POST"]),
        Route(paths.SAMPLE_STREAM, handlers.sample_stream, methods=["POST"]),
        Route(paths.POLICIES, handlers.policies, methods=["GET"]),
        Route(paths.LOAD_POLICY, handlers.load_policy, methods=["POST"]),
        Route(paths.POLICY, handlers.policy, methods=["GET"]),
        Route(paths.DRAIN, for_operators(handlers.drain), methods=["POST"]),
        *openai_routes(backend, submissions, openai),
        *more_routes,
        *operation_routes(submissions.table, cancel=submissions.cancel),
    ]
    return make_app(routes, keys=keys, error_response=_respond_error, title="Farstep sampler")


async def _respond_error(request: Request, error: Exception) -> Response:
    """In the terms of the API whose route it is."""
    if is_openai_path(request.url.path):
        return openai_errors.respond_error(error, request)
    return await respond_error(request, error)


class _Handlers:
    def __init__(self, backend: Backend, submissions: Submissions) -> None:
        self._backend = backend
        self._submissions = submissions

    @describe("Tell that the server lives")
    async def health(self, request: Request) -> Response:
        self._backend.check_health()
        return respond(request, common_pb2.Empty())

    @describe("Tell what the server is", gives=training_pb2.ServerInfo)
    async def info(self, request: Request) -> Response:
        info = await self._backend.info()
        info.instance_id = self._submissions.table.instance_id
        info.max_request_bytes = MAX_BODY_BYTES
        info.idle_s = self._submissions.idle_s
        info.num_pending = self._submissions.num_in_flight
        return respond(request, info)

    @describe("Fetch the tokenizer", gives=training_pb2.TokenizerFiles)
    async def tokenizer(self, request: Request) -> Response:
        return respond(request, await self._backend.tokenizer())

    @describe(
        "Submit a sample",
        takes=sampling_pb2.SampleRequest,
        gives=operations_pb2.Accepted,
        status=202,
        parameters=[
            query("key", "the submission's id, chosen by the client, so that it can be repeated safely"),
            CLIENT,
            *GATE,
        ],
        errors=[Conflict, TooManyRequests],
    )
    async def submit(self, request: Request) -> Response:
        body = await read_body(request)
        message = _named(await _decoded(request, body), request)
        caller = caller_of(request)
        work = self._backend.prepare(message, gate_of_headers(request.headers), caller)
        key = checked_key(request.query_params.get("key", ""))
        accepted = self._submissions.submit(
            caller.named(key),
            client_id=caller.named(request.headers.get(paths.CLIENT_ID, "")),
            digest=_digest(request, body),
            work=work,
        )
        accepted.operation_id = key
        return respond(request, accepted, status=202)

    @describe(
        "Sample and wait",
        takes=sampling_pb2.SampleRequest,
        gives=sampling_pb2.SampleResponse,
        parameters=[CLIENT, *GATE],
        errors=SAMPLING_ERRORS,
    )
    async def sample(self, request: Request) -> Response:
        message = _named(await _decoded(request, await read_body(request)), request)
        with self._submissions.watched():
            work = self._backend.prepare(message, gate_of_headers(request.headers), caller_of(request))
            return respond(request, await while_connected(request, work()))

    @describe(
        "Sample and hear of tokens as they come",
        takes=sampling_pb2.SampleRequest,
        gives=EVENTS,
        parameters=[CLIENT, *GATE],
        errors=SAMPLING_ERRORS,
    )
    async def sample_stream(self, request: Request) -> Response:
        message = _named(await _decoded(request, await read_body(request)), request)
        events = self._backend.open_stream(message, gate_of_headers(request.headers), caller_of(request))
        return await event_stream(request, counted(self._submissions, events))

    @describe(
        "List the policies that are served",
        gives=sampling_pb2.ListPoliciesResponse,
        parameters=[query("after", "wait until the revision is over this", **VERSION), WAIT_S],
    )
    async def policies(self, request: Request) -> Response:
        after = version_of(request.query_params.get("after", "0"), "after")
        wait_s = wait_s_of(request, most=MAX_WAIT_S) if "after" in request.query_params else 0.0
        return respond(request, await self._backend.list_policies(caller_of(request), after=after, wait_s=wait_s))

    @describe("Take nothing new and end what there is")
    async def drain(self, request: Request) -> Response:
        self._backend.drain()
        return respond(request, common_pb2.Empty())

    @describe(
        "Wait for a run's policy",
        gives=sampling_pb2.PolicyState,
        parameters=[query("min_version", "the least version", **VERSION), WAIT_S],
        errors=[PolicyNotReady],
    )
    async def policy(self, request: Request) -> Response:
        run_id = check_run_id(request.path_params["run_id"])
        min_version = version_of(request.query_params.get("min_version", "0"), "min_version")
        wait_s = wait_s_of(request, most=MAX_WAIT_S)
        state = await self._backend.wait_for_policy(run_id, caller_of(request), min_version=min_version, wait_s=wait_s)
        return respond(request, state)

    @describe(
        "Load a checkpoint",
        takes=sampling_pb2.LoadPolicyRequest,
        gives=sampling_pb2.PolicyState,
        errors=[NotFound, TooManyRequests],
    )
    async def load_policy(self, request: Request) -> Response:
        message = await read_message(request, sampling_pb2.LoadPolicyRequest)
        return respond(request, await self._backend.load_policy(message.model_path, caller_of(request)))


async def _decoded(request: Request, body: bytes) -> sampling_pb2.SampleRequest:
    return await bodies_of(request).decoded(len(body), lambda: decode(request, body, sampling_pb2.SampleRequest))


def _named(message: sampling_pb2.SampleRequest, request: Request) -> sampling_pb2.SampleRequest:
    """The message with the name of who asks, which a router passes on."""
    message.client_id = message.client_id or request.headers.get(paths.CLIENT_ID, "")
    return message


def _digest(request: Request, body: bytes) -> bytes:
    """What makes a submission the same: its body and its gate."""
    return hashlib.sha256(repr(gate_of_headers(request.headers)).encode() + b"\0" + body).digest()
