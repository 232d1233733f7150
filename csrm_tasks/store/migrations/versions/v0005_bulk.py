"""Bulk load: identifiers compare byte by byte on PostgreSQL, and rows name their file unchecked.

A collation of a language costs more than the rest of an index entry, and orders identifiers
otherwise than everybody else does. The foreign keys of the three large tables had PostgreSQL look
the same ``files`` row up once per row; the transaction that writes it writes the rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

NAMES = {  # length of the columns that a key or an index is made of, and of other identifiers
    "files": {"market": 32, "day": 10, "locale": 5},
    "products": {"market": 32, "locale": 5, "product_id": 200, "day": 10},
    "labels": {
        "market": 32, "label_id": 200, "locale": 5, "day": 10, "product_id": 200,
        "rater_id": 200, "guideline_version": 200,
    },
    "translations": {"market": 32, "translation_id": 200, "locale": 5, "day": 10},
    "aggregates": {"market": 32, "day": 10, "locale": 5, "query_id": 16, "product_id": 200},
    "sessions": {
        "market": 32, "day": 10, "locale": 5, "session_id": 200, "bucket": 200, "release": 200,
    },
    "days": {"market": 32, "day": 10},
    "ledger": {"market": 32, "actor": 200, "release_id": 200, "previous": 200},
}  # fmt: skip
BULK = ("products", "labels", "translations")


def upgrade() -> None:
    """Drop the foreign keys, and have PostgreSQL compare bytes."""
    for table in BULK:
        with op.batch_alter_table(table) as changed:
            changed.drop_constraint(op.f(f"fk_{table}_file_id"), type_="foreignkey")
    _collate("C")


def downgrade() -> None:
    """Undo it."""
    _collate("default")
    for table in BULK:
        with op.batch_alter_table(table) as changed:
            changed.create_foreign_key(op.f(f"fk_{table}_file_id"), "files", ["file_id"], ["id"])


def _collate(collation: str) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return  # SQLite compares bytes
    for table, columns in NAMES.items():
        for column, length in columns.items():
            op.alter_column(table, column, type_=sa.String(length, collation=collation))
