"""Traffic: how much of a day's deliveries its sums leave out, as machines' or too many of one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the table, empty: a day has its rows once it is aggregated again."""
    numbers = (
        "events", "searches", "machines", "machine_events", "machine_searches", "over_bound",
    )  # fmt: skip

    def name(length: int) -> sa.String:
        return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")

    op.create_table(
        "traffic",
        sa.Column("market", name(32), nullable=False),
        sa.Column("day", name(10), nullable=False),
        sa.Column("locale", name(5), nullable=False),
        *(sa.Column(c, sa.BigInteger(), nullable=False) for c in numbers),
        sa.PrimaryKeyConstraint("market", "day", "locale", name="pk_traffic"),
    )


def downgrade() -> None:
    """Remove it."""
    op.drop_table("traffic")
