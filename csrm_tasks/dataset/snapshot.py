"""A snapshot: published days frozen into the training tables of one stage (A9, A10).

Stage 1 reads, of the target market, its catalogue and translations and nothing else: no function
that reads labels or behaviour is called with its locale. Everything is sorted and drawn by hash,
so the same days give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import polars as pl
from sqlalchemy.engine import Connection

from csrm_tasks.dataset import source
from csrm_tasks.dataset.brands import BrandDictionary, build_brands
from csrm_tasks.dataset.consensus import PAIR, consensus, current_votes, rater_name
from csrm_tasks.dataset.conversions import cvr_examples
from csrm_tasks.dataset.health import HealthCheck, check, refuse_failed
from csrm_tasks.dataset.offer import offered
from csrm_tasks.dataset.profiles import Seen, profiles, window_of
from csrm_tasks.dataset.propensity import behaviour_weights
from csrm_tasks.dataset.queries import DISTILLED, TYPED, build_queries, derived_queries
from csrm_tasks.dataset.raters import rater_report
from csrm_tasks.dataset.sides import known_sides, text_ids
from csrm_tasks.dataset.splits import assign_splits, frozen_gold, uniform
from csrm_tasks.markets import MarketConfig
from csrm_tasks.store.lake import Lake
from csrm_tasks.text import normalised, pair_ids, query_ids

TRANSLATIONS_DEV = 0.05  # share of translation pairs held out to watch the MT loss


@dataclass(frozen=True)
class Tables:
    """The seven tables of a snapshot; schemas in :mod:`csrm_tasks.records`."""

    products: pl.DataFrame
    queries: pl.DataFrame
    pairs: pl.DataFrame
    votes: pl.DataFrame
    translations: pl.DataFrame
    conversions: pl.DataFrame
    behaviour: pl.DataFrame


@dataclass(frozen=True)
class JudgedPairs:
    """The judged pairs with their splits, and what became of the raters' grades on the way."""

    pairs: pl.DataFrame  # PAIRS and norm
    votes: pl.DataFrame  # VOTES
    dropped: int  # pairs of products that the snapshot does not have
    late_gold: int  # pairs that met gold's rule after a snapshot had held their query to learn from
    raters: dict[str, Any]  # see csrm_tasks.dataset.raters


@dataclass(frozen=True)
class Built:
    """Everything that a snapshot says."""

    tables: Tables
    judged: JudgedPairs
    days: tuple[str, ...]
    files: pl.DataFrame  # what was read, see csrm_tasks.dataset.source.files
    health: list[HealthCheck]
    traffic: pl.DataFrame  # see csrm_tasks.dataset.source.traffic


@dataclass(frozen=True)
class Observations:
    """What people said and did, of the locales that the stage may look at."""

    ratings: pl.DataFrame
    source_log: pl.DataFrame  # sums over all days
    target_log: pl.DataFrame  # each day of the behaviour window; empty in stage 1
    shown: pl.DataFrame  # of all these locales, each day of the weeks that are compared
    traffic: pl.DataFrame  # likewise: what the sums leave out


def build(
    connection: Connection,
    market: MarketConfig,
    stage: int,
    until: str,
    placed: Callable[[str], pl.DataFrame],
    lake: Lake,
) -> Built:
    """Build the tables of ``stage`` (1 or 2) from the days published up to ``until``.

    ``placed(day)`` gives the target's counts by position; stage 1 never asks for them. Raises
    :class:`DataError` when there is no such day, one holds files not yet published, or the week up
    to ``until`` is too unlike the last accepted one (:mod:`csrm_tasks.dataset.health`).
    """
    published = source.published_days(connection, market.market, until)
    source.check_days(connection, market.market, published)
    days = list(published)
    locales = [market.source_locale, *([market.target_locale] if stage == 2 else [])]
    files = source.files(connection, market.market, days, locales)
    versions = source.product_versions(connection, market.market, days)
    translations = source.translations(connection, market.market, days)
    evidence = _evidence(connection, market, locales, until, days)
    seen = Seen(files, evidence.ratings, versions, evidence.shown, evidence.traffic)
    health = check(profiles(seen, days, until), _both(market), market.health)
    refuse_failed(health, market.market, until)
    latest = source.latest_products(versions)
    products = offered(connection, lake, market.market, days, latest).drop("deleted")
    brands = _brands(market, products, translations)
    sides = known_sides(connection, market.market)
    judged = _judged(evidence.ratings, products, market, sides)
    log = pl.concat([evidence.source_log, evidence.target_log.drop("day")])
    typed = _typed(evidence.ratings, log, translations, products, brands, market)
    impressions = log.group_by("query_id").agg(pl.col("impressions").sum())
    tables = Tables(
        products=products,
        queries=build_queries(typed, impressions, brands),
        pairs=judged.pairs,
        votes=judged.votes,
        translations=_split_translations(translations, market.seed),
        conversions=_conversions(log, judged.pairs, products, market),
        behaviour=behaviour_weights(evidence.target_log, placed),
    )
    return Built(tables, judged, tuple(days), files, health, evidence.traffic)


def _both(market: MarketConfig) -> tuple[str, str]:
    return (market.source_locale, market.target_locale)


def _evidence(
    connection: Connection,
    market: MarketConfig,
    locales: Sequence[str],
    until: str,
    days: Sequence[str],
) -> Observations:
    """Read what ``locales`` say; of the target's log the behaviour window."""
    own, target = market.market, market.target_locale
    ratings = source.ratings(connection, own, days, locales)
    first = date.fromisoformat(until) - timedelta(days=market.snapshot.behaviour_days - 1)
    within = [d for d in days if d >= first.isoformat() and target in locales]
    compared = pl.DataFrame({"day": days}).filter(window_of(until).is_not_null())["day"].to_list()
    return Observations(
        ratings=_with_query_id(ratings),
        source_log=source.summed(connection, own, days, market.source_locale),
        target_log=source.aggregates(connection, own, within, target),
        shown=pl.concat(source.shown(connection, own, compared, x) for x in locales),
        traffic=source.traffic(connection, own, compared, locales),
    )


def _brands(
    market: MarketConfig, products: pl.DataFrame, translations: pl.DataFrame
) -> dict[str, BrandDictionary]:
    """One dictionary per locale; a translated brand is another form of the same brand."""
    named = translations.filter(pl.col("kind") == "brand")
    there = list(zip(named["source_text"], named["target_text"], strict=True))
    back = [(target, origin) for origin, target in there]
    dictionaries = {}
    for locale, aliases in ((market.source_locale, back), (market.target_locale, there)):
        own = products.filter((pl.col("locale") == locale) & (pl.col("brand") != ""))["brand"]
        itself = [(partner, partner) for _, partner in aliases]
        dictionaries[locale] = build_brands(own, [*aliases, *itself])
    return dictionaries


def _judged(
    ratings: pl.DataFrame, products: pl.DataFrame, market: MarketConfig, sides: pl.DataFrame
) -> JudgedPairs:
    rules = market.snapshot
    held_out, learnt = ratings.filter(pl.col("held_out") == 1), ratings.filter(held_out=0)
    agreed = consensus(learnt, rules.consensus)
    norms = ratings.select("query_id", "norm").unique()
    texts = norms.with_columns(text_ids(norms["norm"]))
    held = texts.join(sides, on="text").select("norm", "side").unique()
    gold = frozen_gold(learnt, rules, market.target_locale, held, held_out)
    known = agreed.drop("tied").join(products, on=["locale", "product_id"], how="semi")
    frozen = gold.pairs.join(products, on=["locale", "product_id"], how="semi")
    named = known.join(norms, on="query_id")
    split = assign_splits(named, frozen, rules.dev_share, market.seed, held)
    ids = pair_ids(split["query_id"], split["product_id"])
    pairs = split.with_columns(ids).sort(PAIR)
    return JudgedPairs(
        pairs=pairs,
        votes=_votes(learnt, pairs),
        dropped=agreed.height - known.height,
        late_gold=gold.late,
        raters=rater_report(learnt, agreed),
    )


def _votes(ratings: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return what each rater says of the pairs that are not gold: VOTES, sorted."""
    open_ = pairs.filter(pl.col("split") != "gold").select(*PAIR, "pair_id")
    votes = current_votes(ratings).with_columns(rater_name()).join(open_, on=PAIR)
    return votes.select("pair_id", "locale", "rater", "grade").sort(pl.all())


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
    most, more = market.snapshot.derived_queries, market.snapshot.distilled_queries
    derived = derived_queries(titles.iter_rows(), brands[target], most + more)
    made = pl.DataFrame(derived, schema={"query": pl.String, "n": pl.Int64}, orient="row")
    made = made.with_columns(pl.lit(target).alias("locale"))
    translated = translations.filter(pl.col("kind") == "query").select(
        pl.col("target_text").alias("query"), pl.lit(1).alias("n")
    )
    asked = [
        (ratings.group_by("locale", "query").agg(pl.len().alias("n")), "label"),
        (log.group_by("locale", "query").agg(pl.col("impressions").sum().alias("n")), "log"),
        (translated.with_columns(pl.lit(target).alias("locale")), "translated"),
        (made.head(most), "derived"),
        (made.slice(most), DISTILLED),
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
    """CVR examples; queries of dev and gold are left out, they are looked at, not learnt from.

    Left out is a text, in both locales: shoppers of either may have typed it.
    """
    held_out = pairs.filter(pl.col("split") != "train")["norm"].unique().to_list()
    barred = pl.concat(
        query_ids(locale, pl.Series("query_id", held_out, dtype=pl.String)).to_frame()
        for locale in _both(market)
    )
    sums = (
        log.join(barred, on="query_id", how="anti")
        .join(products, on=["locale", "product_id"], how="semi")
        .group_by("locale", "query_id", "product_id")
        .agg(pl.col("clicks", "carts", "purchases", "skips").sum())
        .sort("locale", "query_id", "product_id")
    )
    catalogue = products.group_by("locale", maintain_order=True).agg("product_id")
    return cvr_examples(
        sums, dict(catalogue.iter_rows()), market.snapshot.cvr_negatives, market.seed
    )
