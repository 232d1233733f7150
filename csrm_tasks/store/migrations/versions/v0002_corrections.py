"""Corrected files: a name has one live file, products have a version per file, lake parts.

Rows stay as they are. Where 0001 counted two files of one name, the earlier one goes on under a
name of its own, and its day is published again by the next ingest. Going down is refused when
0001 could not say what the store holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

EVENT_KINDS = ("ubi_queries", "ubi_events")
FILES = sa.table(
    "files",
    *(sa.column(c) for c in ("id", "market", "day", "locale", "kind", "name", "digest", "part")),
    sa.column("live", sa.Boolean()),
)
DAYS = sa.table("days", sa.column("market"), sa.column("day"), sa.column("stale"))
QUARANTINE = sa.table("quarantine", sa.column("file_id"))
PRODUCTS = sa.table(
    "products", *(sa.column(c) for c in ("market", "locale", "product_id", "day", "file_id"))
)
VERSION = ("market", "locale", "product_id", "day")


def upgrade() -> None:
    """Add columns, keys and indexes; a lake file of 0001 is called after its digest."""
    with op.batch_alter_table("files") as files:
        files.add_column(sa.Column("live", sa.Boolean(), server_default=sa.true(), nullable=False))
        files.add_column(sa.Column("supersedes", sa.Integer(), nullable=True))
        files.add_column(sa.Column("part", sa.String(length=64), nullable=True))
        files.add_column(sa.Column("known_part", sa.String(length=64), nullable=True))
        files.create_foreign_key(op.f("fk_files_supersedes"), "files", ["supersedes"], ["id"])
        files.drop_constraint(op.f("uq_files_market_day_locale_kind_digest"), type_="unique")
    with op.batch_alter_table("days") as days:
        days.add_column(sa.Column("stale", sa.Integer(), server_default="0", nullable=False))
    _product_key((*VERSION, "file_id"))
    op.execute(sa.update(FILES).where(FILES.c.kind.in_(EVENT_KINDS)).values(part=FILES.c.digest))
    _rename_namesakes()
    op.create_index(
        "uq_files_live", "files", ["market", "day", "name"], unique=True,
        sqlite_where=sa.text("live"), postgresql_where=sa.text("live"),
    )  # fmt: skip


def downgrade() -> None:
    """Undo it: superseded files go, with their quarantine; RuntimeError if that would lose rows."""
    _refuse_what_0001_cannot_hold()
    gone = sa.select(FILES.c.id).where(~FILES.c.live)
    op.execute(sa.delete(QUARANTINE).where(QUARANTINE.c.file_id.in_(gone)))
    op.drop_index("uq_files_live", table_name="files")
    _keep_last_versions()
    _product_key(VERSION)
    with op.batch_alter_table("days") as days:
        days.drop_column("stale")
    with op.batch_alter_table("files") as files:
        files.drop_constraint(op.f("fk_files_supersedes"), type_="foreignkey")
    op.execute(sa.delete(FILES).where(~FILES.c.live))
    with op.batch_alter_table("files") as files:
        for column in ("known_part", "part", "supersedes", "live"):
            files.drop_column(column)
        files.create_unique_constraint(
            op.f("uq_files_market_day_locale_kind_digest"),
            ["market", "day", "locale", "kind", "digest"],
        )


def _product_key(columns: Sequence[str]) -> None:
    with op.batch_alter_table("products") as products:
        products.drop_constraint(op.f("pk_products"), type_="primary")
        products.create_primary_key(op.f("pk_products"), list(columns))


def _rename_namesakes() -> None:
    later = FILES.alias("later")
    earlier = sa.exists().where(
        later.c.market == FILES.c.market, later.c.day == FILES.c.day,
        later.c.name == FILES.c.name, later.c.id > FILES.c.id,
    )  # fmt: skip
    connection = op.get_bind()
    found = connection.execute(
        sa.select(FILES.c.id, FILES.c.market, FILES.c.day, FILES.c.name, FILES.c.digest)
        .where(earlier)
    ).all()  # fmt: skip
    for file_id, market, day, name, digest in found:
        new_name = f"{name[:238]}~{digest[:16]}"
        op.execute(sa.update(FILES).where(FILES.c.id == file_id).values(name=new_name))
        here = (DAYS.c.market == market, DAYS.c.day == day)
        op.execute(sa.update(DAYS).where(*here).values(stale=1))


def _keep_last_versions() -> None:
    later = PRODUCTS.alias("later")
    same = (later.c[c] == PRODUCTS.c[c] for c in VERSION)
    replaced = sa.exists().where(*same, later.c.file_id > PRODUCTS.c.file_id)
    op.execute(sa.delete(PRODUCTS).where(replaced))


def _refuse_what_0001_cannot_hold() -> None:
    connection = op.get_bind()
    digest = (FILES.c.market, FILES.c.day, FILES.c.locale, FILES.c.kind, FILES.c.digest)
    twice = sa.select(*digest).where(FILES.c.live).group_by(*digest).having(sa.func.count() > 1)
    moved = sa.select(FILES.c.name).where(FILES.c.live, FILES.c.part != FILES.c.digest)
    for statement in (twice, moved):
        if connection.execute(statement).first() is not None:
            raise RuntimeError(
                "0002 cannot be undone: the store holds corrected event files, or one file under "
                "two names; go back to a backup from before 0002"
            )
