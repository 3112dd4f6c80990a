"""The database's schema, brought up to date when a control plane starts: one set of migrations for every database.

All that is due happens in one transaction, so that a control plane that is killed half-way leaves nothing behind. Who
calls keeps others out meanwhile.
"""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

import farstep_infra.migrations

log = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of itself at every start

BASELINE = "0001"  # what there was before the schema had versions
_BASELINE_TABLES = frozenset({"sessions", "runs", "samplers"})


class SchemaRefused(Exception):
    """The database is not one that this version can use. The message says why."""


def bring_up_to_date(connection: Connection) -> None:
    """Migrates to the newest schema, in the transaction that the connection is in.

    Raises:
        SchemaRefused: it is of a newer version, or somebody else's.
    """
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
    head = known.get_current_head()
    if current != head:
        log.info("the database's schema is brought from %s to %s", current or "nothing", head)
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
