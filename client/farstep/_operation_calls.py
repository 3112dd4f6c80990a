"""The calls that look at a run's operations: in flight, done, or left behind by a process that is no more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from farstep import _convert
from farstep._closing import Closing
from farstep._connection import Connection
from farstep._convert import Decode
from farstep._loop import awaiting, blocking
from farstep._submission import OnArrival, RunSubmitter
from farstep.errors import InvalidInputError, NotFoundError, UnknownRequestError
from farstep.future import Future
from farstep.results import OperationTrace, QueuedOperation
from farstep_proto import paths
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2, training_pb2

_DECODERS: Mapping[str, Decode[Any]] = MappingProxyType(
    {
        Verb.FORWARD: _convert.forward_backward_output,
        Verb.FORWARD_BACKWARD: _convert.forward_backward_output,
        Verb.OPTIM_STEP: _convert.optim_step_response,
        Verb.SAVE_STATE: _convert.save_weights_response,
        Verb.PUBLISH: _convert.save_weights_response,
        Verb.IMPORT_ADAPTER: _convert.save_weights_response,
        Verb.LOAD_STATE: _convert.load_weights_response,
        Verb.RESET: _convert.nothing,
        Verb.SKIP: _convert.nothing,
    }
)
_UNFINISHED = (operations_pb2.OPERATION_STATE_QUEUED, operations_pb2.OPERATION_STATE_RUNNING)


class OperationCalls(Closing):
    _trainer: Connection
    _submitter: RunSubmitter

    @property
    def run_id(self) -> str:
        raise NotImplementedError

    def _on_arrival_of(self, verb: str) -> OnArrival | None:
        """What an outcome of that verb changes here, if anything."""
        raise NotImplementedError

    async def _queue(self) -> list[QueuedOperation]:
        """This client's operations whose results have not arrived, in order of submission."""
        prefix = f"{self.run_id}:"
        ids = [operation_id for operation_id in self._trainer.outstanding() if operation_id.startswith(prefix)]
        operations = await asyncio.gather(*(self._trainer.look(operation_id) for operation_id in ids))
        return [_convert.queued_operation(operation) for operation in operations]

    queue = blocking(_queue)
    queue_async = awaiting(_queue)

    async def _trace(self, last: int = 100) -> list[OperationTrace]:
        """Where the time of this run's last operations went, oldest first; the server keeps a thousand."""
        count = _convert.whole_number("last", last, at_least=1)
        path = paths.of(paths.TRACE, run_id=self.run_id)
        traced = await self._trainer.call("GET", path, training_pb2.TraceResponse, params={"last": str(count)})
        return [_convert.operation_trace(trace) for trace in traced.operations]

    trace = blocking(_trace)
    trace_async = awaiting(_trace)

    async def _unfetched(self) -> list[Future[Any]]:
        """Futures of this run's operations whose results nobody has fetched, in their order.

        Those that are queued or running, and those that are done, whichever process submitted them: after
        `resume_run` the results that a dead process never saw. Servers keep them for a day. What was submitted in
        part only, or not at all, before later operations is given up, so that these are run.
        """
        self._refuse_closed()
        await self._submitter.close_gaps()
        path = paths.of(paths.RUN_OPERATIONS, run_id=self.run_id)
        found: list[operations_pb2.Operation] = []
        page: str | None = ""
        while page is not None:
            params = {"page": page} if page else {}
            listed = await self._trainer.call("GET", path, operations_pb2.ListOperationsResponse, params=params)
            found += listed.operations
            page = listed.next_page or None
        return [self._claim(operation) for operation in found if operation.verb != Verb.SKIP]

    unfetched = blocking(_unfetched)
    unfetched_async = awaiting(_unfetched)

    def _future(self, operation_id: str) -> Coroutine[Any, Any, Future[Any]]:
        """The future of one of this run's operations, by its id; of one that was fetched, too, for an hour or so.

        Raises:
            InvalidInputError: it is another run's.
            UnknownRequestError: the server does not know it, or not any more.
        """
        self._refuse_closed()
        if operation_id.rpartition(":")[0] != self.run_id:
            raise InvalidInputError(f"{operation_id!r} is not of {self.run_id}", field="operation_id")
        return self._found(operation_id)

    future = blocking(_future)
    future_async = awaiting(_future)

    async def _found(self, operation_id: str) -> Future[Any]:
        try:
            operation = await self._trainer.look(operation_id)
        except NotFoundError as error:
            raise UnknownRequestError(
                error.message, hint="its result is kept for a day, and an hour once fetched"
            ) from error
        return self._claim(operation)

    def _claim(self, operation: operations_pb2.Operation) -> Future[Any]:
        """What was done before this client came is in the run's numbers already."""
        verb = operation.verb
        on_arrival = self._on_arrival_of(verb) if operation.state in _UNFINISHED else None
        return self._submitter.claim(operation.operation_id, verb, _DECODERS[verb], on_arrival=on_arrival)
