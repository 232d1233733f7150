"""Rows about something else are counted, and what of a file could not be read.

Deliveries that were stored before ignored nothing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add both columns."""
    op.add_column(
        "files", sa.Column("ignored", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.add_column("files", sa.Column("notes", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Remove them."""
    op.drop_column("files", "notes")
    op.drop_column("files", "ignored")
