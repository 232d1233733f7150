"""Migrations keep the rows: up from 0001, and down again where 0001 can hold what there is."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from csrm_tasks.store.engine import HEAD, downgrade, open_store, upgrade, writing

FILE = {"market": "m", "locale": "ko-KR", "rows_in": 2, "stored": 1, "quarantined": 1, "known": 0}
EVENTS = FILE | {"day": "2026-01-04", "kind": "ubi_events", "name": "ko-KR/ubi_events.jsonl"}
CATALOGUE = FILE | {"day": "2026-01-04", "kind": "catalogue", "name": "ko-KR/catalogue.csv"}
PRODUCT = {
    "market": "m", "locale": "ko-KR", "product_id": "p", "day": "2026-01-04", "title": "우유",
    "brand": "", "category": "", "description": "",
}  # fmt: skip
DAY = {"market": "m", "rows_in": 6, "quarantined": 3, "share": 0.5, "digest": "d"}


def put(engine: Engine, name: str, *rows: dict[str, Any]) -> None:
    """Insert rows into a table as it is at this revision."""
    table = sa.Table(name, sa.MetaData(), autoload_with=engine)
    with writing(engine, "m") as connection:
        for row in rows:
            connection.execute(sa.insert(table).values(**row))


def read(engine: Engine, name: str, *columns: str) -> list[tuple[Any, ...]]:
    table = sa.Table(name, sa.MetaData(), autoload_with=engine)
    chosen = [table.c[c] for c in columns]
    with engine.connect() as connection:
        return [tuple(r) for r in connection.execute(sa.select(*chosen).order_by(*chosen))]


@pytest.fixture
def old(database: str) -> Engine:
    """A store at 0001 with files, two of one name among them, a product, quarantine and days."""
    engine = open_store(database)
    downgrade(engine, "0001")
    put(
        engine, "files",
        CATALOGUE | {"id": 1, "digest": "a" * 64}, EVENTS | {"id": 2, "digest": "b" * 64},
        EVENTS | {"id": 3, "digest": "c" * 64},
    )  # fmt: skip
    put(engine, "products", PRODUCT | {"file_id": 1})
    put(engine, "quarantine", {"file_id": 3, "row": 2, "reason": "r", "detail": "", "raw": b"\xff"})
    put(engine, "days", DAY | {"day": "2026-01-04"}, DAY | {"day": "2026-01-05"})
    return engine


def test_up_keeps_rows_and_tells_namesakes_apart(old: Engine) -> None:
    upgrade(old)
    assert read(old, "files", "id", "name", "part", "live") == [
        (1, "ko-KR/catalogue.csv", None, True),
        (2, f"ko-KR/ubi_events.jsonl~{'b' * 16}", "b" * 64, True),
        (3, "ko-KR/ubi_events.jsonl", "c" * 64, True),
    ]
    assert read(old, "days", "day", "stale") == [("2026-01-04", 1), ("2026-01-05", 0)]
    assert read(old, "products", "product_id", "file_id") == [("p", 1)]
    assert [bytes(r[0]) for r in read(old, "quarantine", "raw")] == [b"\xff"]
    assert open_store(old.url.render_as_string(hide_password=False)) is old


def test_down_keeps_what_counts(old: Engine) -> None:
    upgrade(old)
    put(
        old, "files",
        CATALOGUE | {"id": 4, "digest": "d" * 64, "name": "ko-KR/catalogue-b.csv", "live": False},
        CATALOGUE
        | {"id": 5, "digest": "e" * 64, "name": "ko-KR/catalogue-b.csv", "supersedes": 4},
    )  # fmt: skip
    put(old, "quarantine", {"file_id": 4, "row": 1, "reason": "r", "detail": "", "raw": b"x"})
    put(old, "products", PRODUCT | {"file_id": 5, "title": "두유"})
    downgrade(old, "0001")
    assert read(old, "files", "id") == [(1,), (2,), (3,), (5,)]
    assert read(old, "products", "title", "file_id") == [("두유", 5)]
    assert read(old, "quarantine", "file_id") == [(3,)]
    upgrade(old)
    assert len(read(old, "files", "id")) == 4


@pytest.mark.parametrize(
    "more",
    [{"digest": "a" * 64, "name": "ko-KR/copy.csv"}, {"digest": "f" * 64, "part": "f" * 48 + "-1"}],
    ids=["one file under two names", "a corrected lake file"],
)
def test_down_is_refused_where_rows_would_be_lost_and_changes_nothing(
    old: Engine, more: dict[str, Any]
) -> None:
    upgrade(old)
    put(old, "files", CATALOGUE | {"id": 6, "name": "ko-KR/catalogue-c.csv"} | more)
    before = read(old, "files", "id", "name", "live")
    with pytest.raises(RuntimeError, match="0002 cannot be undone"):
        downgrade(old, "0001")
    assert read(old, "files", "id", "name", "live") == before
    assert read(old, "csrm_alembic_version", "version_num") == [(HEAD,)]
