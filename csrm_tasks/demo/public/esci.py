"""``csrm study esci``: the ladder on the Shopping Queries Data Set, with its three tasks' metrics.

The files land as a market, and the training split's day alone is taken in; the whole catalogue is
of that day. The public test examples are read from the file, and choose nothing.

Our models know three grades. C is a class of its own in task 2, and is what the market takes it for
in training (``ingest.complement``): no model says it, and every C counts as an error there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.dataset.snapshot import brand_dictionaries
from csrm_tasks.dataset.tables import table
from csrm_tasks.demo.public import tables
from csrm_tasks.demo.public.ladder import left_to_the_week, train_rungs
from csrm_tasks.demo.public.published import ESCI_FIGURES
from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.baselines import baseline_scores
from csrm_tasks.evaluation.measures import share
from csrm_tasks.evaluation.metrics import confusion_by_query, micro_f1
from csrm_tasks.evaluation.paired import Interval, interval, resample
from csrm_tasks.layouts import esci
from csrm_tasks.layouts.languages import locale_of
from csrm_tasks.llm.prompt.prompts import RELEVANCE, QueryFields
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.markets import MarketConfig
from csrm_tasks.ranking import best_first, places
from csrm_tasks.records import TRANSLATIONS
from csrm_tasks.settings import Settings
from csrm_tasks.steps.night import take_in
from csrm_tasks.steps.running import run_step
from csrm_tasks.text import compose, normalised, pair_ids, query_ids

LETTERS = ("I", "C", "S", "E")  # a class is its place
SAID = np.array([0, 2, 3])  # the class of our grades irrelevant, substitute, exact
GAINS = np.array([0.0, 0.01, 0.1, 1.0])  # of task 1
SUBSTITUTE = 2
OF_GRADES = np.array([0.0, 0.1, 1.0])  # the gain that a model expects ranks products

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Judged:
    """Sums by query of the three tasks; rows are queries in the order of their identifiers."""

    ndcg: Floats  # (Q, 2): the query's nDCG, and whether it has one
    classes: Floats  # (Q, 4, 4)
    substitutes: Floats  # (Q, 2, 2)

    def figures(self) -> dict[str, Interval]:
        """Return ESCI_FIGURES with intervals by query."""
        weights = resample(len(self.ndcg))
        found = (
            interval(self.ndcg, share, weights),
            interval(self.classes, micro_f1, weights),
            interval(self.substitutes, micro_f1, weights),
        )
        return dict(zip(ESCI_FIGURES, found, strict=True))


def judge(rows: pl.DataFrame, probabilities: Floats) -> Judged:
    """Judge ``rows`` (query_id, letter) by ``probabilities`` (N, 3) of our grades.

    A query without any gain has no nDCG. Products of equal expected gain keep the file's order.
    """
    ids = rows["query_id"].unique().sort()
    query = (rows["query_id"].rank("dense").cast(pl.Int64) - 1).to_numpy()
    truth = rows["letter"].replace_strict(LETTERS, range(4), return_dtype=pl.Int64).to_numpy()
    said = SAID[probabilities.argmax(1)]
    reached = discounted(query, probabilities @ OF_GRADES, GAINS[truth], len(ids))
    ideal = discounted(query, GAINS[truth], GAINS[truth], len(ids))
    able = ideal > 0
    ndcg = np.stack([np.divide(reached, ideal, np.zeros(len(ids)), where=able), able], 1)
    one, other = ((x == SUBSTITUTE).astype(np.int64) for x in (truth, said))
    return Judged(
        ndcg,
        confusion_by_query(truth, said, query, len(ids), len(LETTERS)),
        confusion_by_query(one, other, query, len(ids), 2),
    )


def discounted(query: Ints, score: Floats, gain: Floats, queries: int) -> Floats:
    """Return (queries,): gains over log2(1 + rank), ranked by ``score`` within each query."""
    order = best_first(score, query)
    rank = places(query[order])
    weights = gain[order] / np.log2(rank + 2.0)
    return np.bincount(query[order], weights, queries).astype(np.float64)


def run_esci(
    folder: Path, version: str, market: MarketConfig, settings: Settings, day: str
) -> Iterator[str]:
    """Yield the report, part by part; the import has been done, ``day`` is the first split's."""
    market = market.model_copy(update={"tasks": ("relevance",)})
    take_in(market, settings, day)
    snapshot = run_step("snapshot", market, {}, {"stage": 2, "until": day}, settings)
    held = ArtifactStore(settings.artifacts, settings.cache).open(snapshot).path
    rows, left = test_rows(folder, version, market, table(held, "products"))
    learnt, later = (*market.source_locales, market.target_locale), left_to_the_week(market)
    yield (
        f"learnt: {', '.join(learnt)}; LLM: {market.llm.base}, {market.llm.steps} steps\n"
        f"test, {version}: {rows.height:,} labelled examples; left out, as the product or its "
        f"language did not land, or without label: {left:,}\n"
        + (f"left to csrm_retrain, which brings them: {', '.join(later)}\n" if later else "")
    )
    found = dict(_rungs(market, settings, snapshot, held, rows))
    yield from report(rows, found)
    yield tables.published_table("esci", ESCI_FIGURES)
    yield (
        "Task 2 has four classes and our models three: every C is an error there. KDD Cup's public "
        "test is another cut of the data than the released files' test.\n"
    )


def report(rows: pl.DataFrame, found: Mapping[str, Floats]) -> Iterator[str]:
    """Yield a table of the three figures over all rows, and one for each locale."""
    header = ("model", *ESCI_FIGURES)
    parts = [("all", rows["locale"] != "")]
    parts += [(x, rows["locale"] == x) for x in rows["locale"].unique().sort()]
    for name, mask in parts if len(parts) > 2 else parts[:1]:
        own, at = rows.filter(mask), mask.to_numpy()
        cells = [
            [model, *map(tables.points, judge(own, p[at]).figures().values())]
            for model, p in found.items()
        ]
        yield f"test, {name}: {own.height:,} examples\n\n{tables.table(header, cells)}"


def test_rows(
    folder: Path, version: str, market: MarketConfig, products: pl.DataFrame
) -> tuple[pl.DataFrame, int]:
    """Return the labelled test examples of the version whose products are there, and how many not.

    Columns: locale, query, norm, query_id, product_id, pair_id, letter, grade. Raises
    :class:`DataError` where none is left.
    """
    locales = locale_of(market.locales)
    letters = {name: name for name in LETTERS} | {k.upper(): v for k, v in esci.LETTERS.items()}
    given = pl.read_parquet(folder / esci.EXAMPLES, columns=list(esci.EXAMPLE_COLUMNS))
    given = given.filter(pl.col("split") == "test", pl.col(f"{version}_version") == 1)
    spoken = {k: locales.get(language) for k, language in esci.SPOKEN.items()}
    label = pl.col("esci_label").fill_null("").str.strip_chars().str.to_uppercase()
    rows = given.select(
        pl.col("product_locale").replace_strict(spoken, return_dtype=pl.String).alias("locale"),
        pl.col("query").map_elements(compose, return_dtype=pl.String),
        pl.col("product_id").cast(pl.String),
        label.replace_strict(letters, default=None, return_dtype=pl.String).alias("letter"),
    ).drop_nulls()
    rows = rows.join(products, on=["locale", "product_id"], how="semi", maintain_order="left")
    if rows.is_empty():
        raise DataError(f"{folder / esci.EXAMPLES}: no labelled test example of {version} is left")
    parts = []
    for (locale,), own in rows.group_by("locale", maintain_order=True):
        norm = normalised(own["query"])
        parts.append(own.with_columns(norm=norm, query_id=query_ids(str(locale), norm)))
    named = pl.concat(parts)
    named = named.with_columns(
        pair_ids(named["query_id"], named["product_id"]),
        grade=pl.col("letter").replace_strict({"E": 2, "S": 1, "C": 0, "I": 0}).cast(pl.Int8),
    ).unique("pair_id", keep="first", maintain_order=True)
    return named, given.height - named.height


def _rungs(
    market: MarketConfig, settings: Settings, snapshot: str, held: Path, rows: pl.DataFrame
) -> Iterator[tuple[str, Floats]]:
    """Yield each model's name and its probabilities (N, 3), aligned with ``rows``."""
    pairs, queries, products = (table(held, n) for n in ("pairs", "queries", "products"))
    asked = rows.select("query_id", "locale", "query", "norm").unique("query_id", keep="first")
    texts = pl.concat([queries.select("query_id", "norm"), asked.select("query_id", "norm")])
    for name, scored in baseline_scores(pairs, texts, products, rows).items():
        yield ("linear" if name == "tfidf" else name), scored.select("p0", "p1", "p2").to_numpy()
    named = _fields(market, products, asked)
    for name, llm in train_rungs(market, settings, snapshot):
        scorer = RelevanceScorer.load(llm.path)
        fields = scorer.fields(held)
        fields = replace(fields, queries=dict(fields.queries) | named)
        scored = scorer.score(RELEVANCE, fields, rows)
        yield name, scored.select("p0", "p1", "p2").to_numpy().astype(np.float64)


def _fields(
    market: MarketConfig, products: pl.DataFrame, asked: pl.DataFrame
) -> dict[str, QueryFields]:
    """Return the prompt fields of queries that the snapshot does not hold, with their brands."""
    brands = brand_dictionaries(market, products, pl.DataFrame(schema=TRANSLATIONS))
    found: dict[str, QueryFields] = {}
    for (locale,), own in asked.group_by("locale"):
        matched = brands[str(locale)].match(own["norm"])
        for query_id, query, brand in zip(own["query_id"], own["query"], matched, strict=True):
            found[query_id] = QueryFields(query, brand)
    return found
