"""Statements on the journal's tables: what is added, and what goes once nobody needs it.

On the thread that writes, within its transaction. Whoever calls decides what is needed; here is only how it is kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby

from farstep_proto.paths import Verb
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.journal.bodies import MOST_IN_TABLE, Bodies
from farstep_worker.journal.records import Ending, Part, RecordedOperation, RecordedRun, SnapshotRow

_DELETED_RUNS_KEPT = 100_000
_LARGE = f"'{Verb.FORWARD}', '{Verb.FORWARD_BACKWARD}'"  # outcomes of tokens
_CONTENT = {"parts": "body", "endings": "outcome"}


class Tables:
    """`unneeded` are files to remove once the present transaction is on the disk, `new` those it has made."""

    def __init__(self, connection: sqlite3.Connection, bodies: Bodies) -> None:
        self._db = connection
        self._bodies = bodies
        self.new: list[str] = []
        self.unneeded: list[str] = []
        self.freed_bytes = 0

    # Adding

    def add_run(self, run_id: str, incarnation: str, request: pb.CreateRunRequest) -> None:
        values = (run_id, incarnation, request.SerializeToString())
        self._db.execute("INSERT INTO runs (run_id, incarnation, request) VALUES (?, ?, ?)", values)

    def add_part(self, part: Part) -> None:
        assert part.body is not None
        self.withdraw(part)
        body, file = self._placed(part.body)
        self._db.execute(
            "INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (part.run_id, part.seq, part.part, part.num_parts, part.verb, part.content_type, part.digest,
             part.num_bytes, body, file),
        )  # fmt: skip
        self.add_client(part.run_id, part.seq, part.client_id)

    def add_client(self, run_id: str, seq: int, client_id: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO clients VALUES (?, ?, ?)", (run_id, seq, client_id))

    def add_ending(self, ending: Ending) -> None:
        outcome, file = self._placed(ending.outcome)
        self._db.execute(
            "INSERT OR REPLACE INTO endings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (ending.run_id, ending.seq, ending.verb, ending.digest, ending.ran, ending.state,
             len(ending.outcome), outcome, file),
        )  # fmt: skip

    def add_snapshot(self, row: SnapshotRow) -> None:
        """Takes a snapshot in; the last two are kept, and what the older one has is no longer needed."""
        self._db.execute(
            "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", (row.run_id, row.seq, row.name, row.num_bytes)
        )
        kept = self._db.execute(
            "SELECT seq FROM snapshots WHERE run_id = ? ORDER BY seq DESC LIMIT 2", (row.run_id,)
        ).fetchall()
        if len(kept) == 2:
            (oldest,) = kept[-1]
            self._db.execute("DELETE FROM snapshots WHERE run_id = ? AND seq < ?", (row.run_id, oldest))
            self._db.execute("UPDATE runs SET covered_seq = ? WHERE run_id = ?", (oldest, row.run_id))
            self._drop_bodies(row.run_id, through=oldest)
            self._drop_finished(row.run_id, through=oldest)

    # Removing

    def withdraw(self, part: Part) -> None:
        """A request that was not acknowledged after all."""
        where, values = "run_id = ? AND seq = ? AND part = ?", (part.run_id, part.seq, part.part)
        self._leave("parts", where, values)
        self._db.execute(f"DELETE FROM parts WHERE {where}", values)

    def withdraw_all(self, run_id: str, seq: int) -> None:
        """All parts of an operation, the rest of which will not come."""
        where, values = "run_id = ? AND seq = ?", (run_id, seq)
        self._leave("parts", where, values)
        self._db.execute(f"DELETE FROM parts WHERE {where}", values)
        self._db.execute(f"DELETE FROM clients WHERE {where}", values)

    def delete_run(self, run_id: str) -> None:
        """Its outcomes stay until they are acknowledged, its name for good."""
        self._leave("parts", "run_id = ?", (run_id,))
        self._db.execute("DELETE FROM parts WHERE run_id = ?", (run_id,))
        self._db.execute("DELETE FROM snapshots WHERE run_id = ?", (run_id,))
        self._db.execute("UPDATE runs SET is_deleted = 1 WHERE run_id = ?", (run_id,))
        self._db.execute(
            "DELETE FROM runs WHERE is_deleted AND rowid <= (SELECT max(rowid) FROM runs) - ?", (_DELETED_RUNS_KEPT,)
        )

    def acknowledge(self, run_id: str, seq: int, client_id: str) -> None:
        self._db.execute("DELETE FROM clients WHERE run_id = ? AND seq = ? AND client_id = ?", (run_id, seq, client_id))

    def forget(self, run_id: str, seq: int) -> None:
        """An outcome that nobody can ask for any more; what a replay needs of it stays until a snapshot has it."""
        where, values = "run_id = ? AND seq = ?", (run_id, seq)
        large = f"{where} AND verb IN ({_LARGE})"
        self._leave("endings", large, values)
        self._db.execute(f"UPDATE endings SET outcome = NULL, file = NULL WHERE {large}", values)
        self._db.execute(f"UPDATE endings SET is_forgotten = 1 WHERE {where}", values)
        self._db.execute(f"DELETE FROM clients WHERE {where}", values)
        run = self._db.execute("SELECT covered_seq, is_deleted FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if run is None or run[1] or seq <= run[0]:
            self._leave("endings", where, values)
            self._db.execute(f"DELETE FROM endings WHERE {where}", values)
            self._db.execute(f"DELETE FROM parts WHERE {where}", values)

    def _drop_bodies(self, run_id: str, *, through: int) -> None:
        """Of operations that ended."""
        ended = (
            "run_id = ?1 AND seq <= ?2 AND EXISTS (SELECT 1 FROM endings e WHERE e.run_id = ?1 AND e.seq = parts.seq)"
        )
        self._leave("parts", ended, (run_id, through))
        self._db.execute(f"UPDATE parts SET body = NULL, file = NULL WHERE {ended}", (run_id, through))

    def _drop_finished(self, run_id: str, *, through: int) -> None:
        """What is neither to be done again nor to be asked for."""
        where = "run_id = ?1 AND seq <= ?2"
        over = f"SELECT seq FROM endings WHERE {where} AND is_forgotten"
        self._db.execute(f"DELETE FROM parts WHERE {where} AND seq IN ({over})", (run_id, through))
        self._leave("endings", f"{where} AND is_forgotten", (run_id, through))
        self._db.execute(f"DELETE FROM endings WHERE {where} AND is_forgotten", (run_id, through))
        passed = f"{where} AND NOT EXISTS (SELECT 1 FROM endings e WHERE e.run_id = ?1 AND e.seq = parts.seq)"
        self._leave("parts", passed, (run_id, through))  # parts of what never came whole
        self._db.execute(f"DELETE FROM parts WHERE {passed}", (run_id, through))

    def _leave(self, table: str, where: str, values: tuple[str | int, ...]) -> None:
        """Counts what is about to go, and notes its files."""
        rows = (
            f"SELECT file, num_bytes FROM {table} WHERE ({where}) AND ({_CONTENT[table]} IS NOT NULL OR file NOT NULL)"
        )
        for file, num_bytes in self._db.execute(rows, values):
            self.freed_bytes += num_bytes
            if file:
                self.unneeded.append(file)

    def _placed(self, data: bytes) -> tuple[bytes | None, str | None]:
        if len(data) <= MOST_IN_TABLE:
            return data, None
        self.new.append(self._bodies.put(data))
        return None, self.new[-1]

    # Reading, before anything is written

    def meta(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT name, value FROM meta"))

    def set_meta(self, values: dict[str, str]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def files(self) -> set[str]:
        names = self._db.execute("SELECT file FROM parts UNION SELECT file FROM endings")
        return {name for (name,) in names if name}

    @property
    def num_bytes(self) -> int:
        """Of bodies and outcomes."""
        totals = (
            self._db.execute(f"SELECT total(num_bytes) FROM {table} WHERE {content} IS NOT NULL OR file IS NOT NULL")
            for table, content in _CONTENT.items()
        )
        return int(sum(total.fetchone()[0] for total in totals))

    def runs(self) -> Iterator[RecordedRun]:
        """All of them in the order of their making, without bodies, which `body` reads."""
        for row in self._db.execute("SELECT * FROM runs ORDER BY rowid").fetchall():
            run_id, incarnation, request, covered_seq, is_deleted = row
            yield RecordedRun(
                run_id,
                incarnation,
                pb.CreateRunRequest.FromString(request),
                bool(is_deleted),
                covered_seq,
                self._operations(run_id),
                tuple(self._snapshots(run_id)),
            )

    def body(self, part: Part) -> bytes | None:
        """The body of a part; None where it is gone."""
        row = self._db.execute(
            "SELECT body, file FROM parts WHERE run_id = ? AND seq = ? AND part = ?", (part.run_id, part.seq, part.part)
        ).fetchone()
        return None if row is None else self._read(*row)

    def _operations(self, run_id: str) -> dict[int, RecordedOperation]:
        found: dict[int, RecordedOperation] = {}
        parts = self._db.execute(
            "SELECT seq, part, num_parts, verb, content_type, digest, num_bytes FROM parts WHERE run_id = ? "
            "ORDER BY seq, part", (run_id,)
        )  # fmt: skip
        for seq, *rest in parts:
            found.setdefault(seq, RecordedOperation(seq)).parts.append(Part(run_id, seq, *rest))
        endings = self._db.execute(
            "SELECT seq, verb, digest, ran, state, is_forgotten, outcome, file FROM endings WHERE run_id = ?", (run_id,)
        ).fetchall()
        for seq, verb, digest, ran, state, is_forgotten, *placed in endings:
            outcome = self._read(*placed) or b""
            operation = found.setdefault(seq, RecordedOperation(seq))
            operation.ending = Ending(run_id, seq, verb, digest, bool(ran), state, outcome, bool(is_forgotten))
        clients = self._db.execute("SELECT seq, client_id FROM clients WHERE run_id = ? ORDER BY seq", (run_id,))
        for seq, rows in groupby(clients.fetchall(), key=lambda row: row[0]):
            if seq in found:
                found[seq].clients = [client_id for _, client_id in rows]
        return dict(sorted(found.items()))

    def _snapshots(self, run_id: str) -> Iterable[SnapshotRow]:
        rows = self._db.execute("SELECT * FROM snapshots WHERE run_id = ? ORDER BY seq DESC", (run_id,))
        return (SnapshotRow(*row) for row in rows)

    def _read(self, data: bytes | None, file: str | None) -> bytes | None:
        if file is None:
            return data
        try:
            return self._bodies.get(file)
        except FileNotFoundError:
            return None
