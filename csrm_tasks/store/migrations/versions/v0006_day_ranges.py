"""PostgreSQL finds a day's labels by block ranges: rows arrive day by day, and lie so.

A tree with an entry per row was the dearer half of storing labels, for columns that are the same
in all rows of a file.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

INDEX = "ix_labels_market_locale_day"
COLUMNS = ["market", "locale", "day"]


def upgrade() -> None:
    """Replace the tree on PostgreSQL; SQLite has no other kind of index."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index(INDEX, table_name="labels")
        op.create_index(
            INDEX, "labels", COLUMNS, postgresql_using="brin",
            postgresql_with={"autosummarize": True},
        )  # fmt: skip


def downgrade() -> None:
    """Put the tree back."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index(INDEX, table_name="labels")
        op.create_index(INDEX, "labels", COLUMNS)
