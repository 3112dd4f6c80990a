"""The journal's tables, and how they are opened.

One process has the file to itself (the folder is locked), so that SQLite needs no shared memory beside it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

FORMAT = "1"

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY,
    incarnation TEXT NOT NULL,
    request BLOB NOT NULL,
    covered_seq INTEGER NOT NULL DEFAULT 0,
    is_deleted INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS parts (
    run_id TEXT NOT NULL, seq INTEGER NOT NULL, part INTEGER NOT NULL,
    num_parts INTEGER NOT NULL, verb TEXT NOT NULL, content_type TEXT NOT NULL, digest BLOB NOT NULL,
    num_bytes INTEGER NOT NULL, body BLOB, file TEXT,
    PRIMARY KEY (run_id, seq, part)
);
CREATE TABLE IF NOT EXISTS clients (
    run_id TEXT NOT NULL, seq INTEGER NOT NULL, client_id TEXT NOT NULL,
    PRIMARY KEY (run_id, seq, client_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS endings (
    run_id TEXT NOT NULL, seq INTEGER NOT NULL,
    verb TEXT NOT NULL, digest BLOB NOT NULL, ran INTEGER NOT NULL, state INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL, outcome BLOB, file TEXT, is_forgotten INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, seq)
);
CREATE TABLE IF NOT EXISTS snapshots (
    run_id TEXT NOT NULL, seq INTEGER NOT NULL, name TEXT NOT NULL, num_bytes INTEGER NOT NULL,
    PRIMARY KEY (run_id, seq)
);
"""


def connect(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error, also for a file that is no database."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 256")  # a megabyte: small disks, short openings
    connection.execute("PRAGMA journal_size_limit = 1048576")
    connection.executescript(_TABLES)
    return connection
