"""What it takes to judge a night's rows again when an earlier night comes after it.

``row`` is a row's number in its file: with the rows that were not stored (kept in the lake) it
gives the file's rows as they were read, in order. ``judged_until`` is the day up to which a replay
looked for what a file's rows refer to. ``deleted`` marks the version that says a product is gone.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

NUMBERED = ("products", "labels", "translations")


def upgrade() -> None:
    """Add the columns; rows stored before have number 0."""
    for table in NUMBERED:
        op.add_column(table, sa.Column("row", sa.Integer(), nullable=False, server_default="0"))
    gone = sa.Column("deleted", sa.SmallInteger(), nullable=False, server_default="0")
    op.add_column("products", gone)
    day = sa.String(10).with_variant(sa.String(10, collation="C"), "postgresql")
    op.add_column("files", sa.Column("judged_until", day, nullable=True))


def downgrade() -> None:
    """Remove them; refused where products are gone, which 0006 cannot say."""
    products = sa.table("products", sa.column("deleted", sa.SmallInteger))
    gone = sa.select(sa.func.count()).select_from(products).where(products.c.deleted == 1)
    if op.get_bind().scalar(gone):
        raise RuntimeError("0007 cannot be undone: products are marked as deleted")
    op.drop_column("files", "judged_until")
    op.drop_column("products", "deleted")
    for table in NUMBERED:
        op.drop_column(table, "row")
