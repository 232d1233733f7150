"""Labels of the query-category task: whether a category is right for a query."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

INDEX = "ix_category_labels_market_locale_day"


def upgrade() -> None:
    """Add the table, empty."""

    def name(length: int) -> sa.String:
        return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")

    op.create_table(
        "category_labels",
        sa.Column("market", name(32), nullable=False),
        sa.Column("label_id", name(200), nullable=False),
        sa.Column("locale", name(5), nullable=False),
        sa.Column("day", name(10), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("label", sa.SmallInteger(), nullable=False),
        sa.Column("rater_id", name(200), nullable=False),
        sa.Column("guideline_version", name(200), nullable=False),
        sa.Column("rated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("row", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("market", "label_id", name="pk_category_labels"),
    )
    op.create_index(INDEX, "category_labels", ["market", "locale", "day"])


def downgrade() -> None:
    """Remove it, unless it holds labels: 0010 has no place for them."""
    table = sa.table("category_labels")
    if op.get_bind().scalar(sa.select(sa.func.count()).select_from(table)):
        raise RuntimeError("0011 cannot be undone: there are labels of the query-category task")
    op.drop_index(INDEX, table_name="category_labels")
    op.drop_table("category_labels")
