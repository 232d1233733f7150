"""A snapshot: published days frozen into the training tables of one stage (A9, A10).

Stage 1 reads, of the target market, its catalogue and translations and nothing else: no function
that reads labels or behaviour is called with its locale. Of a language that is only judged in
(``evaluation_locales``) stage 2 reads labels as well, and keeps those that are gold. Everything is
sorted and drawn by hash, so the same days give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import polars as pl
from sqlalchemy.engine import Connection

from csrm_tasks.dataset import source
from csrm_tasks.dataset.brands import BrandDictionary, build_brands
from csrm_tasks.dataset.conversions import cvr_examples
from csrm_tasks.dataset.health import HealthCheck, check, refuse_failed
from csrm_tasks.dataset.judged import JudgedPairs, judged_pairs
from csrm_tasks.dataset.offer import offered
from csrm_tasks.dataset.profiles import Seen, profiles, window_of
from csrm_tasks.dataset.propensity import behaviour_weights
from csrm_tasks.dataset.queries import DISTILLED, TYPED, build_queries, derived_queries
from csrm_tasks.dataset.sides import known_sides
from csrm_tasks.dataset.splits import uniform
from csrm_tasks.dataset.tasks import (
    category_answers,
    check_classes,
    check_labelled,
    item_answers,
    task_pairs,
)
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections.tasks import Task
from csrm_tasks.store.lake import Lake
from csrm_tasks.text import normalised, query_ids

TRANSLATIONS_DEV = 0.05  # share of translation pairs held out to watch the MT loss


@dataclass(frozen=True)
class Tables:
    """The tables of a snapshot; schemas in :mod:`csrm_tasks.records`."""

    products: pl.DataFrame
    queries: pl.DataFrame
    pairs: pl.DataFrame
    votes: pl.DataFrame
    translations: pl.DataFrame
    conversions: pl.DataFrame
    behaviour: pl.DataFrame
    task_pairs: pl.DataFrame


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
    locales = market.learnt_locales(stage)
    judged_in = market.evaluation_locales if stage == 2 else ()
    files = source.files(connection, market.market, days, [*locales, *judged_in])
    versions = source.product_versions(connection, market.market, days)
    translations = directed(source.translations(connection, market.market, days), market)
    evidence = _evidence(connection, market, locales, judged_in, until, days)
    seen = Seen(files, evidence.ratings, versions, evidence.shown, evidence.traffic)
    health = check(profiles(seen, days, until), market.locales, market.health)
    refuse_failed(health, market.market, until)
    latest = source.latest_products(versions)
    products = offered(connection, lake, market.market, days, latest).drop("deleted")
    brands = brand_dictionaries(market, products, translations)
    sides = known_sides(connection, market.market)
    answers = _answers(connection, market, days, [*locales, *judged_in], evidence.ratings, products)
    check_labelled(_told_in(market), answers, locales, until)
    judged = judged_pairs(answers, products, market, sides)
    check_classes(judged.others, market.binary_tasks)
    log = pl.concat([evidence.source_log, evidence.target_log.drop("day")])
    asked = _asked(_all_asked(evidence.ratings, answers), judged, market)
    typed = _typed(asked, log, translations, products, brands, market)
    impressions = log.group_by("query_id").agg(pl.col("impressions").sum())
    tables = Tables(
        products=products,
        queries=build_queries(typed, impressions, brands),
        pairs=judged.pairs,
        votes=judged.votes,
        translations=_split_translations(translations, market.seed),
        conversions=_conversions(log, judged.sided, products, market),
        behaviour=behaviour_weights(evidence.target_log, placed),
        task_pairs=task_pairs(judged.others, {t: answers[t] for t in market.binary_tasks}),
    )
    return Built(tables, judged, tuple(days), files, health, evidence.traffic)


def directed(delivered: pl.DataFrame, market: MarketConfig) -> pl.DataFrame:
    """Return translations with ``source_locale`` and ``target_locale``, by ``locale``'s folder.

    What lies in a source's folder is from that language into the target; what lies in another's is
    from the first source into that one. The same pair out of two folders is one row.
    """
    is_source = pl.col("locale").is_in(market.source_locales)
    origin = pl.when(is_source).then("locale").otherwise(pl.lit(market.source_locales[0]))
    into = pl.when(is_source).then(pl.lit(market.target_locale)).otherwise("locale")
    named = delivered.with_columns(source_locale=origin, target_locale=into).drop("locale")
    return named.unique().sort(named.columns)


def _evidence(
    connection: Connection,
    market: MarketConfig,
    locales: Sequence[str],
    judged_in: Sequence[str],
    until: str,
    days: Sequence[str],
) -> Observations:
    """Read what ``locales`` say; of the target's log the behaviour window.

    Of ``judged_in`` ratings are read, and no behaviour.
    """
    own, target = market.market, market.target_locale
    ratings = source.ratings(connection, own, days, [*locales, *judged_in])
    first = date.fromisoformat(until) - timedelta(days=market.snapshot.behaviour_days - 1)
    within = [d for d in days if d >= first.isoformat() and target in locales]
    compared = pl.DataFrame({"day": days}).filter(window_of(until).is_not_null())["day"].to_list()
    return Observations(
        ratings=_with_query_id(ratings),
        source_log=pl.concat(
            source.summed(connection, own, days, x) for x in market.source_locales
        ),
        target_log=source.aggregates(connection, own, within, target),
        shown=pl.concat(source.shown(connection, own, compared, x) for x in locales),
        traffic=source.traffic(connection, own, compared, locales),
    )


def brand_dictionaries(
    market: MarketConfig, products: pl.DataFrame, translations: pl.DataFrame
) -> dict[str, BrandDictionary]:
    """One dictionary per locale; a translated brand is another form of the same brand."""
    texts = ("source_text", "target_text")
    named = translations.filter(pl.col("kind") == "brand")
    dictionaries = {}
    for locale in market.locales:
        there = named.filter(target_locale=locale).select(texts).rows()
        back = named.filter(source_locale=locale).select(texts[::-1]).rows()
        aliases = [*there, *back]
        own = products.filter((pl.col("locale") == locale) & (pl.col("brand") != ""))["brand"]
        itself = [(partner, partner) for _, partner in aliases]
        dictionaries[locale] = build_brands(own, [*aliases, *itself])
    return dictionaries


def _told_in(market: MarketConfig) -> tuple[Task, ...]:
    """Return the tasks whose labels have to be there; with relevance alone none has to."""
    return market.tasks if market.binary_tasks else ()


def _answers(
    connection: Connection,
    market: MarketConfig,
    days: Sequence[str],
    locales: Sequence[str],
    ratings: pl.DataFrame,
    products: pl.DataFrame,
) -> dict[Task, pl.DataFrame]:
    """Return what raters said by task; of relevance nothing where the market does not learn it."""
    answers: dict[Task, pl.DataFrame] = {
        "relevance": ratings if "relevance" in market.tasks else ratings.clear()
    }
    if "qc" in market.tasks:
        said = source.category_ratings(connection, market.market, days, locales)
        answers["qc"] = category_answers(_with_query_id(said))
    if "qi" in market.tasks:
        answers["qi"] = item_answers(ratings, products, market.snapshot.qi_substitute)
    return answers


def _with_query_id(ratings: pl.DataFrame) -> pl.DataFrame:
    frame = ratings.with_columns(normalised(ratings["query"]).alias("norm"))
    parts = frame.partition_by("locale", maintain_order=True)
    ids = [p.with_columns(query_ids(p["locale"][0], p["norm"]).alias("query_id")) for p in parts]
    return pl.concat([frame.clear().with_columns(pl.lit("").alias("query_id")), *ids])


def _all_asked(ratings: pl.DataFrame, answers: Mapping[Task, pl.DataFrame]) -> pl.DataFrame:
    """Return the queries that raters were asked about, in whichever task, a row for each answer."""
    columns = ["locale", "query_id", "query"]
    others = [said.select(columns) for task, said in answers.items() if task == "qc"]
    return pl.concat([ratings.select(columns), *others])  # those of qi are ratings


def _asked(ratings: pl.DataFrame, judged: JudgedPairs, market: MarketConfig) -> pl.DataFrame:
    """Return the ratings whose queries a snapshot holds: where nothing is learnt, those of gold."""
    judged_in = pl.col("locale").is_in(market.evaluation_locales)
    held = pl.concat([judged.pairs["query_id"], judged.others["query_id"]]).unique()
    return ratings.filter(~judged_in | pl.col("query_id").is_in(held.implode()))


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
    translated = translations.filter(kind="query", target_locale=target).select(
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

    Left out is a text, in every locale: shoppers of any may have typed it.
    """
    held_out = pairs.filter(pl.col("split") != "train")["norm"].unique().to_list()
    barred = pl.concat(
        query_ids(locale, pl.Series("query_id", held_out, dtype=pl.String)).to_frame()
        for locale in market.locales
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
