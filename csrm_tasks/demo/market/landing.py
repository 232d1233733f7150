"""Put a world's deliveries into a landing zone, day by day, as a real market would.

======================= ========================================================================
2026-01-04, ko-KR       catalogue.csv, labels.csv, ubi_queries.jsonl.gz, ubi_events.jsonl.gz:
                        four weeks of an established market
2026-01-04, zh-TW       catalogue.csv, translations.csv: all that a new market has
2026-01-05..07, zh-TW   labels.csv (grades as numbers), labels-gold.jsonl (grades as words, eight
                        raters a pair), catalogue-changes.csv, ubi_queries, ubi_events: one night
======================= ========================================================================

A market of many languages (``multi``) has two more sources like the first, each with its own
translations into the target, and one language that is only judged in: its catalogue and some
translations on the first day, and its gold labels beside the target's.

Each night has a few broken rows, as nights do (about 2 in 1,000 of the labels, fewer of the rest):
labels with a grade that no guideline knows, for a product that no catalogue has, and without a
query; a listing without an identifier; events cut off in the middle, with an unknown action, and
for an unknown product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.demo.market import ubi
from csrm_tasks.demo.market.compose import CHOICES
from csrm_tasks.demo.market.files import csv_bytes, jsonl_bytes, put, put_gzip
from csrm_tasks.demo.market.labels import (
    Judgements,
    default_queries,
    gold_labels,
    source_labels,
    target_labels,
)
from csrm_tasks.demo.market.queries import QuerySet, make_queries
from csrm_tasks.demo.market.search import Shelves
from csrm_tasks.demo.market.shoppers import Engine, simulate
from csrm_tasks.demo.market.translations import Direction, make_translations
from csrm_tasks.demo.market.world import SOURCE, TARGET, Product, World, make_product, stream
from csrm_tasks.records import Grade

HISTORY_DAY = "2026-01-04"
NIGHTS = ("2026-01-05", "2026-01-06", "2026-01-07")
SOURCE_SESSIONS, NIGHT_SESSIONS = 6000, 1500  # at the default size
CHANGED = 0.01  # share of the catalogue that a night changes
GUIDELINE = "v1"
JUDGED_EVERY, JUDGED_ROWS = 3, 2_000_000  # every third target query is judged, of so many pairs

CATALOGUE = ("product_id", "title", "brand", "category", "description")
LABELS = ("label_id", "query", "product_id", "grade", "rater_id", "guideline_version", "rated_at")

Label = tuple[str, str, str, str, str, str, str]


@dataclass(frozen=True)
class Landing:
    """One market's deliveries under ``root/{market}``."""

    world: World
    root: Path
    market: str

    def write(self) -> None:
        """Write every file of the calendar."""
        self.write_history()
        self.write_judged()
        for number, day in enumerate(NIGHTS):
            self.write_night(number, day)

    @cached_property
    def queries(self) -> dict[str, QuerySet]:
        """Query sets of all locales."""
        counts = default_queries(self.world)
        return {locale: make_queries(self.world, locale, n) for locale, n in counts.items()}

    @cached_property
    def judged(self) -> tuple[Judgements, Judgements]:
        """Target labels, training and gold."""
        return target_labels(self.world, self.queries[TARGET])

    @cached_property
    def engine(self) -> Engine:
        """The target shop's old search engine; what it learnt lasts over the nights."""
        return Engine(self.world, self.queries[TARGET])

    def put(self, day: str, locale: str, name: str, data: bytes) -> None:
        """Write one delivery."""
        put(self.root / self.market / day / locale / name, data)

    def write_history(self) -> None:
        """Write the source markets' history, and what the target market begins with."""
        for locale in (SOURCE, TARGET, *self.world.others):
            rows = catalogue_rows(self.world.catalogue(locale).products)
            self.put(HISTORY_DAY, locale, "catalogue.csv", csv_bytes(CATALOGUE, rows))
        self.write_translations(TARGET, Direction(SOURCE, TARGET))
        for locale in self.world.more_sources:
            self.write_translations(locale, Direction(locale, TARGET))
        for locale in self.world.judged_in:
            self.write_translations(locale, Direction(SOURCE, locale))
        for locale in (SOURCE, *self.world.more_sources):
            judged = source_labels(self.world, self.queries[locale])
            labels = self.label_rows(judged, "2025-12", HISTORY_DAY, np.arange(len(judged.query)))
            self.put(HISTORY_DAY, locale, "labels.csv", csv_bytes(LABELS, labels))
            engine = Engine(self.world, self.queries[locale])
            self.write_behaviour(engine, locale, HISTORY_DAY, 28, SOURCE_SESSIONS, broken=False)

    def write_translations(self, locale: str, direction: Direction) -> None:
        """Write the translations of a direction into the folder of ``locale``."""
        name = "t" if locale == TARGET else f"t{locale}-"
        pairs = enumerate(make_translations(self.world, direction))
        rows = [(f"{name}{i:06d}", *p) for i, p in pairs]
        header = ("translation_id", "kind", "source_text", "target_text")
        self.put(HISTORY_DAY, locale, "translations.csv", csv_bytes(header, rows))

    def write_night(self, number: int, day: str) -> None:
        """Write one night of the target market: every third query's labels, and the rest."""
        train, gold = self.judged
        mine = np.flatnonzero(train.query % len(NIGHTS) == number)
        rows = [*self.label_rows(train, day, day, mine), *broken_labels(self.world, day)]
        self.put(day, TARGET, "labels.csv", csv_bytes(LABELS, rows))
        self.write_gold(number, day, gold)
        for locale in self.world.judged_in:
            self.write_gold(number, day, gold_labels(self.world, self.queries[locale]))
        changes = catalogue_rows(changed_products(self.world, number))
        changes.append(("", "商品名稱遺失", "", "", ""))
        self.put(day, TARGET, "catalogue-changes.csv", csv_bytes(CATALOGUE, changes))
        self.write_behaviour(self.engine, TARGET, day, 1, NIGHT_SESSIONS, broken=True)

    def write_gold(self, number: int, day: str, gold: Judgements) -> None:
        """Write what experts say of one night's third of the gold queries, in words."""
        experts = np.flatnonzero(gold.query % len(NIGHTS) == number)
        records = (
            dict(zip(LABELS, row, strict=True)) | {"grade": Grade(int(row[3])).name.lower()}
            for row in self.label_rows(gold, f"{day}x", day, experts)
        )
        self.put(day, gold.locale, "labels-gold.jsonl", jsonl_bytes(records))

    def write_judged(self) -> None:
        """Write which products are right for some target queries, by the rule that none else sees.

        It stands for people who judge retrieved titles: a market of its own would send them a sheet
        of what was retrieved. Right is exact or substitute.
        """
        shelves, queries = Shelves(self.world.lexicon, self.world.target), self.queries[TARGET]
        ids = pl.Series("product_id", [p.product_id for p in self.world.target.products])
        rows = np.arange(len(ids))
        judged = queries.queries[::JUDGED_EVERY][: max(1, JUDGED_ROWS // len(ids))]
        frames = [
            pl.DataFrame([ids, pl.Series("correct", shelves.grades(query, rows) >= 1)]).select(
                pl.lit(query.text).alias("query"), "product_id", "correct"
            )
            for query in judged
        ]
        folder = self.root / self.market / "judged" / TARGET
        folder.mkdir(parents=True, exist_ok=True)
        pl.concat(frames).write_parquet(folder / "generated-truth.parquet")

    def label_rows(
        self, judged: Judgements, name: str, day: str, rows: np.ndarray[Any, Any]
    ) -> list[Label]:
        """Return label records of ``rows`` of ``judged``."""
        queries = self.queries[judged.locale].queries
        products = self.world.catalogue(judged.locale).products
        return [
            (
                f"{judged.locale[3:]}-{name}-{i:07d}",
                queries[judged.query[i]].text,
                products[judged.product[i]].product_id,
                str(judged.grade[i]),
                judged.rater[i],
                GUIDELINE,
                f"{day}T{i % 24:02d}:00:00Z",
            )
            for i in rows.tolist()
        ]

    def write_behaviour(
        self, engine: Engine, locale: str, day: str, days: int, sessions: int, broken: bool
    ) -> None:
        """Simulate sessions and write their queries and events, gzipped."""
        rng = stream(self.world.seed, "sessions", locale, day)
        n = round(sessions * self.world.size)
        queries, shop = self.queries[locale], self.world.catalogue(locale)
        window = ubi.day_window(f"{self.market}/{locale}/{day}", day, days, n)
        searches = simulate(engine, queries, n, rng)
        folder = self.root / self.market / day / locale
        asked = ubi.query_records(searches, queries, shop, window)
        put_gzip(folder / "ubi_queries.jsonl.gz", (jsonl_bytes([record]) for record in asked))
        happened = map(jsonl_bytes, ubi.event_records(searches, shop, window))
        first = next(ubi.event_records(searches, shop, window))[0]
        tail = [broken_events(first)] if broken else []
        put_gzip(folder / "ubi_events.jsonl.gz", chain(happened, tail))


def catalogue_rows(products: tuple[Product, ...] | list[Product]) -> list[tuple[str, ...]]:
    """Return catalogue records."""
    return [(p.product_id, p.title, p.brand, p.category, p.description) for p in products]


def changed_products(world: World, number: int) -> list[Product]:
    """Return what changes in the target catalogue in a night: new wording, same thing."""
    rng = stream(world.seed, "changes", str(number))
    shop = world.target.products
    n = max(1, round(CHANGED * len(shop)))
    rows, choices = rng.permutation(len(shop))[:n].tolist(), rng.random((n, CHOICES)).tolist()
    return [
        make_product(world.lexicon, TARGET, shop[row].product_id, shop[row].spec, u, "")
        for row, u in zip(rows, choices, strict=True)
    ]


def broken_labels(world: World, day: str) -> Iterator[Label]:
    """Yield one label for each way in which labels break."""
    product = world.target.products[0].product_id
    after = ("tw-r00", GUIDELINE, f"{day}T00:00:00Z")
    yield (f"TW-{day}-bad1", "湯麵", product, "5", *after)
    yield (f"TW-{day}-bad2", "湯麵", "TW9999999", "1", *after)
    yield (f"TW-{day}-bad3", "", product, "0", *after)


def broken_events(event: dict[str, Any]) -> bytes:
    """Return lines of events, one for each way in which events break."""
    unknown = event["event_attributes"] | {"object": {"object_id": "TW9999999"}}
    records = [event | {"action_name": "page_exit"}, event | {"event_attributes": unknown}]
    whole = jsonl_bytes(records)
    return whole + whole.splitlines()[0][:60] + b"\n"
