"""The header line of CSV files: what it takes to read a quarantined row of them again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; rows of CSV files that were stored before stay in quarantine as they are."""
    op.add_column("files", sa.Column("header", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("files", "header")
