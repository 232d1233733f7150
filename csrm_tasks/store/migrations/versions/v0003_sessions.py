"""Sessions: what a visit came to, by release; and files are found by when they end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

OVERLAP = "ix_files_market_locale_kind_last_at"


def upgrade() -> None:
    """Add the table, empty: a day has its sessions once it is aggregated again."""
    numbers = ("searches", "impressions", "clicks", "carts", "purchases")
    op.create_table(
        "sessions",
        sa.Column("market", sa.String(length=32), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("locale", sa.String(length=5), nullable=False),
        sa.Column("session_id", sa.String(length=200), nullable=False),
        sa.Column("bucket", sa.String(length=200), nullable=False),
        sa.Column("release", sa.String(length=200), nullable=False),
        sa.Column("mixed", sa.Boolean(), nullable=False),
        *(sa.Column(c, sa.BigInteger(), nullable=False) for c in numbers),
        sa.Column("converted", sa.Boolean(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("market", "day", "locale", "session_id", name="pk_sessions"),
    )
    op.create_index(op.f(OVERLAP), "files", ["market", "locale", "kind", "last_at"], unique=False)


def downgrade() -> None:
    """Remove both."""
    op.drop_index(op.f(OVERLAP), table_name="files")
    op.drop_table("sessions")
