"""A sampler without a model, for the SDK to speak to: real HTTP, real operations, the version gate."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from farstep_proto import errors, framing, paths, tensors
from farstep_proto.v1 import operations_pb2 as ops
from farstep_proto.v1 import sampling_pb2, training_pb2
from farstep_serving.app import make_app
from farstep_serving.keys import KeyRing
from farstep_serving.messages import read_message, respond, wait_s_of
from farstep_serving.operation_routes import operation_routes
from farstep_serving.operations import OperationTable
from tests.unit.client.fake_server import BASE_MODEL, KEY, MAX_SEQ_LEN, VOCAB_SIZE, Host, Server


class Sampler(Server):
    """Its model: the continuation is 1, 2, 3 … with log-probability -0.5 each."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.policies: dict[str, int] = {}
        self.loaded: list[str] = []
        self.requests: list[tuple[sampling_pb2.SampleRequest, dict[str, str]]] = []
        self.is_held = False
        self.breaks_after: list[int] = []
        self.first_token = 1
        self.fails_with: errors.ApiError | None = None
        self.num_streams = 0
        self._held: list[Callable[[], None]] = []
        super().__init__(host)

    def make_app(self) -> ASGIApp:
        self.table = OperationTable()
        return make_app(
            [
                Route(paths.HEALTH, self._health),
                Route(paths.INFO, self._info),
                Route(paths.SAMPLES, self._submit, methods=["POST"]),
                Route(paths.SAMPLE_STREAM, self._stream, methods=["POST"]),
                Route(paths.LOAD_POLICY, self._load, methods=["POST"]),
                Route(paths.POLICY, self._policy),
                *operation_routes(self.table, cancel=lambda operation_id: False),
            ],
            keys=KeyRing.of(KEY),
        )

    def restart(self) -> None:
        """Forgets every sample, as a new process does, and holds none."""

        def begin_anew() -> None:
            self.is_held = False
            self._held.clear()
            old, self.app = self.table, self.make_app()
            for channel in old._channels.values():  # its connections end with it
                channel.changed.set()

        self.host.call(begin_anew)

    def release_backwards(self) -> None:
        def finish() -> None:
            self.is_held = False
            for go_on in reversed(self._held):
                go_on()
            self._held.clear()

        self.host.call(finish)

    async def _health(self, request: Request) -> Response:
        return Response("ok")

    async def _info(self, request: Request) -> Response:
        info = training_pb2.ServerInfo(
            role="sampler", base_model=BASE_MODEL, max_seq_len=MAX_SEQ_LEN, vocab_size=VOCAB_SIZE, engine="fake"
        )
        return respond(request, info)

    async def _load(self, request: Request) -> Response:
        message = await read_message(request, sampling_pb2.LoadPolicyRequest)
        if "missing" in message.model_path:
            raise errors.NotFound(f"no checkpoint {message.model_path}", field="model_path")
        self.loaded.append(message.model_path)
        return respond(request, sampling_pb2.PolicyState(model_path=message.model_path, newest_version=4))

    async def _policy(self, request: Request) -> Response:
        run_id, wanted = request.path_params["run_id"], int(request.query_params["min_version"])
        deadline = time.monotonic() + wait_s_of(request, most=60)
        while self.policies.get(run_id, 0) < wanted and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if run_id not in self.policies:
            raise errors.NotFound("no such run", field="run_id")
        newest = self.policies[run_id]
        return respond(request, sampling_pb2.PolicyState(run_id=run_id, newest_version=newest))

    async def _submit(self, request: Request) -> Response:
        message = await read_message(request, sampling_pb2.SampleRequest)
        operation_id = f"sample-{request.query_params['key']}"
        headers = dict(request.headers)
        digest = hashlib.sha256(message.SerializeToString()).digest()
        if self.table.open(operation_id, client_id=headers[paths.CLIENT_ID.lower()], verb="sample", digest=digest):
            self.requests.append((message, headers))
            self._held.append(lambda: self._finish(operation_id, message, headers))
            if not self.is_held:
                asyncio.get_running_loop().call_soon(self._held.pop())
        return respond(request, ops.Accepted(operation_id=operation_id), status=202)

    async def _stream(self, request: Request) -> Response:
        message = await read_message(request, sampling_pb2.SampleRequest)
        self.requests.append((message, dict(request.headers)))
        newest = self.policies.get(message.run_id, 0)
        wanted = int(request.headers.get(paths.MIN_POLICY_VERSION, 0))
        if wanted > newest:
            raise errors.PolicyNotReady("not yet", retry_after_s=1.5, wanted_version=wanted, newest_version=newest)
        return StreamingResponse(self._said(message, newest), media_type=paths.PROTOBUF_STREAM)

    async def _said(self, message: sampling_pb2.SampleRequest, version: int) -> AsyncIterator[bytes]:
        """The tokens 1, 2, 3 … one by one; as many as `breaks_after` says of the attempts before they break off."""
        breaks_after = self.breaks_after.pop(0) if self.breaks_after else None
        num_tokens = message.params.max_tokens or 3
        self.num_streams += 1
        try:
            yield framing.framed(sampling_pb2.SampleEvent(begin=sampling_pb2.SampleBegin(policy_version=version)))
            for place in range(num_tokens):
                if place == breaks_after:
                    raise ConnectionError("cut off, as the test wants it")
                if place and self.is_held:
                    await self._until_released()
                delta = sampling_pb2.SampleDelta(
                    tokens=tensors.ids_to_bytes([self.first_token + place]),
                    logprobs=np.full(1, -0.5, dtype="<f4").tobytes(),
                    stop_reason="length" if place == num_tokens - 1 else "",
                )
                if k := message.topk_logprobs:
                    delta.topk_logprobs.CopyFrom(_topk(np.arange(k, dtype="<i4")[None]))
                yield framing.framed(sampling_pb2.SampleEvent(delta=delta))
            end = sampling_pb2.SampleEnd(stop_reasons=["length"], prompt_cache_hit_tokens=1)
            yield framing.HEARTBEAT + framing.framed(sampling_pb2.SampleEvent(end=end))
        finally:
            self.num_streams -= 1

    async def _until_released(self) -> None:
        while self.is_held:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    def _finish(self, operation_id: str, message: sampling_pb2.SampleRequest, headers: dict[str, str]) -> None:
        if self.fails_with is not None:
            self.table.fail(operation_id, self.fails_with.to_proto())
            return
        newest = self.policies.get(message.run_id, 0)
        wanted = int(headers.get(paths.MIN_POLICY_VERSION.lower(), 0))
        if wanted > newest:
            error = errors.PolicyNotReady("not yet", retry_after_s=1.5, wanted_version=wanted, newest_version=newest)
            self.table.fail(operation_id, error.to_proto())
            return
        response = self._sample(message)
        response.policy_version = newest
        self.table.finish(operation_id, ops.Operation(state=ops.OPERATION_STATE_SUCCEEDED, sample=response))

    def _sample(self, message: sampling_pb2.SampleRequest) -> sampling_pb2.SampleResponse:
        prompt = tensors.model_input_ids(message.prompt)
        num_tokens = message.params.max_tokens if message.params.HasField("max_tokens") else 3
        response = sampling_pb2.SampleResponse(prompt_cache_hit_tokens=1)
        if message.include_prompt_logprobs:
            values = -np.arange(len(prompt), dtype="<f4")
            values[0] = np.nan
            response.prompt_logprobs = values.tobytes()
        if k := message.topk_prompt_logprobs:
            ids = np.tile(np.arange(k, dtype="<i4"), (len(prompt), 1))
            ids[0] = -1
            response.topk_prompt_logprobs.CopyFrom(_topk(ids))
        for _ in range(message.num_samples if num_tokens else 0):
            sequence = response.sequences.add(stop_reason="length")
            sequence.tokens = tensors.ids_to_bytes(range(1, num_tokens + 1))
            sequence.logprobs = np.full(num_tokens, -0.5, dtype="<f4").tobytes()
            if k := message.topk_logprobs:
                sequence.topk_logprobs.CopyFrom(_topk(np.tile(np.arange(k, dtype="<i4"), (num_tokens, 1))))
        return response


def _topk(ids_nk: np.ndarray) -> sampling_pb2.TopkLogprobs:
    logprobs = np.full(ids_nk.shape, -1.5, dtype="<f4")
    return sampling_pb2.TopkLogprobs(k=ids_nk.shape[1], token_ids=ids_nk.tobytes(), logprobs=logprobs.tobytes())
