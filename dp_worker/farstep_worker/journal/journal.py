"""The journal as the event loop sees it: what to write down, and when it is on the disk.

It decides nothing about operations. What it is told is written in that order; `number` counts it, and `written` says up
to where everything is on the disk.

Invariant: what was awaited survives whatever happens to the process. What came back from `recorded` is what was
written, or is missing with everything after it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.errors import Conflict, Internal, StorageFull, TooManyRequests
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.journal import schema
from farstep_worker.journal.bodies import Bodies
from farstep_worker.journal.folder import JournalFolder
from farstep_worker.journal.records import Ending, Part, RecordedRun, SnapshotRow
from farstep_worker.journal.tables import Tables
from farstep_worker.journal.writer import Report, Write, Writer

log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 4 << 30
_RETRY_AFTER_S = 1.0


class Journal:
    """Of one worker. Made by `open_journal`; lives on the event loop once `start` was called there.

    Args:
        max_bytes: of bodies and outcomes; at half of it `is_crowded` asks for snapshots.
    """

    def __init__(
        self, folder: JournalFolder, connection: sqlite3.Connection, *, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self._folder = folder
        self._db = connection
        self._bodies = Bodies(folder.bodies)
        self._max_bytes = max_bytes
        self._writer: Writer | None = None
        self._number = 0
        self.written = 0
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._whens: deque[tuple[int, Callable[[], None]]] = deque()
        self.snapshots = CheckpointStore(folder.snapshots)
        tables = Tables(connection, self._bodies)
        self._bodies.keep_only(tables.files())
        self.num_bytes = tables.num_bytes

    # What there is, before `start`

    def recorded(self) -> list[RecordedRun]:
        return list(Tables(self._db, self._bodies).runs())

    def body(self, part: Part) -> bytes | None:
        return Tables(self._db, self._bodies).body(part)

    # Writing

    def start(self) -> None:
        """From here on everything happens on this event loop, and nothing is read."""
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(
            self._db, self._folder, self._bodies, report=self._report_from_thread, on_failure=_end_process
        )

    def close(self) -> None:
        """Writes what waits; blocks."""
        if self._writer is None:
            self._db.close()
        else:
            self._writer.close()

    def check_room(self, num_bytes: int) -> None:
        """Refuses a submission before anything is done about it.

        Raises:
            StorageFull: the disk is, or was a moment ago.
            TooManyRequests: the journal is as large as it may be; snapshots will make it smaller.
        """
        assert self._writer is not None
        self._folder.check_room(num_bytes + self._writer.waiting_bytes)
        if self._writer.trouble:
            raise StorageFull(f"the journal at {self._folder.path} cannot be written: {self._writer.trouble}")
        if self.num_bytes + num_bytes > self._max_bytes:
            raise TooManyRequests(
                f"the journal holds {self.num_bytes >> 20} MiB, of {self._max_bytes >> 20} that it may",
                retry_after_s=_RETRY_AFTER_S,
            )

    @property
    def is_crowded(self) -> bool:
        return self.num_bytes > self._max_bytes // 2

    async def add_run(self, run_id: str, incarnation: str, request: pb.CreateRunRequest) -> None:
        """Raises StorageFull."""
        await self._refusable(lambda tables: tables.add_run(run_id, incarnation, request))

    async def add_part(self, part: Part) -> None:
        """Raises StorageFull."""
        await self._refusable(lambda tables: tables.add_part(part), num_bytes=part.num_bytes)
        self.num_bytes += part.num_bytes

    async def add_client(self, run_id: str, seq: int, client_id: str) -> None:
        """Raises StorageFull."""
        await self._refusable(lambda tables: tables.add_client(run_id, seq, client_id))

    async def withdraw(self, part: Part) -> None:
        """A request that could not be taken after it was written down."""
        await self.until(self._put(lambda tables: tables.withdraw(part)))

    def withdraw_all(self, run_id: str, seq: int) -> None:
        """What came of an operation whose other parts will not."""
        self._put(lambda tables: tables.withdraw_all(run_id, seq))

    async def delete_run(self, run_id: str, endings: list[Ending]) -> None:
        """With the ends that its operations have come to by that."""

        def apply(tables: Tables) -> None:
            for ending in endings:
                tables.add_ending(ending)
            tables.delete_run(run_id)

        await self.until(self._put(apply))

    def add_ending(self, ending: Ending, *, lazy: bool) -> int:
        """The number to wait for where the end must not be told before it is on the disk."""
        self.num_bytes += len(ending.outcome)
        return self._put(lambda tables: tables.add_ending(ending), lazy=lazy)

    def add_snapshot(self, row: SnapshotRow) -> int:
        """Takes in a snapshot whose files are there."""
        return self._put(lambda tables: tables.add_snapshot(row))

    def acknowledge(self, run_id: str, seq: int, client_id: str) -> None:
        self._put(lambda tables: tables.acknowledge(run_id, seq, client_id), lazy=True)

    def forget(self, run_id: str, seq: int) -> None:
        """Nobody can ask for its outcome any more."""
        self._put(lambda tables: tables.forget(run_id, seq), lazy=True)

    async def until(self, number: int) -> None:
        """Returns when everything up to that number is on the disk, however long the disk refuses."""
        if number > self.written:
            future = self._futures.setdefault(number, self._loop.create_future())
            await asyncio.shield(future)

    def when(self, number: int, then: Callable[[], None]) -> None:
        """Calls, once everything up to that number is on the disk; numbers are asked for in rising order."""
        if number <= self.written:
            then()
        else:
            self._whens.append((number, then))

    @property
    def last_number(self) -> int:
        return self._number

    def _put(
        self, apply: Callable[[Tables], None], *, num_bytes: int = 0, lazy: bool = False, refusable: bool = False
    ) -> int:
        assert self._writer is not None
        self._number += 1
        self._writer.put(Write(self._number, apply, num_bytes, lazy, refusable))
        return self._number

    async def _refusable(self, apply: Callable[[Tables], None], *, num_bytes: int = 0) -> None:
        number = self._put(apply, num_bytes=num_bytes, refusable=True)
        future = self._futures[number] = self._loop.create_future()
        await asyncio.shield(future)

    def _report_from_thread(self, report: Report) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(partial(self._reported, report))

    def _reported(self, report: Report) -> None:
        for number, error in report.refused:
            future = self._futures.pop(number)
            if not future.cancelled():
                future.set_exception(error)
        self.written = report.number
        self.num_bytes -= report.freed_bytes
        for number in [number for number in self._futures if number <= self.written]:
            future = self._futures.pop(number)
            if not future.cancelled():
                future.set_result(None)
        while self._whens and self._whens[0][0] <= self.written:
            self._whens.popleft()[1]()


def open_journal(
    folder: JournalFolder, identity: Mapping[str, str], settings: Mapping[str, str], *, max_bytes: int
) -> Journal:
    """The journal in a folder, begun there if it is empty.

    Args:
        identity: what it is of; a journal of anything else is refused.
        settings: what the last bits of a replay depend on; other ones are warned of.

    Raises:
        Conflict: it is of another model.
        Internal: it cannot be read, or the disk has no room to begin one.
    """
    hint = "choose another place with --journal; what is in this one stays there"
    try:
        connection = schema.connect(folder.database)
        tables = Tables(connection, Bodies(folder.bodies))
        known = tables.meta()
        _check_same(folder, known, {"format": schema.FORMAT, **identity}, hint=hint)
        for name, value in settings.items():
            if known.get(name, value) != value:
                log.warning(
                    "the journal at %s was written with %s %s, not %s: what is computed again may differ by rounding",
                    folder.path, name, known[name], value,
                )  # fmt: skip
        tables.set_meta({"format": schema.FORMAT, **identity, **settings})
    except (sqlite3.Error, OSError) as error:
        raise Internal(f"the journal at {folder.path} cannot be opened: {error}", hint=hint) from error
    return Journal(folder, connection, max_bytes=max_bytes)


def _check_same(folder: JournalFolder, known: Mapping[str, str], wanted: Mapping[str, str], *, hint: str) -> None:
    for name, value in wanted.items():
        if known.get(name, value) != value:
            raise Conflict(
                f"the journal at {folder.path} is of {name} {known[name]!r}, not {value!r}",
                field="--journal",
                hint=hint,
            )


def _end_process(error: BaseException) -> None:
    """Without its journal a worker must not acknowledge anything."""
    log.critical("the journal failed", exc_info=error)
    os.kill(os.getpid(), signal.SIGTERM)
