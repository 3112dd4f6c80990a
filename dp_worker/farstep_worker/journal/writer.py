"""The thread that writes: whatever waits is one transaction, in the order in which it came.

A write that says `lazy` waits for company; any other is written at once. Where the disk is full, submissions that wait
are refused and everything else is tried again until it is written: it was accepted, and is in memory meanwhile.

Invariant: writes reach the disk in order, and each is reported once, as written or as refused.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from farstep_infra.store.durable import sync_directory
from farstep_proto.errors import ApiError, Internal, StorageFull
from farstep_worker.journal.bodies import Bodies
from farstep_worker.journal.folder import JournalFolder
from farstep_worker.journal.tables import Tables

log = logging.getLogger(__name__)

_LAZY_S = 0.1
_RETRY_S = 0.5
_MOST_AT_ONCE = 1000
_VACUUM_EVERY = 1000  # transactions


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """`number` counts them. One that is `refusable` may fail where the disk does not take it."""

    number: int
    apply: Callable[[Tables], None]
    num_bytes: int = 0
    lazy: bool = False
    refusable: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """All writes up to `number` are done with; those in `refused` were not written."""

    number: int
    freed_bytes: int = 0
    refused: tuple[tuple[int, ApiError], ...] = ()


class Writer:
    """Args:
    report: is called on the thread.
    on_failure: hears of a mistake of ours, after which nothing is written.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        folder: JournalFolder,
        bodies: Bodies,
        *,
        report: Callable[[Report], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._db = connection
        self._folder = folder
        self._bodies = bodies
        self._report = report
        self._on_failure = on_failure
        self._waiting: deque[Write] = deque()
        self._num_urgent = 0
        self._changed = threading.Condition()
        self._closing = False
        self.trouble = ""
        self.waiting_bytes = 0
        self._num_transactions = 0
        self._has_reserve = folder.keep_reserve()
        self._thread = threading.Thread(target=self._run, name="journal")
        self._thread.start()

    def put(self, write: Write) -> None:
        with self._changed:
            self._waiting.append(write)
            self.waiting_bytes += write.num_bytes
            self._num_urgent += not write.lazy
            self._changed.notify()

    def close(self) -> None:
        """Returns when everything is written that can be."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                if batch:
                    self._write(batch)
                elif self.trouble:
                    self._recover()
        except BaseException as error:
            self._on_failure(error)

    def _next(self) -> list[Write] | None:
        """What to write now, perhaps nothing; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing, _RETRY_S if self.trouble else None)
            self._changed.wait_for(lambda: self._num_urgent or self._closing, _LAZY_S)
            if self._closing and not self._waiting:
                return None
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_AT_ONCE))]
            self._num_urgent -= sum(not write.lazy for write in batch)
            return batch

    def _write(self, batch: list[Write]) -> None:
        refused: list[tuple[int, ApiError]] = []
        last, freed_bytes = batch[-1].number, 0
        while batch:
            tables = Tables(self._db, self._bodies)
            try:
                self._transact(tables, batch)
            except (sqlite3.OperationalError, OSError) as error:
                self._undo(tables)
                refused += self._in_trouble(batch, error)
                batch = [write for write in batch if not write.refusable]
                if batch and not self._release_reserve():
                    if self._closing:
                        log.error("%d records are lost as the journal cannot be written", len(batch))
                        break
                    time.sleep(_RETRY_S)
                continue
            freed_bytes = tables.freed_bytes
            self._bodies.remove(tables.unneeded)
            self._shrink()
            with self._changed:
                self.waiting_bytes -= sum(write.num_bytes for write in batch)
            self._recover()
            break
        self._report(Report(last, freed_bytes, tuple(refused)))

    def _transact(self, tables: Tables, batch: list[Write]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for write in batch:
            write.apply(tables)
        if tables.new:
            self._bodies.sync()
        self._db.execute("COMMIT")

    def _shrink(self) -> None:
        """Gives pages that were freed back to the disk, now and then: most are used again."""
        self._num_transactions += 1
        if self._num_transactions % _VACUUM_EVERY == 0:
            with suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA incremental_vacuum").fetchall()

    def _undo(self, tables: Tables) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._bodies.remove(tables.new)

    def _in_trouble(self, batch: list[Write], error: Exception) -> list[tuple[int, ApiError]]:
        if not self.trouble:
            log.error("the journal at %s cannot be written: %s", self._folder.path, error)
        self.trouble = str(error)
        refusal = self._refusal(error)
        refused = [write for write in batch if write.refusable]
        with self._changed:
            self.waiting_bytes -= sum(write.num_bytes for write in refused)
        return [(write.number, refusal) for write in refused]

    def _refusal(self, error: Exception) -> ApiError:
        where = f"{self._folder.free_bytes >> 10} KiB are free at {self._folder.path}"
        if "full" in str(error) or isinstance(error, OSError):
            return StorageFull(f"the disk of the journal is full ({error}): {where}; nothing was taken")
        return Internal(f"the journal cannot be written ({error}): {where}; nothing was taken")

    def _release_reserve(self) -> bool:
        had, self._has_reserve = self._has_reserve, False
        if had:
            self._folder.release_reserve()
            sync_directory(self._folder.path)
        return had

    def _recover(self) -> None:
        """After something was written: the trouble is over once there is room for the reserve, too."""
        if self._has_reserve and not self.trouble:
            return
        if self._has_reserve or self._folder.free_bytes > 2 * self._folder.reserve_bytes:
            self._has_reserve = self._has_reserve or self._folder.keep_reserve()
            if self._has_reserve and self.trouble:
                log.warning("the journal at %s can be written again", self._folder.path)
                self.trouble = ""
