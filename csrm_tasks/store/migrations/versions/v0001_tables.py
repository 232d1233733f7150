"""The first tables: deliveries, quarantine, aggregates, published days, ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "aggregates",
        sa.Column("market", sa.String(length=32), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("locale", sa.String(length=5), nullable=False),
        sa.Column("query_id", sa.String(length=16), nullable=False),
        sa.Column("product_id", sa.String(length=200), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("impressions", sa.BigInteger(), nullable=False),
        sa.Column("clicks", sa.BigInteger(), nullable=False),
        sa.Column("carts", sa.BigInteger(), nullable=False),
        sa.Column("purchases", sa.BigInteger(), nullable=False),
        sa.Column("position_sum", sa.BigInteger(), nullable=False),
        sa.Column("positions", sa.BigInteger(), nullable=False),
        sa.Column("skips", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "market", "day", "locale", "query_id", "product_id", name=op.f("pk_aggregates")
        ),
    )
    op.create_table(
        "days",
        sa.Column("market", sa.String(length=32), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("rows_in", sa.BigInteger(), nullable=False),
        sa.Column("quarantined", sa.BigInteger(), nullable=False),
        sa.Column("share", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("market", "day", name=op.f("pk_days")),
    )
    op.create_table(
        "files",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("market", sa.String(length=32), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("locale", sa.String(length=5), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("rows_in", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        sa.Column("quarantined", sa.BigInteger(), nullable=False),
        sa.Column("known", sa.BigInteger(), nullable=False),
        sa.Column("fault", sa.String(length=32), nullable=True),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint(
            "market",
            "day",
            "locale",
            "kind",
            "digest",
            name=op.f("uq_files_market_day_locale_kind_digest"),
        ),
    )
    op.create_table(
        "ledger",
        sa.Column("market", sa.String(length=32), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.String(length=40), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("release_id", sa.String(length=200), nullable=True),
        sa.Column("previous", sa.String(length=200), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("prev_hash", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("market", "seq", name=op.f("pk_ledger")),
    )
    op.create_table(
        "labels",
        sa.Column("market", sa.String(length=32), nullable=False),
        sa.Column("label_id", sa.String(length=200), nullable=False),
        sa.Column("locale", sa.String(length=5), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("product_id", sa.String(length=200), nullable=False),
        sa.Column("grade", sa.SmallInteger(), nullable=False),
        sa.Column("rater_id", sa.String(length=200), nullable=False),
        sa.Column("guideline_version", sa.String(length=200), nullable=False),
        sa.Column("rated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_labels_file_id")),
        sa.PrimaryKeyConstraint("market", "label_id", name=op.f("pk_labels")),
    )
    op.create_index(
        op.f("ix_labels_market_locale_day"), "labels", ["market", "locale", "day"], unique=False
    )
    op.create_table(
        "products",
        sa.Column("market", sa.String(length=32), nullable=False),
        sa.Column("locale", sa.String(length=5), nullable=False),
        sa.Column("product_id", sa.String(length=200), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("brand", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_products_file_id")),
        sa.PrimaryKeyConstraint("market", "locale", "product_id", "day", name=op.f("pk_products")),
    )
    op.create_table(
        "quarantine",
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.Column("row", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.String(length=200), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_quarantine_file_id")),
        sa.PrimaryKeyConstraint("file_id", "row", name=op.f("pk_quarantine")),
    )
    op.create_table(
        "translations",
        sa.Column("market", sa.String(length=32), nullable=False),
        sa.Column("translation_id", sa.String(length=200), nullable=False),
        sa.Column("locale", sa.String(length=5), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("source_text", sa.Text(), nullable=False),
        sa.Column("target_text", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_translations_file_id")),
        sa.PrimaryKeyConstraint("market", "translation_id", name=op.f("pk_translations")),
    )
    op.create_index(
        op.f("ix_translations_market_day"), "translations", ["market", "day"], unique=False
    )


def downgrade() -> None:
    """Remove every table."""
    op.drop_index(op.f("ix_translations_market_day"), table_name="translations")
    op.drop_table("translations")
    op.drop_table("quarantine")
    op.drop_table("products")
    op.drop_index(op.f("ix_labels_market_locale_day"), table_name="labels")
    op.drop_table("labels")
    op.drop_table("ledger")
    op.drop_table("files")
    op.drop_table("days")
    op.drop_table("aggregates")
