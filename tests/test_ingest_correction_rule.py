"""Any sequence of deliveries and corrections, against the rule (decision record 6) in loops."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field

import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from csrm_tasks.artifacts import json_digest
from csrm_tasks.ingest.contracts import CONTRACTS
from csrm_tasks.ingest.landing import Delivery
from csrm_tasks.ingest.load import load_file
from csrm_tasks.ingest.validate import REJECTED, Judged
from csrm_tasks.ingest.window import Window
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.tables import FILES, TRANSLATIONS
from tests.data_fixtures import DAY0, DAY1, KO

Row = tuple[str, str]  # identifier, text
Given = tuple[str, str, list[Row]]  # day, name, rows
rows = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=4)
deliveries = st.lists(
    st.tuples(st.sampled_from((DAY0, DAY1)), st.sampled_from(("one", "two")), rows),
    min_size=2, max_size=7,
)  # fmt: skip


@dataclass
class File:
    """A delivered file as the rule sees it."""

    day: str
    name: str
    rows: list[Row]
    live: bool = True
    stored: dict[str, str] = field(default_factory=dict)
    known: list[Row] = field(default_factory=list)
    refused: int = 0

    def take(self, said: Row, everything: dict[str, str]) -> None:
        """Judge one row, by what all live files have stored."""
        key, text = said
        if key not in everything:
            self.stored[key] = text
        elif everything[key] == text:
            self.known.append(said)
        else:
            self.refused += 1


class Rule:
    """The store, one row at a time."""

    def __init__(self) -> None:
        self.files: list[File] = []

    def everything(self) -> dict[str, str]:
        return {k: v for f in self.files if f.live for k, v in f.stored.items()}

    def deliver(self, day: str, name: str, said: list[Row]) -> None:
        old = [f for f in self.files if f.live and (f.day, f.name) == (day, name)]
        if old and old[0].rows == said:
            return
        for file in old:
            file.live = False
        new = File(day, name, said)
        self.files.append(new)
        for row in said:
            new.take(row, self.everything())
        for file in old:
            for other in self.files[self.files.index(file) : -1]:
                if other.live:
                    before, other.known = other.known, []
                    for row in before:
                        if row[0] in file.stored:
                            other.take(row, self.everything())
                        else:
                            other.known.append(row)


def load(window: Window, name: str, said: list[Row]) -> None:
    frame = pl.DataFrame(said, schema=["translation_id", "target_text"], orient="row")
    clean = frame.with_columns(
        pl.int_range(1, pl.len() + 1).alias("row"),
        pl.lit("title").alias("kind"),
        pl.lit("").alias("source_text"),
    )
    schema = CONTRACTS["translations"].schema
    judged = Judged(
        clean.select(pl.col(c).cast(t) for c, t in schema.items()), pl.DataFrame(schema=REJECTED)
    )
    file = Delivery("", name, KO, "translations", "csv", "", 0, json_digest(said))
    load_file(window, file, judged, lambda wanted: [b"?"] * len(wanted))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_store("sqlite://")


markets = itertools.count()


@given(given=deliveries)
@hypothesis_settings(max_examples=40, deadline=None)
def test_the_store_holds_what_the_rule_says(engine: Engine, given: list[Given]) -> None:
    market = f"m{next(markets)}"  # each example has its own
    rule = Rule()
    with tempfile.TemporaryDirectory() as folder:
        for day, name, said in given:
            rule.deliver(day, name, said)
            load(Window(engine, Lake(folder, market), market, day), name, said)
    with reading(engine) as connection:
        counts = (FILES.c.live, FILES.c.stored, FILES.c.known, FILES.c.quarantined)
        mine = sa.select(*counts).where(FILES.c.market == market).order_by(FILES.c.id)
        found = [tuple(r) for r in connection.execute(mine)]
        row = TRANSLATIONS.c
        texts = sa.select(row.translation_id, row.target_text, row.day, FILES.c.name)
        texts = texts.join(FILES, FILES.c.id == row.file_id).where(row.market == market)
        stored = {tuple(r) for r in connection.execute(texts)}
    assert found == [(f.live, len(f.stored), len(f.known), f.refused) for f in rule.files]
    live = [f for f in rule.files if f.live]
    assert stored == {(k, v, f.day, f.name) for f in live for k, v in f.stored.items()}
