"""Models on their way into being: provisioned, made on their trainer, and begun, each in a task of its own.

Every step may be done again, and finds what was done before. So a creation that this process began or did not makes no
difference: whoever asks for its outcome has it go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from farstep_infra.control.control import Control
from farstep_infra.control.db import Database
from farstep_infra.control.tables import TinkerModelRow
from farstep_infra.gateway.channel import Submission
from farstep_infra.gateway.channels import Channels
from farstep_infra.gateway.failures import Failure, category_of, failure_of, text_of
from farstep_infra.gateway.seqs import RunSeqs
from farstep_infra.gateway.whereabouts import ModelFailed, RunPlace, Whereabouts
from farstep_proto import paths
from farstep_proto.errors import ApiError, Conflict, NotFound, Unavailable
from farstep_proto.paths import Verb
from farstep_proto.v1 import training_pb2
from farstep_serving.keys import OPERATOR

log = logging.getLogger(__name__)

_FIRST_SEQ = 1  # of the trainer; Tinker's is 0
_WAIT_S = 30.0
_PAUSE_S = 0.5
_MAX_KEPT = 10_000

Outcome = Failure | None  # None: it is there


class Creations:
    def __init__(
        self, control: Control, db: Database, channels: Channels, whereabouts: Whereabouts, seqs: RunSeqs
    ) -> None:
        self._control = control
        self._db = db
        self._channels = channels
        self._whereabouts = whereabouts
        self._seqs = seqs
        self._tasks: OrderedDict[str, asyncio.Task[Outcome]] = OrderedDict()

    def go_on(self, run_id: str) -> asyncio.Task[Outcome]:
        """The task that brings a run into being, begun now unless it was."""
        task = self._tasks.get(run_id)
        if task is None:
            task = self._tasks[run_id] = asyncio.create_task(self._outcome(run_id), name=f"create-{run_id}")
            ended = [each for each, task in self._tasks.items() if task.done()]
            for each in ended[: max(0, len(self._tasks) - _MAX_KEPT)]:
                del self._tasks[each]
        return task

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def row(self, run_id: str) -> TinkerModelRow | None:
        """What was asked for beyond the run's own row; None for a run that was not made over this wire."""
        async with self._db.reading() as db:
            return await db.get(TinkerModelRow, run_id)

    async def _outcome(self, run_id: str) -> Outcome:
        while True:
            try:
                return await self._create(run_id)
            except Unavailable as error:  # the database, or a trainer that is being started again
                log.info("creating %s waits: %s", run_id, error.message)
                await asyncio.sleep(_PAUSE_S)
            except ApiError as error:
                return Failure(error=text_of(error.to_proto()), category=category_of(error.status))
            except Exception:
                log.exception("creating %s", run_id)
                return Failure(error="the server made a mistake; its log has the details", category="server")

    async def _create(self, run_id: str) -> Outcome:
        row = await self.row(run_id)
        if row is None:
            raise NotFound(f"no model {run_id!r}", field="model_id")
        try:
            place = await self._whereabouts.run(run_id, caller=OPERATOR, wait_s=_WAIT_S)
        except ModelFailed as error:  # its processes could not be started
            return Failure(error=error.message, category="server")
        await self._make(place)
        failure = await self._begin(place, row)
        if failure is None:
            line = await self._seqs.of(run_id)
            line.last = line.last or 0
        return failure

    async def _make(self, place: RunPlace) -> None:
        run = await self._control.runs.get(place.run_id, caller=OPERATOR)
        request = training_pb2.CreateRunRequest(
            run_id=run.run_id,
            base_model=run.model or run.base_model,
            lora=run.lora,
            max_seq_len=run.max_seq_len,
            project=run.project,
        )
        if run.HasField("seed"):
            request.seed = run.seed
        body = request.SerializeToString()
        await self._channels.of(place.trainer_url).call("POST", paths.RUNS, body, project=place.project)

    async def _begin(self, place: RunPlace, row: TinkerModelRow) -> Outcome:
        """The run's first operation: a checkpoint is loaded, or nothing is done."""
        operation_id = f"{place.run_id}:{_FIRST_SEQ}"
        channel = self._channels.of(place.trainer_url)
        try:
            await channel.submit(_first(place, row, operation_id))
            operation = None
            while operation is None:
                operation = await channel.outcome(operation_id, wait_s=_WAIT_S)
        except ApiError as error:
            if error.status not in (Conflict.status, NotFound.status):
                raise
            return None  # it was done, so long ago that its outcome is no longer kept
        channel.fetched(operation_id)
        return failure_of(operation.error) if operation.HasField("error") else None


def _first(place: RunPlace, row: TinkerModelRow, operation_id: str) -> Submission:
    if row.load_path:
        load = training_pb2.LoadStateRequest(path=row.load_path, optimizer=row.load_optimizer)
        verb, body = Verb.LOAD_STATE, load.SerializeToString()
    else:
        verb, body = Verb.SKIP, b""
    path = f"{paths.of(paths.VERB, run_id=place.run_id, verb=verb)}?seq={_FIRST_SEQ}"
    return Submission(operation_id, path, [body], place.project)
