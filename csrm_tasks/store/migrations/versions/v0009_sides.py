"""The side that each query's text was first on, for good: a learnt query never becomes gold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the table, empty: the next snapshot fills it from the earlier ones first."""
    # Digests are compared byte by byte, as in v0001.
    key = sa.String(length=16).with_variant(sa.String(length=16, collation="C"), "postgresql")
    name = sa.String(length=32).with_variant(sa.String(length=32, collation="C"), "postgresql")
    ref = sa.String(length=200).with_variant(sa.String(length=200, collation="C"), "postgresql")
    op.create_table(
        "sides",
        sa.Column("market", name, nullable=False),
        sa.Column("text", key, nullable=False),
        sa.Column("side", sa.String(length=5), nullable=False),
        sa.Column("snapshot", ref, nullable=False),
        sa.PrimaryKeyConstraint("market", "text", name="pk_sides"),
    )


def downgrade() -> None:
    """Remove it; snapshots made meanwhile fill it again."""
    op.drop_table("sides")
