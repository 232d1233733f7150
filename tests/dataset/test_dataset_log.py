"""Stored sums of behaviour keep the identifiers of the code that made them; readers don't."""

from __future__ import annotations

import polars as pl
import sqlalchemy as sa

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset import source
from csrm_tasks.settings import Settings
from csrm_tasks.store.engine import open_store, reading, writing
from csrm_tasks.store.tables import AGGREGATES
from csrm_tasks.text import query_id
from tests.data_fixtures import DAY0, KO, ingest, land_lines, land_sessions, product, session

DOTTED, PLAIN, OTHER = "치킨ㆍ피자", "치킨·피자", "우유"


def test_spellings_that_became_one_query_are_counted_together(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", [product(n, "치킨") for n in range(3)])
    visits = [
        session(1, DOTTED, ["p0", "p1"], click="p0"), session(2, PLAIN, ["p0"]),
        session(3, PLAIN, ["p0"]), session(4, OTHER, ["p2"]),
    ]  # fmt: skip
    land_sessions(settings, DAY0, KO, visits)
    ingest(settings, DAY0)
    engine, key = open_store(settings.db_url), ["query_id", "product_id", "impressions", "clicks"]

    def read() -> list[list[tuple[object, ...]]]:
        with reading(engine) as connection:
            made = [f(connection, "tiny", [DAY0], KO) for f in (source.aggregates, source.summed)]
            asked = source.shown(connection, "tiny", [DAY0], KO)
        sums = [frame.group_by(key[:2]).agg(pl.col(key[2:]).sum()).sort(key) for frame in made]
        assert made[0].select(key).sort(key).equals(sums[0])  # a row per pair and day
        shown = asked.group_by("query_id").agg(pl.col("impressions").sum()).sort("query_id")
        return [frame.rows() for frame in (*sums, shown)]

    one, other = query_id(KO, PLAIN), query_id(KO, OTHER)
    rows = sorted([(one, "p0", 3, 1), (one, "p1", 1, 0), (other, "p2", 1, 0)])
    before = read()
    assert before[0] == before[1] == rows
    # As code had it that took the dot for a vowel: two queries.
    earlier = text_digest(KO, "치킨\u119e피자")
    kept = {"p0": (1, 1), "p1": (1, 0)}
    with writing(engine, "tiny") as connection:
        old = dict.fromkeys(("market", "day", "locale"), "") | {
            "market": "tiny", "day": DAY0, "locale": KO, "query_id": earlier, "query": DOTTED,
            "carts": 0, "purchases": 0, "position_sum": 0, "positions": 0, "skips": 0,
        }  # fmt: skip
        connection.execute(sa.delete(AGGREGATES).where(AGGREGATES.c.product_id == "p1"))
        connection.execute(
            sa.update(AGGREGATES)
            .where(AGGREGATES.c.product_id == "p0")
            .values(impressions=2, clicks=0, query=PLAIN)
        )
        counts = ({"impressions": i, "clicks": c, "product_id": p} for p, (i, c) in kept.items())
        connection.execute(sa.insert(AGGREGATES), [old | c for c in counts])
    after = read()
    assert after[0] == after[1] == rows
    assert after[2] == before[2]
