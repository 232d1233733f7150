"""Interleaved sessions' clicks and carts by release, and whose a session is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add table and column, empty: a day has them once it is aggregated again."""

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
    op.add_column("sessions", sa.Column("client_id", name(200), nullable=False, server_default=""))


def downgrade() -> None:
    """Remove both."""
    with op.batch_alter_table("sessions") as batch:
        batch.drop_column("client_id")
    op.drop_table("interleaved")
