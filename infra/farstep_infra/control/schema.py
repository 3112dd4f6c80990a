"""The database's schema, brought up to date when a control plane starts: one set of migrations for every database.

All that is due happens in one transaction under one lock, so that control planes that start at once do not meet, and
one that is killed half-way leaves nothing behind.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

import farstep_infra.migrations

BASELINE = "0001"  # what there was before the schema had versions
_BASELINE_TABLES = frozenset({"sessions", "runs", "samplers"})
_ADVISORY_LOCK = 0x6661727374657000  # of PostgreSQL: "farstep", as a number


class SchemaRefused(Exception):
    """The database is not one that this version can use. The message says why."""


def bring_up_to_date(connection: Connection) -> None:
    """Migrates to the newest schema, in the transaction that the connection is in.

    On SQLite that transaction must have the write lock already.

    Raises:
        SchemaRefused: it is of a newer version, or somebody else's.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(farstep_infra.migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        _take_over(connection, config)
    elif current not in {script.revision for script in known.walk_revisions()}:
        raise SchemaRefused(
            f"its schema is {current}, and this version of Farstep knows those up to {known.get_current_head()}: "
            "a newer version has used it; upgrade Farstep, or choose another database"
        )
    command.upgrade(config, "head")


def _take_over(connection: Connection, config: Config) -> None:
    """Says of a database without a version which it has, where it has one."""
    tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
    if tables >= _BASELINE_TABLES and "last_seen_at" not in _columns(connection, "sessions"):
        command.stamp(config, BASELINE)
    elif tables & _BASELINE_TABLES:
        raise SchemaRefused("it has tables of another program; choose an empty database")


def _columns(connection: Connection, table: str) -> set[str]:
    return {column["name"] for column in inspect(connection).get_columns(table)}
