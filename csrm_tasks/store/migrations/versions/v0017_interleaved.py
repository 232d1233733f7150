"""Interleaved: the clicks and carts of each interleaved session on what each release picked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0012"


def upgrade() -> None:
    """Add the table, empty: a day has its rows once it is aggregated again."""

    def name(length: int) -> sa.String:
        return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")

    op.create_table(
        "interleaved",
        sa.Column("market", name(32), nullable=False),
        sa.Column("day", name(10), nullable=False),
        sa.Column("locale", name(5), nullable=False),
        sa.Column("session_id", name(200), nullable=False),
        sa.Column("release", name(200), nullable=False),
        sa.Column("credits", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(
            "market", "day", "locale", "session_id", "release", name="pk_interleaved"
        ),
    )


def downgrade() -> None:
    """Remove it."""
    op.drop_table("interleaved")
