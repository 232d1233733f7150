"""One seed's market for the study of curation: labels of three languages, judged in two others.

The market ``multi`` is generated, taken in and frozen by the product's own steps, and its judged
pairs are then replaced by questions of qc and qi whose truth the generator knows (:mod:`.pages`)::

    train   ko-KR, en-US, de-DE   one rater; :data:`NOISE` of the labels are wrong, at random
    dev     :data:`DEV_SHARE` of their queries, and :data:`DEV_QUERIES` of zh-TW; two raters agree
    gold    every other query of zh-TW, and those of id-ID: languages without a train label

The market's words are those of :data:`GROUPS` leaf categories, a fifth of the lexicon: so few that
labels teach what they mean within minutes. What is asked about is in English (:mod:`.pages`), and
so are the catalogues.

The relevance labels are those of qi: exact for yes, irrelevant for no. So relevance, qc and qi are
learnt together, and the filter, which reads relevance labels, weighs qi's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.dataset.tables import table
from csrm_tasks.demo.curation.pages import (
    HARD_JUDGED,
    HARD_LEARNT,
    Asked,
    Questions,
    english_titles,
)
from csrm_tasks.demo.market.generate import MULTI_PRODUCTS, generate_multi, lexicon_of
from csrm_tasks.demo.market.landing import HISTORY_DAY, NIGHTS
from csrm_tasks.demo.market.translations import Direction, query_translations
from csrm_tasks.demo.market.world import World, make_multi_world, stream
from csrm_tasks.demo.study.data import SeedMarket, derive, freeze, ingest
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import PAIRS, PRODUCTS, TASK_PAIRS, TRANSLATIONS, Grade
from csrm_tasks.settings import load_settings
from csrm_tasks.steps.code_digest import closure_of
from csrm_tasks.text import pair_ids

GROUPS = 12
NOISE = 0.15  # of the train labels
DEV_SHARE = 0.15  # of the queries of each source language
DEV_QUERIES = 150  # of the target, whose languages have no train labels, as in the competition
TRUTH = {**TASK_PAIRS, "yes": pl.Boolean, "hard": pl.Boolean}


@dataclass(frozen=True)
class CurationMarket:
    """A seed's market, and what the generator knows of its labels."""

    seed: SeedMarket
    truth: pl.DataFrame  # TRUTH: the pairs as they were labelled, and what is true


def curation_market(
    base: MarketConfig, home: Path, seed: int, products: int = MULTI_PRODUCTS
) -> CurationMarket:
    """Generate, take in and freeze the market of ``seed`` below ``home``; again, a no-op."""
    market = base.model_copy(update={"seed": seed})
    found = load_settings({"CSRM_HOME": str(home / f"seed{seed}")})
    settings = replace(found, mlflow_uri=f"sqlite:///{home / 'mlflow.db'}")
    generate_multi(settings.landing, market.market, products, seed, GROUPS)
    for day in (HISTORY_DAY, *NIGHTS):
        ingest(market, settings, day)
    whole = freeze(market, settings, 2, NIGHTS[-1])
    made = SeedMarket(market, settings, whole, whole)
    queries, goods, known = (
        table(made.store.open(whole).path, n) for n in ("queries", "products", "translations")
    )
    world = make_multi_world(lexicon_of(GROUPS), products, seed)
    truth = judged(world, market, queries)
    others = {
        "task_pairs": truth.select(list(TASK_PAIRS)),
        "products": in_english(world, goods),
        "translations": translated(world, market, known),
    }
    code = [closure_of(f).digest() for f in (judged, in_english, translated)]
    ref = derive(made, whole, relevance_of(truth), {"curation": code, "noise": NOISE}, others)
    return CurationMarket(replace(made, stage1=ref, stage2=ref), truth)


def judged(world: World, market: MarketConfig, queries: pl.DataFrame) -> pl.DataFrame:
    """Return TRUTH: every question of the queries that the snapshot knows, as it was labelled.

    A text is on one side in all languages (A10): gold before dev before train.
    """
    rows = [
        (*asked, locale, split)
        for locale in market.locales
        for split, asked in _split(world, market, locale, set(queries["query_id"]))
    ]
    columns = [*Asked._fields, "locale", "split"]
    frame = pl.DataFrame(rows, columns, orient="row").unique(
        ["task", "query_id", "product_id"], keep="first", maintain_order=True
    )
    rank = pl.col("split").replace_strict({"gold": 0, "dev": 1, "train": 2}, return_dtype=pl.Int8)
    frame = frame.filter(rank == rank.min().over("norm")).sort("task", "query_id", "product_id")
    rng = stream(world.seed, "curation noise")
    wrong = (rng.random(frame.height) < NOISE) & (frame["split"] == "train").to_numpy()
    said = np.where(wrong, ~frame["yes"].to_numpy(), frame["yes"].to_numpy())
    raters = pl.when(pl.col("split") == "train").then(1).otherwise(2)
    frame = frame.with_columns(
        pair_ids(frame["query_id"], frame["product_id"]),
        pl.Series("grade", said).cast(pl.Int8), raters=raters, agree=raters,
    )  # fmt: skip
    return frame.select(pl.col(c).cast(t) for c, t in TRUTH.items())


def _split(
    world: World, market: MarketConfig, locale: str, known: set[str]
) -> Iterator[tuple[str, Asked]]:
    questions = Questions(world, locale)
    asked = [q for q in questions.queries if q in known]
    order = stream(world.seed, "curation split", locale).permutation(len(asked)).tolist()
    sources, rest = locale in market.source_locales, "gold"
    dev, hard = DEV_QUERIES, HARD_JUDGED
    if sources:
        rest, dev, hard = "train", round(DEV_SHARE * len(asked)), HARD_LEARNT
    if locale in market.evaluation_locales:
        dev = 0
    for place, i in enumerate(order):
        split = "dev" if place < dev else rest
        yield from ((split, one) for one in questions.of(asked[i], hard))


def in_english(world: World, products: pl.DataFrame) -> pl.DataFrame:
    """Return PRODUCTS with the English title, brand and category of each, and no description."""
    lexicon, rows = world.lexicon, []
    for locale in sorted(products["locale"].unique()):
        titles = english_titles(world, locale)
        for one in world.catalogue(locale).products:
            group = lexicon.groups[lexicon.types[one.spec.type].group]
            brand = lexicon.brands[one.spec.brand].words.en
            rows.append((one.product_id, locale, titles[one.product_id], brand, group.path.en, ""))
    english = pl.DataFrame(rows, dict.fromkeys(PRODUCTS, pl.String), orient="row")
    keys = ["product_id", "locale"]
    return products.select(keys).join(english, on=keys, maintain_order="left")


def translated(world: World, market: MarketConfig, known: pl.DataFrame) -> pl.DataFrame:
    """Return ``known`` and every plain query of a source in each language without labels.

    As good as a translator that knows the market's words; misspelt queries and synonyms stay as
    they are.
    """
    rows = [
        (one.kind, one.source_text, one.target_text, "train", origin, into)
        for origin in market.source_locales
        for into in (market.target_locale, *market.evaluation_locales)
        for one in query_translations(world, Direction(origin, into))
    ]
    more = pl.DataFrame(rows, TRANSLATIONS, orient="row").unique().sort(pl.all())
    keys = [c for c in TRANSLATIONS if c != "split"]
    return pl.concat([known.select(list(TRANSLATIONS)), more.join(known, on=keys, how="anti")])


def relevance_of(truth: pl.DataFrame) -> pl.DataFrame:
    """Return the labels of qi as relevance labels (PAIRS): exact or irrelevant."""
    grade = pl.when(pl.col("grade") == 1).then(int(Grade.EXACT)).otherwise(int(Grade.IRRELEVANT))
    pairs = truth.filter(task="qi").with_columns(grade.alias("grade"))
    return pairs.select(pl.col(c).cast(t) for c, t in PAIRS.items())
