"""What one seed of the study starts from: its market, two snapshots, and clean judged pairs.

The market is generated and goes through the product's own steps (ingest, publish, snapshot). Its
gold pairs are then replaced by the generator's truth on every target query that no rater saw: twice
as many queries as raters judge, without their errors. Shoppers may have typed them, as in a real
market's log; no arm of the study trains on what they did then.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.artifacts import ArtifactStore, json_digest
from csrm_tasks.dataset.tables import SCHEMAS, table
from csrm_tasks.demo.market.generate import DEMO_PRODUCTS, demo_world, generate_demo
from csrm_tasks.demo.market.labels import default_queries, draw_page
from csrm_tasks.demo.market.landing import HISTORY_DAY, NIGHTS
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.search import LexicalIndex, Shelves
from csrm_tasks.demo.market.world import TARGET, World, stream
from csrm_tasks.llm.prompt.prompts import RELEVANCE
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import PAIRS, VOTES, write_table
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps.code_digest import closure_of
from csrm_tasks.steps.running import run_step
from csrm_tasks.text import pair_ids, query_id

GRADES = len(RELEVANCE.tokens)
PAGE = 6  # pairs of a gold query: more queries decide more than more pairs of each
DEV_KEPT = 0.2  # of the source's dev queries: there is one evaluation, at the last step


@dataclass(frozen=True)
class SeedMarket:
    """One seed's market; snapshots are artifact references."""

    market: MarketConfig
    settings: Settings
    stage1: str  # source labels and translations (A9)
    stage2: str  # all labels and behaviour; gold is the generator's truth

    @property
    def store(self) -> ArtifactStore:
        """Where its artifacts are."""
        return ArtifactStore(self.settings.artifacts, self.settings.cache)


def seed_market(
    base: MarketConfig, home: Path, seed: int, products: int = DEMO_PRODUCTS
) -> SeedMarket:
    """Generate, ingest and freeze the market of ``seed`` below ``home``; done again, a no-op."""
    market = base.model_copy(update={"seed": seed})
    found = load_settings({"CSRM_HOME": str(home / f"seed{seed}")})
    settings = replace(found, mlflow_uri=f"sqlite:///{home / 'mlflow.db'}")
    generate_demo(settings.landing, market.market, products, seed)
    ingest(market, settings, HISTORY_DAY)
    stage1 = freeze(market, settings, 1, HISTORY_DAY)
    for day in NIGHTS:
        ingest(market, settings, day)
    stage2 = freeze(market, settings, 2, NIGHTS[-1])
    made = SeedMarket(market, settings, stage1, stage2)
    queries = table(made.store.open(stage2).path, "queries")
    (source,) = market.source_locales
    few = [thinned(load_pairs(made, x), source, DEV_KEPT, seed, "dev") for x in (stage1, stage2)]
    judged = with_truth(few[1], queries, demo_world(products, seed))
    return replace(
        made,
        stage1=derive(made, stage1, few[0], {"dev": DEV_KEPT}),
        stage2=derive(made, stage2, judged, {"dev": DEV_KEPT, "gold": "truth"}),
    )


def ingest(market: MarketConfig, settings: Settings, day: str) -> None:
    """Take one day in, step by step as the nightly DAG does."""
    ref = run_step("land", market, {}, {"day": day}, settings)
    ref = run_step("validate", market, {"land": ref}, {}, settings)
    ref = run_step("store", market, {"validate": ref}, {}, settings)
    ref = run_step("aggregate", market, {"store": ref}, {"day": day}, settings)
    run_step("publish_day", market, {"aggregate": ref}, {"day": day}, settings)


def freeze(market: MarketConfig, settings: Settings, stage: int, until: str) -> str:
    """Freeze what was taken in until a day into a snapshot; returns its reference."""
    return run_step("snapshot", market, {}, {"stage": stage, "until": until}, settings)


def load_pairs(seed: SeedMarket, snapshot: str) -> pl.DataFrame:
    """Return a snapshot's judged pairs (PAIRS)."""
    return table(seed.store.open(snapshot).path, "pairs")


def derive(
    seed: SeedMarket,
    snapshot: str,
    pairs: pl.DataFrame,
    about: dict[str, Any],
    others: Mapping[str, pl.DataFrame] | None = None,
) -> str:
    """Publish ``snapshot`` with other judged pairs, and perhaps ``others`` of its tables by name.

    Returns the reference, the same every time; ``about`` must tell one set of them from another.
    """
    source = seed.store.open(snapshot)
    code = [closure_of(f).digest() for f in (with_truth, with_noise, with_votes, thinned)]
    about = {"step": "study_snapshot", "of": source.digest, "code": code} | about
    ref = f"{seed.market.market}/study_snapshot/{json_digest(about)[:20]}"
    if seed.store.manifest(ref) is None:
        out = seed.settings.work / ref
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(source.path, out)
        for name, frame in {"pairs": pairs, **(others or {})}.items():
            write_table(frame, SCHEMAS[name], out / f"{name}.parquet")
        facts = dict(source.facts) | {"gold": int((pairs["split"] == "gold").sum())}
        seed.store.publish(ref, out, facts=facts, inputs={"snapshot": snapshot}, about=about)
        shutil.rmtree(out)
    return ref


def with_truth(pairs: pl.DataFrame, queries: pl.DataFrame, world: World) -> pl.DataFrame:
    """Replace the gold pairs of ``pairs`` (PAIRS) by true grades of every unjudged target query.

    As in any market, split by query (A10), a nickname in it may have been labelled with another
    query.
    """
    made = make_queries(world, TARGET, default_queries(world)[TARGET])
    judged = queries.join(pairs.filter(pl.col("split") != "gold"), on="query_id", how="semi")
    # It is a text that is judged (A10): typed alike in the source language it is the same
    free = queries.join(judged.select("norm").unique(), on="norm", how="anti")
    known = set(free["query_id"])
    chosen = {query_id(TARGET, q.text): q for q in made.queries}
    shelves, index = Shelves(world.lexicon, world.target), LexicalIndex(world.target)
    rng, products = stream(world.seed, "study gold"), world.target.products
    rows: list[tuple[str, str, int]] = []
    for identifier, query in chosen.items():
        pools = shelves.pools(query, index)
        page = draw_page(pools, PAGE, len(products), rng)
        truth = shelves.grades(query, np.array(page, dtype=np.int64)).tolist()
        if identifier in known:
            found = zip(page, truth, strict=True)
            rows += [(identifier, products[p].product_id, g) for p, g in found]
    gold = pl.DataFrame(
        rows, {"query_id": pl.String, "product_id": pl.String, "grade": pl.Int8}, orient="row"
    )
    gold = gold.with_columns(
        pair_ids(gold["query_id"], gold["product_id"]),
        locale=pl.lit(TARGET), split=pl.lit("gold"), raters=pl.lit(1), agree=pl.lit(1),
    )  # fmt: skip
    shape = [pl.col(c).cast(t) for c, t in PAIRS.items()]
    return pl.concat([pairs.filter(pl.col("split") != "gold"), gold.select(shape)])


def with_noise(pairs: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """Give a random ``share`` of the train pairs one of the two other grades, as likely."""
    rng = np.random.default_rng([seed, round(1000 * share)])
    grade = pairs["grade"].to_numpy().astype(np.int64)
    wrong = (rng.random(len(grade)) < share) & (pairs["split"] == "train").to_numpy()
    other = (grade + rng.integers(1, GRADES, len(grade))) % GRADES
    return pairs.with_columns(pl.Series("grade", np.where(wrong, other, grade), dtype=pl.Int8))


def with_votes(pairs: pl.DataFrame, share: float, seed: int, panel: int = 3) -> pl.DataFrame:
    """Return votes (VOTES) of raters who err in ``share`` of all cases: what ``with_noise`` says.

    Of a train pair there is one vote, its spoilt grade in ``pairs``. A ``panel`` of raters who err
    as often has rated every dev pair: that tells their confusion (A49), and no train label more
    than the others' losses know.
    """
    train = pairs.filter(split="train").select("pair_id", "locale", "grade", rater=pl.lit("one"))
    dev = pairs.filter(split="dev").with_columns(split=pl.lit("train"))
    raters = [
        with_noise(dev, share, seed + 1000 * number).with_columns(rater=pl.lit(f"panel {number}"))
        for number in range(1, panel + 1)
    ]
    columns = [pl.col(c).cast(t) for c, t in VOTES.items()]
    return pl.concat([frame.select(columns) for frame in (train, *raters)])


def thinned(
    pairs: pl.DataFrame, locale: str, keep: float, seed: int, split: str = "train"
) -> pl.DataFrame:
    """Keep the pairs of a random share ``keep`` of the queries of ``locale`` in ``split``."""
    own = (pl.col("split") == split) & (pl.col("locale") == locale)
    ids = pairs.filter(own)["query_id"].unique().sort()
    stay = ids.sample(round(keep * len(ids)), seed=seed).implode()
    return pairs.filter(~own | pl.col("query_id").is_in(stay))
