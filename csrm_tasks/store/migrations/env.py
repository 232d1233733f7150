"""Alembic runs this: migrations on the connection (and in the transaction) it was given."""

from __future__ import annotations

from alembic import context

from csrm_tasks.store.engine import VERSION_TABLE
from csrm_tasks.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
