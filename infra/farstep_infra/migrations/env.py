"""What Alembic runs: the steps that are due, in the transaction of who asks (`control.schema`)."""

from alembic import context

from farstep_infra.control.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, transactional_ddl=True
)
context.run_migrations()
