"""A snapshot: published days frozen into the training tables of one stage (A9, A10).

Stage 1 reads, of the target market, its catalogue and translations and nothing else: no function
that reads labels or behaviour is called with its locale. Everything is sorted and drawn by hash,
so the same days give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import polars as pl
from sqlalchemy.engine import Connection

from csrm_tasks.dataset import source
from csrm_tasks.dataset.brands import BrandDictionary, build_brands
from csrm_tasks.dataset.consensus import consensus
from csrm_tasks.dataset.conversions import cvr_examples
from csrm_tasks.dataset.propensity import behaviour_weights
from csrm_tasks.dataset.queries import TYPED, build_queries, derived_queries
from csrm_tasks.dataset.splits import assign_splits, uniform
from csrm_tasks.dataset.text import normalised, pair_ids, query_ids
from csrm_tasks.markets import MarketConfig

TRANSLATIONS_DEV = 0.05  # share of translation pairs held out to watch the MT loss


@dataclass(frozen=True)
class Tables:
    """The six tables of a snapshot; schemas in :mod:`csrm_tasks.records`."""

    products: pl.DataFrame
    queries: pl.DataFrame
    pairs: pl.DataFrame
    translations: pl.DataFrame
    conversions: pl.DataFrame
    behaviour: pl.DataFrame
    dropped_pairs: int  # judged pairs of products that the snapshot does not have


@dataclass(frozen=True)
class Evidence:
    """What people said and did, of the locales that the stage may look at."""

    ratings: pl.DataFrame
    source_log: pl.DataFrame
    target_log: pl.DataFrame  # within the behaviour window; empty in stage 1


def build(connection: Connection, market: MarketConfig, stage: int, until: str) -> Tables:
    """Build the tables of ``stage`` (1 or 2) from the days published up to ``until``.

    Raises :class:`DataError` when there is no such day, or one holds files not yet published.
    """
    published = source.published_days(connection, market.market, until)
    source.check_days(connection, market.market, published)
    days = list(published)
    products = source.products(connection, market.market, days)
    translations = source.translations(connection, market.market, days)
    evidence = _evidence(connection, market, stage, until, days)
    brands = _brands(market, products, translations)
    pairs, dropped = _pairs(evidence.ratings, products, market)
    log = pl.concat([evidence.source_log, evidence.target_log])
    typed = _typed(evidence.ratings, log, translations, products, brands, market)
    impressions = log.group_by("query_id").agg(pl.col("impressions").sum())
    return Tables(
        products=products,
        queries=build_queries(typed, impressions, brands),
        pairs=pairs,
        translations=_split_translations(translations, market.seed),
        conversions=_conversions(log, pairs, products, market),
        behaviour=behaviour_weights(evidence.target_log),
        dropped_pairs=dropped,
    )


def _evidence(
    connection: Connection, market: MarketConfig, stage: int, until: str, days: Sequence[str]
) -> Evidence:
    target = [market.target_locale] if stage == 2 else []
    first = date.fromisoformat(until) - timedelta(days=market.snapshot.behaviour_days - 1)
    recent = [d for d in days if d >= first.isoformat()]
    source_log = source.aggregates(connection, market.market, days, market.source_locale)
    return Evidence(
        source.ratings(connection, market.market, days, [market.source_locale, *target]),
        source_log,
        source.aggregates(connection, market.market, recent, target[0]) if target
        else source_log.clear(),
    )  # fmt: skip


def _brands(
    market: MarketConfig, products: pl.DataFrame, translations: pl.DataFrame
) -> dict[str, BrandDictionary]:
    """One dictionary per locale; a translated brand is another form of the same brand."""
    named = translations.filter(pl.col("kind") == "brand")
    there = list(zip(named["source_text"], named["target_text"], strict=True))
    back = [(target, origin) for origin, target in there]
    found = {}
    for locale, aliases in ((market.source_locale, back), (market.target_locale, there)):
        own = products.filter((pl.col("locale") == locale) & (pl.col("brand") != ""))["brand"]
        itself = [(partner, partner) for _, partner in aliases]
        found[locale] = build_brands(own, [*aliases, *itself])
    return found


def _pairs(
    ratings: pl.DataFrame, products: pl.DataFrame, market: MarketConfig
) -> tuple[pl.DataFrame, int]:
    judged = consensus(_with_query_id(ratings))
    present = judged.join(products, on=["locale", "product_id"], how="semi")
    norms = _with_query_id(ratings).select("query_id", "norm").unique()
    split = assign_splits(
        present.join(norms, on="query_id"), market.snapshot, market.target_locale, market.seed
    )
    ids = pair_ids(split["query_id"], split["product_id"])
    pairs = split.with_columns(ids).sort("locale", "query_id", "product_id")
    return pairs, judged.height - present.height


def _with_query_id(ratings: pl.DataFrame) -> pl.DataFrame:
    frame = ratings.with_columns(normalised(ratings["query"]).alias("norm"))
    parts = frame.partition_by("locale", maintain_order=True)
    ids = [p.with_columns(query_ids(p["locale"][0], p["norm"]).alias("query_id")) for p in parts]
    return pl.concat([frame.clear().with_columns(pl.lit("").alias("query_id")), *ids])


def _typed(
    ratings: pl.DataFrame,
    log: pl.DataFrame,
    translations: pl.DataFrame,
    products: pl.DataFrame,
    brands: dict[str, BrandDictionary],
    market: MarketConfig,
) -> pl.DataFrame:
    """Every query as typed, with how often and where from."""
    target = market.target_locale
    titles = products.filter(pl.col("locale") == target).select("title", "category")
    derived = derived_queries(titles.iter_rows(), brands[target], market.snapshot.derived_queries)
    made = pl.DataFrame(derived, schema={"query": pl.String, "n": pl.Int64}, orient="row")
    translated = translations.filter(pl.col("kind") == "query").select(
        pl.col("target_text").alias("query"), pl.lit(1).alias("n")
    )
    asked = [
        (ratings.group_by("locale", "query").agg(pl.len().alias("n")), "label"),
        (log.group_by("locale", "query").agg(pl.col("impressions").sum().alias("n")), "log"),
        (translated.with_columns(pl.lit(target).alias("locale")), "translated"),
        (made.with_columns(pl.lit(target).alias("locale")), "derived"),
    ]
    return pl.concat(
        part.with_columns(pl.lit(origin).alias("origin")).select(
            pl.col(c).cast(t) for c, t in TYPED.items()
        )
        for part, origin in asked
    )


def _split_translations(translations: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Hold out by source text, so that one text's translations are on one side."""
    draws = [uniform(seed, "translation", text) for text in translations["source_text"]]
    split = ["dev" if u < TRANSLATIONS_DEV else "train" for u in draws]
    return translations.with_columns(pl.Series("split", split, dtype=pl.String))


def _conversions(
    log: pl.DataFrame, pairs: pl.DataFrame, products: pl.DataFrame, market: MarketConfig
) -> pl.DataFrame:
    """CVR examples; queries of dev and gold are left out, they are looked at, not learnt from."""
    held_out = pairs.filter(pl.col("split") != "train").select("query_id").unique()
    sums = (
        log.join(held_out, on="query_id", how="anti")
        .join(products, on=["locale", "product_id"], how="semi")
        .group_by("locale", "query_id", "product_id")
        .agg(pl.col("clicks", "carts", "purchases", "skips").sum())
        .sort("locale", "query_id", "product_id")
    )
    catalogue = products.group_by("locale", maintain_order=True).agg("product_id")
    return cvr_examples(
        sums, dict(catalogue.iter_rows()), market.snapshot.cvr_negatives, market.seed
    )
