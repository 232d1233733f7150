"""Any sequence of deliveries and corrections ends as the last of each in order, in loops (decision
record 6).
"""

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
from csrm_tasks.ingest.contract.contracts import CONTRACTS
from csrm_tasks.ingest.reading.landing import Delivery
from csrm_tasks.ingest.storage.load import load_file
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.ingest.validation.validate import REJECTED, ValidationResult
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
    """What becomes of a delivered file."""

    stored: dict[str, str] = field(default_factory=dict)
    known: int = 0
    refused: int = 0


def by_the_rule(given: list[Given]) -> dict[tuple[str, str], File]:
    """Judge, row by row, the last delivery of each name in the order of days and names."""
    last = {(day, name): said for day, name, said in given}
    everything: dict[str, str] = {}
    files: dict[tuple[str, str], File] = {}
    for place in sorted(last):
        file = files[place] = File()
        for key, text in last[place]:
            if key not in everything:
                everything[key] = file.stored[key] = text
            elif everything[key] == text:
                file.known += 1
            else:
                file.refused += 1
    return files


def load(window: LakeWindow, name: str, said: list[Row]) -> None:
    frame = pl.DataFrame(said, schema=["translation_id", "target_text"], orient="row")
    clean = frame.with_columns(
        pl.int_range(1, pl.len() + 1).alias("row"),
        pl.lit("title").alias("kind"),
        pl.lit("").alias("source_text"),
    )
    schema = CONTRACTS["translations"].schema
    judged = ValidationResult(
        clean.select(pl.col(c).cast(t) for c, t in schema.items()), pl.DataFrame(schema=REJECTED)
    )
    file = Delivery("", name, KO, "translations", "csv", "", 0, json_digest(said))
    load_file(window, file, judged, lambda wanted: [b"?"] * len(wanted))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_store("sqlite://")


markets = itertools.count()


@given(given=deliveries)
@hypothesis_settings(max_examples=60, deadline=None)
def test_the_store_holds_what_the_rule_says(engine: Engine, given: list[Given]) -> None:
    market = f"m{next(markets)}"  # each example has its own
    with tempfile.TemporaryDirectory() as folder:
        for day, name, said in given:
            load(LakeWindow(engine, Lake(folder, market), market, day), name, said)
    with reading(engine) as connection:
        about = (FILES.c.day, FILES.c.name, FILES.c.stored, FILES.c.known, FILES.c.quarantined)
        mine = sa.select(*about).where(FILES.c.market == market, FILES.c.live)
        found = {(day, name): counts for day, name, *counts in connection.execute(mine)}
        row = TRANSLATIONS.c
        texts = sa.select(row.translation_id, row.target_text, row.day, FILES.c.name)
        texts = texts.join(FILES, FILES.c.id == row.file_id).where(row.market == market)
        stored = {tuple(r) for r in connection.execute(texts)}
    files = by_the_rule(given)
    assert found == {p: [len(f.stored), f.known, f.refused] for p, f in files.items()}
    assert stored == {(k, v, *p) for p, f in files.items() for k, v in f.stored.items()}
