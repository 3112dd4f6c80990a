"""The routes of the proxy: the OpenAI API once for each sample, below `/s/<sample>/v1`, and once for none.

Only this machine's own programs reach it: it listens on the loopback interface, wants a key that was drawn for this
session, and refuses other host names, which is what a page in a browser would come with. Takes no decision about an
answer: what the sampler says is what the agent gets, but that there is no room is said as an empty answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, nullcontext
from typing import Any, cast

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from farstep.rollout.collecting import Collector
from farstep.rollout.params import SamplingParams, is_models_own
from farstep.rollout.proxy.refusals import code_of, error_body, error_event, refuse
from farstep.rollout.proxy.requests import empty_answer, empty_chunks, forwarded
from farstep.rollout.proxy.streams import StreamedAnswer
from farstep.rollout.proxy.upstream import Unanswered, Upstream, read_json
from farstep.rollout.turns import Turn, turns_of
from farstep.sampling import OpenAiEndpoint

log = logging.getLogger("farstep")

MAX_BODY_BYTES = 64 << 20

Count = Callable[[str], None]


class ProxyRoutes:
    """Args:
    find: the collector of a sample; None where there is no such sample, or it has ended.
    count: of requests that were repeated or failed, by reason.
    max_turns: answers of one sample; more requests get an empty one.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        key: str,
        find: Callable[[str], Collector | None],
        count: Count,
        params: SamplingParams,
        in_flight: str,
        max_turns: int | None,
        endpoint: Callable[[], OpenAiEndpoint],
        policy_version: Callable[[], int],
    ) -> None:
        self._upstream = upstream
        self._key = key
        self._find = find
        self._count = count
        self._params = params
        self._in_flight = in_flight
        self._max_turns = max_turns
        self._endpoint = endpoint
        self._policy_version = policy_version

    def app(self) -> Starlette:
        routes = []
        for prefix in ("", "/s/{sample}"):
            routes += [
                Route(f"{prefix}/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
                Route(f"{prefix}/v1/models", self._guarded(self.models), methods=["GET"]),
                Route(f"{prefix}/v1/models/{{model:path}}", self._guarded(self.model), methods=["GET"]),
            ]
        app = Starlette(routes=routes)
        app.add_exception_handler(404, _not_found)
        app.add_exception_handler(405, _wrong_method)
        app.add_exception_handler(Exception, _mistake)
        return app

    def _guarded(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            host = request.headers.get("host", "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):
                return refuse(403, f"this is not {host or 'there'}; use the session's base_url")
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), self._key.encode()):
                return refuse(401, "the key is not this session's: use its api_key", code="invalid_api_key")
            if "sample" in request.path_params and self._find(request.path_params["sample"]) is None:
                name = request.path_params["sample"]
                return refuse(404, f"there is no sample {name[:80]!r}, or it has ended", code="not_found")
            answer: Response = await handler(request)
            return answer

        return guarded

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        return JSONResponse({**self._model(), "id": request.path_params["model"]})

    async def chat(self, request: Request) -> Response:
        try:
            body = await _body_of(request)
        except ValueError as error:
            return refuse(400, str(error))
        sample = request.path_params.get("sample")
        collector = self._find(sample) if sample is not None else None
        number = collector.take_number() if collector is not None else 0
        with collector.under_way(number) if collector is not None else nullcontext():
            if collector is not None and self._max_turns is not None and number >= self._max_turns:
                collector.problems["budget"] += 1
                return self._empty(body)
            params = collector.params if collector is not None else self._params
            asked = forwarded(body, params, collector, number, in_flight=self._in_flight)
            if body.get("stream"):
                return await self._streamed(asked, body, collector, number)
            return await _while_connected(request, self._whole(asked, body, collector))

    async def _whole(self, asked: dict[str, Any], body: dict[str, Any], collector: Collector | None) -> Response:
        try:
            async with self._upstream.chat(asked, self._endpoint_of(collector), self._retried(collector)) as response:
                answer = await read_json(response)
                status = response.status_code
        except Unanswered as failure:
            return self._failed(failure.status, failure.body, collector)
        if status != 200:
            return self._refused(status, answer, body, collector)
        if collector is not None:
            collector.add(_turns(answer, asked))
        return JSONResponse(answer)

    async def _streamed(
        self, asked: dict[str, Any], body: dict[str, Any], collector: Collector | None, number: int
    ) -> Response:
        opening = self._upstream.chat(asked, self._endpoint_of(collector), self._retried(collector))
        try:
            response = await opening.__aenter__()
        except Unanswered as failure:
            return self._failed(failure.status, failure.body, collector)
        if response.status_code != 200:
            try:
                return self._refused(response.status_code, await read_json(response), body, collector)
            except Unanswered as failure:
                return self._failed(failure.status, failure.body, collector)
            finally:
                await opening.__aexit__(None, None, None)
        passed_on = self._passed_on(opening, response, asked, collector, number)
        return StreamingResponse(passed_on, media_type="text/event-stream")

    async def _passed_on(
        self, opening: Any, response: httpx.Response, asked: dict[str, Any], collector: Collector | None, number: int
    ) -> AsyncIterator[bytes]:
        """The stream as it comes. Its turns are noted before the end of its last choice is passed on: many readers
        leave when they see a finish reason, and wait for nothing after it."""
        answer = StreamedAnswer(int(asked.get("n") or 1))
        try:
            with collector.under_way(number) if collector is not None else nullcontext():
                async with aclosing(cast(AsyncGenerator[str, None], response.aiter_lines())) as lines:
                    async for line in lines:
                        if answer.read(line) and collector is not None:
                            collector.add(_turns(answer.answer(), asked))
                        yield line.encode() + b"\n"
        except httpx.TransportError as error:
            self._noted("stream_cut", collector)
            yield error_event(error_body(503, f"the sampler's stream was cut off: {error}", code="unavailable"))
        finally:
            await opening.__aexit__(None, None, None)

    def _refused(
        self, status: int, answer: dict[str, Any], body: dict[str, Any], collector: Collector | None
    ) -> Response:
        if status == 400 and code_of(answer) == "context_length_exceeded":
            self._noted("context_full", collector)
            return self._empty(body)
        return self._failed(status, answer, collector)

    def _failed(self, status: int, answer: dict[str, Any], collector: Collector | None) -> Response:
        self._noted(f"status_{status}", collector)
        return JSONResponse(answer, status_code=status)

    def _empty(self, body: dict[str, Any]) -> Response:
        model, version = self._endpoint().model, self._policy_version()
        if body.get("stream"):
            chunks = empty_chunks(body, model=model, policy_version=version)
            return Response(chunks, media_type="text/event-stream")
        return JSONResponse(empty_answer(body, model=model, policy_version=version))

    def _endpoint_of(self, collector: Collector | None) -> Callable[[], OpenAiEndpoint]:
        return collector.endpoint if collector is not None else self._endpoint

    def _retried(self, collector: Collector | None) -> Count:
        return lambda reason: self._noted(f"retried_{reason}", collector)

    def _noted(self, reason: str, collector: Collector | None) -> None:
        self._count(reason)
        if collector is not None:
            collector.problems[reason] += 1

    def _model(self) -> dict[str, Any]:
        return {"id": self._endpoint().model, "object": "model", "created": 0, "owned_by": "farstep"}


def _turns(answer: dict[str, Any], asked: dict[str, Any]) -> list[Turn]:
    return turns_of(answer, asked["messages"], asked.get("tools"), is_models_own=is_models_own(asked))


async def _body_of(request: Request) -> dict[str, Any]:
    """Raises ValueError for what is no request."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY_BYTES:
            raise ValueError(f"the request is over {MAX_BODY_BYTES >> 20} MiB")
    try:
        body = json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ValueError("the request is not a JSON object")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise ValueError("messages: must be a list of messages")
    return body


async def _while_connected(request: Request, answering: Any) -> Response:
    """An answer, unless whoever asked goes away: then nobody computes it any more."""
    task = asyncio.ensure_future(answering)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return Response(status_code=499)
        answer: Response = task.result()
        return answer
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(request: Request) -> None:
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except ClientDisconnect:
        return


async def _not_found(request: Request, error: Exception) -> Response:
    return refuse(404, f"{request.url.path[:200]} is not served here: POST /v1/chat/completions and GET /v1/models are")


async def _mistake(request: Request, error: Exception) -> Response:
    log.error("the proxy made a mistake", exc_info=error)
    return refuse(500, f"the proxy made a mistake: {type(error).__name__}: {error}")


async def _wrong_method(request: Request, error: Exception) -> Response:
    return refuse(405, f"{request.method} is not served at {request.url.path[:200]}")
