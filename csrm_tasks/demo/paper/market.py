"""What a seed of the study is judged on: a generated market whose truth is known, or an own one.

A generated market is another one for every seed (:mod:`csrm_tasks.demo.study.data`). A market of
the user's own is one market, frozen once as its weekly run freezes it (:data:`FROZEN` keeps up to
which day; what was found is of these days alone), and a seed is that of its
trainings: what differs between its seeds is the noise of training alone. It is judged on its gold;
where it has none, on half of the target's dev queries, which then choose nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from csrm_tasks.blobs import LocalBlobs
from csrm_tasks.dataset.source import published_days
from csrm_tasks.dataset.tables import table
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.labels import default_queries
from csrm_tasks.demo.market.queries import Query, QuerySet, make_queries
from csrm_tasks.demo.market.world import TARGET, World
from csrm_tasks.demo.study.data import SeedMarket, derive, freeze, load_pairs, seed_market
from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.gold import Gold, judgeable, judged_set
from csrm_tasks.json_files import json_text
from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import Settings
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.text import query_id

FOREVER = "9999-12-31"  # after any day
FROZEN = "frozen.json"  # of a study's home: the last day of an own market that it is of
HELD_ASIDE = 0.5  # of the target's dev queries, where the market has no gold


@dataclass(frozen=True)
class Truth:
    """What the generator knows of a market's target."""

    world: World

    @cached_property
    def asked(self) -> QuerySet:
        """All queries of the target's shoppers."""
        return make_queries(self.world, TARGET, default_queries(self.world)[TARGET])

    @cached_property
    def places(self) -> dict[str, int]:
        """Position of each query in :attr:`asked`, by its identifier."""
        return {query_id(TARGET, q.text): i for i, q in enumerate(self.asked.queries)}

    def query(self, identifier: str) -> Query:
        """Return what a query means."""
        return self.asked.queries[self.places[identifier]]


@dataclass(frozen=True)
class StudyMarket:
    """A seed's market, and the generator's truth where it is generated."""

    seed: SeedMarket
    truth: Truth | None

    @cached_property
    def gold(self) -> Gold:
        """The judged pairs of the target, sorted by query."""
        folder = self.seed.store.open(self.seed.stage2).path
        pairs, queries, products = (table(folder, n) for n in ("pairs", "queries", "products"))
        locale = self.seed.market.target_locale
        wanted = (pl.col("split") == "gold") & (pl.col("locale") == locale)
        frame = judgeable(pairs, queries, products).filter(wanted)
        columns = ["pair_id", "query_id", "product_id", "locale", "grade"]
        return judged_set(frame.select(columns).sort("query_id", "pair_id"))


def generated(base: MarketConfig, home: Path, seed: int, products: int) -> StudyMarket:
    """Return the demo market of ``seed``, generated and frozen below ``home`` where it is not."""
    made = seed_market(base, home, seed, products)
    return StudyMarket(made, Truth(demo_world(products, seed)))


def own(market: MarketConfig, settings: Settings, home: Path, seed: int) -> StudyMarket:
    """Freeze what ``market`` has taken in, into artifacts below ``home``; trainings take ``seed``.

    Raises :class:`DataError` where nothing was taken in, or where no label can be held aside.
    """
    until = max(days_of(market, settings, home))
    apart = replace(
        settings,
        home=home,
        artifacts=str(home / "artifacts"),
        mlflow_uri=f"sqlite:///{home / 'mlflow.db'}",
    )
    home.mkdir(parents=True, exist_ok=True)
    stages = [freeze(market, apart, stage, until) for stage in (1, 2)]
    trained = market.model_copy(update={"seed": seed})
    made = SeedMarket(trained, apart, *stages)
    pairs = load_pairs(made, made.stage2)
    if pairs.filter(split="gold", locale=market.target_locale).is_empty():
        held = held_aside(pairs, market.target_locale)
        made = replace(made, stage2=derive(made, made.stage2, held, {"gold": "dev held aside"}))
    return StudyMarket(made, None)


def days_of(market: MarketConfig, settings: Settings, home: Path) -> dict[str, str]:
    """Return day → digest of the days that a study of ``market`` below ``home`` is of.

    They end with the newest one when the study began, whatever is taken in while it goes on.
    Raises :class:`DataError` where there is none.
    """
    blobs = LocalBlobs(home)
    kept = blobs.read(FROZEN)
    until = json.loads(kept)["until"] if kept else FOREVER
    with reading(open_store(settings.db_url)) as connection:
        days = published_days(connection, market.market, until)
    if not days:
        raise DataError(
            f"market {market.market} has taken no day in; run csrm_ingest, or import its files"
        )
    if kept is None and not blobs.put_if_absent(FROZEN, json_text({"until": max(days)}).encode()):
        return days_of(market, settings, home)  # another process of this study was first
    return days


def held_aside(pairs: pl.DataFrame, locale: str) -> pl.DataFrame:
    """Make half of the dev queries of ``locale`` gold, the same ones every time.

    Raises :class:`DataError` where there are too few of them to halve.
    """
    mine = (pl.col("split") == "dev") & (pl.col("locale") == locale)
    ids = pairs.filter(mine)["query_id"].unique().sort()
    if len(ids) < 2:
        raise DataError(
            f"{len(ids)} labelled queries of {locale} are on dev and none is gold: nothing to "
            "judge by; deliver labels of the target first"
        )
    aside = ids.sample(round(HELD_ASIDE * len(ids)), seed=0).implode()
    gold = mine & pl.col("query_id").is_in(aside)
    return pairs.with_columns(split=pl.when(gold).then(pl.lit("gold")).otherwise("split"))
