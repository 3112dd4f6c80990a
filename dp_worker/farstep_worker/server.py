"""The trainer's routes. A handler reads, asks the dispatcher, and answers; it decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from google.protobuf.message import Message
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.routes import OPEN_PATHS, checkpoint_routes
from farstep_model.load import BaseModel, tokenizer_files
from farstep_proto import paths
from farstep_proto.errors import Conflict, InvalidInput, TooManyRequests
from farstep_proto.loss_table import CUSTOM, LOSS_TABLE
from farstep_proto.v1 import common_pb2, operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_serving.app import make_app
from farstep_serving.bodies import bodies_of, declared_bytes
from farstep_serving.descriptions import CLIENT, Media, describe, query
from farstep_serving.keys import Caller, Keys, caller_of, for_operators
from farstep_serving.large_messages import check_large
from farstep_serving.messages import decode, is_protobuf, read_message, respond
from farstep_serving.operation_routes import operation_routes
from farstep_serving.usage import usage_route
from farstep_worker.assembly import MAX_PARTS, Address
from farstep_worker.dispatch import Dispatcher
from farstep_worker.feed import FeedServer
from farstep_worker.operations import split_operation_id
from farstep_worker.runs import Run
from farstep_worker.submission import REQUEST_TYPES, parse_call, request_type
from farstep_worker.telemetry import seen_trace

DEFAULT_MAX_REQUEST_BYTES = 8 << 20
DEFAULT_MAX_DATUM_BYTES = 72 << 20  # tensors of 64 MiB, and what is around them
DEFAULT_TRACED = 100
_MAX_CREATE_BYTES = 64 << 10
_COUNT: dict[str, Any] = {"type": "integer", "maximum": 10**18 - 1}
_STATE = query("state", "which: those that nobody has fetched, if absent", type="string", enum=["unfetched", "all"])
_PAGE = query("page", "`next_page` of the page before; absent: the first", **_COUNT, minimum=0)
_LAST = query("last", f"how many; {DEFAULT_TRACED} if absent", **_COUNT, minimum=1)
_SUBMISSION = (
    query("seq", "the operation's place in its run", required=True, **_COUNT, minimum=1),
    query("part", "which part this is, from 0 on; absent: 0", **_COUNT, minimum=0),
    query("parts", "in how many parts the operation travels; absent: 1", type="integer", minimum=1, maximum=MAX_PARTS),
    CLIENT,
)


@dataclass(slots=True)
class TrainerApi:
    """The handlers, over one base model. `feed_address` is known once the feed listens."""

    base: BaseModel
    dispatcher: Dispatcher
    checkpoints: Checkpoints
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    max_datum_bytes: int = DEFAULT_MAX_DATUM_BYTES
    custom_losses: bool = False
    feed_address: str = ""

    def routes(self) -> list[Route]:
        return [
            Route(paths.HEALTH, self.health),
            Route(paths.INFO, self.info),
            Route(paths.TOKENIZER, self.tokenizer),
            Route(paths.POLICY_VERSION, self.policy_versions),
            Route(paths.RUNS, self.create_run, methods=["POST"]),
            Route(paths.RUNS, self.list_runs),
            Route(paths.RUN, self.get_run, methods=["GET"]),
            Route(paths.RUN, self.delete_run, methods=["DELETE"]),
            Route(paths.TRACE, self.trace),
            Route(paths.RUN_OPERATIONS, self.list_operations),
            Route(paths.METRICS, for_operators(self.metrics)),
            usage_route(self.dispatcher.usage, instance_id=self.dispatcher.table.instance_id),
            Route(paths.VERB, self.submit, methods=["POST"]),
            *checkpoint_routes(lambda request: self.checkpoints, has_run=self._has_run),
            *operation_routes(self.dispatcher.table, cancel=self.dispatcher.cancel, known_as=self._known_as),
        ]

    @describe("Tell that the server lives", gives=Media({paths.JSON: {"type": "object"}}))
    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "draining" if self.dispatcher.is_draining else "ok"})

    @describe("Tell what the server is", gives=pb.ServerInfo)
    async def info(self, request: Request) -> Response:
        message = pb.ServerInfo(
            role="trainer",
            base_model=self.base.name,
            device=str(self.base.device),
            dtype=str(self.base.dtype).removeprefix("torch."),
            max_seq_len=self.base.max_seq_len,
            vocab_size=self.base.vocab_size,
            max_request_bytes=self.max_request_bytes,
            max_datum_bytes=self.max_datum_bytes,
            loss_fns=sorted([*LOSS_TABLE, CUSTOM] if self.custom_losses else LOSS_TABLE),
            instance_id=self.dispatcher.table.instance_id,
            feed=self.feed_address,
            version=version("farstep"),
            idle_s=self.dispatcher.table.idle_s,
            num_pending=self.dispatcher.table.num_pending,
        )
        return respond(request, message)

    @describe("Fetch the tokenizer", gives=pb.TokenizerFiles)
    async def tokenizer(self, request: Request) -> Response:
        return respond(request, await asyncio.to_thread(tokenizer_files, self.base.path))

    @describe("List the policy versions last published", gives=pb.PolicyVersions)
    async def policy_versions(self, request: Request) -> Response:
        versions = {run.config.run_id: run.policy_version for run in self._seen_runs(request)}
        return respond(request, pb.PolicyVersions(versions=versions))

    @describe("Create a run", takes=pb.CreateRunRequest, gives=pb.Run, errors=[Conflict])
    async def create_run(self, request: Request) -> Response:
        message = await read_message(request, pb.CreateRunRequest, limit=_MAX_CREATE_BYTES)
        return respond(request, await self.dispatcher.create_run(message, caller_of(request)))

    @describe("List runs", gives=pb.ListRunsResponse)
    async def list_runs(self, request: Request) -> Response:
        runs = [self.dispatcher.describe(run) for run in self._seen_runs(request)]
        return respond(request, pb.ListRunsResponse(runs=runs))

    @describe("Look at a run", gives=pb.Run)
    async def get_run(self, request: Request) -> Response:
        return respond(request, self.dispatcher.describe(self._run_of(request)))

    @describe("Delete a run")
    async def delete_run(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        self.dispatcher.registry.check_seen(caller_of(request), run_id)
        await self.dispatcher.delete_run(run_id)
        return respond(request, common_pb2.Empty())

    @describe("See where the time of a run's last operations went", gives=pb.TraceResponse, parameters=[_LAST])
    async def trace(self, request: Request) -> Response:
        run = self._run_of(request)
        last = _count(request, "last", least=1, default=DEFAULT_TRACED)
        traces, caller = self.dispatcher.telemetry.last(run.config.run_id, last), caller_of(request)
        seen = [seen_trace(trace, lambda wanted: self._knows(caller, wanted)) for trace in traces]
        return respond(request, pb.TraceResponse(operations=seen))

    @describe("List a run's operations", gives=operations_pb2.ListOperationsResponse, parameters=[_STATE, _PAGE])
    async def list_operations(self, request: Request) -> Response:
        run = self._run_of(request)
        state = request.query_params.get("state", "unfetched")
        if state not in ("unfetched", "all"):
            raise InvalidInput(f"{state!r} is neither 'unfetched' nor 'all'", field="state")
        after = _count(request, "page", least=0, default=0)
        listed = self.dispatcher.list_operations(run.config.run_id, unfetched=state == "unfetched", after=after)
        return respond(request, listed)

    @describe("Read metrics as Prometheus does", gives=Media({"text/plain": {"type": "string"}}))
    async def metrics(self, request: Request) -> Response:
        return Response(self.dispatcher.telemetry.metrics(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _has_run(self, request: Request, run_id: str) -> bool:
        return any(run.config.run_id == run_id for run in self._seen_runs(request))

    def _knows(self, caller: Caller, operation_id: str) -> bool:
        return self.dispatcher.registry.may_see(caller, split_operation_id(operation_id)[0])

    def _known_as(self, caller: Caller, operation_id: str) -> str:
        """The id itself; for an operation of a run that the caller may not know of, one that no operation has."""
        return operation_id if self._knows(caller, operation_id) else f"/{operation_id}"

    def _seen_runs(self, request: Request) -> list[Run]:
        caller = caller_of(request)
        return [run for run in self.dispatcher.registry.runs if caller.may_see(run.config.project)]

    def _run_of(self, request: Request) -> Run:
        """The run that a path names; raises NotFound where the caller has none of that id."""
        registry, run_id = self.dispatcher.registry, request.path_params["run_id"]
        registry.check_seen(caller_of(request), run_id)
        return registry.find(run_id)

    @describe(
        "Submit an operation",
        takes=REQUEST_TYPES,
        gives=operations_pb2.Accepted,
        status=202,
        parameters=_SUBMISSION,
        errors=[Conflict, TooManyRequests],
    )
    async def submit(self, request: Request) -> Response:
        run = self._run_of(request)
        verb = request.path_params["verb"]
        kind = request_type(verb)
        address = _address_of(request, run.config.run_id)
        self.dispatcher.reception.check_room(address, num_bytes=declared_bytes(request))
        limits = self.dispatcher.limits(run)
        where = f"part[{address.part}]." if address.num_parts > 1 else ""
        bodies = bodies_of(request)
        async with bodies.held(request, limit=self._limit(request, kind)) as body, bodies.decoding(len(body)):
            accepted = await self.dispatcher.reception.submit(
                address,
                verb,
                body,
                client_id=caller_of(request).named(request.headers.get(paths.CLIENT_ID, "")),
                parse=lambda: parse_call(verb, self._allowed(self._decode(request, body, kind)), limits, where=where),
                content_type=request.headers.get("content-type", ""),
            )
        return respond(request, accepted, status=202)

    def _limit(self, request: Request, kind: type[Message]) -> int:
        """Of a body: data alone may be large, and only where they can be looked at before they are decoded."""
        may_be_large = kind is pb.ForwardRequest and is_protobuf(request.headers.get("content-type", ""))
        return max(self.max_request_bytes, self.max_datum_bytes if may_be_large else 0)

    def _decode(self, request: Request, body: bytes, kind: type[Message]) -> Message:
        check_large(body, kind, usual_bytes=self.max_request_bytes)
        return decode(request, body, kind)

    def _allowed(self, message: Message) -> Message:
        """Refuses a loss that comes with its call, unless whoever runs this trainer wants that."""
        if isinstance(message, pb.ForwardRequest) and message.loss_fn == CUSTOM and not self.custom_losses:
            raise InvalidInput(
                "this trainer computes no losses that clients send in",
                field="loss_fn",
                hint="run it on the client (forward_backward_custom), or start the server with --custom-losses",
            )
        return message


def make_server(api: TrainerApi, *, keys: Keys, feed: FeedServer, host: str, feed_port: int) -> Starlette:
    """The app; the main loop and the feed live as long as it does."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        api.feed_address = await feed.start(host, feed_port)
        api.dispatcher.start()
        await api.dispatcher.recover()
        try:
            yield
        finally:
            await api.dispatcher.drain()
            await feed.stop()

    return make_app(api.routes(), keys=keys, lifespan=lifespan, open_paths=OPEN_PATHS, title="Farstep trainer")


def _address_of(request: Request, run_id: str) -> Address:
    seq = _count(request, "seq", least=1)
    num_parts = _count(request, "parts", least=1, default=1)
    part = _count(request, "part", least=0, default=0)
    if num_parts > MAX_PARTS:
        raise InvalidInput(f"{num_parts} parts, at most {MAX_PARTS} are possible", field="parts")
    if part >= num_parts:
        raise InvalidInput(f"part {part} of {num_parts}: the first part is 0", field="part")
    return Address(run_id, seq, part, num_parts)


def _count(request: Request, name: str, *, least: int, default: int | None = None) -> int:
    text = request.query_params.get(name)
    if text is None:
        if default is None:
            raise InvalidInput(f"missing: ?{name}=", field=name)
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) >= least):
        raise InvalidInput(f"{text!r} is not a whole number from {least} on", field=name)
    return int(text)
