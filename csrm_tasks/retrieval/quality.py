"""How good retrieval is: recall of judged pairs, RQA accuracy (A26), and the threshold (A24)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from csrm_tasks.records import Schema
from csrm_tasks.retrieval.analyser import cut
from csrm_tasks.retrieval.rqa import Title

JUDGED: Schema = {"query_id": pl.String, "title": pl.String, "correct": pl.Boolean}
MIN_JUDGED = 30  # retrieved dev titles below which no threshold is chosen
COVERAGE = 0.9  # share of the queries with titles that must keep one

Retrieved = Mapping[str, Sequence[Title]]  # query_id → titles


@dataclass(frozen=True)
class Accuracy:
    """RQA accuracy: of ``judged`` retrieved titles, the share that is correct (None of none)."""

    value: float | None
    judged: int
    retrieved: int


def judged_titles(pairs: pl.DataFrame, products: pl.DataFrame, title_tokens: int) -> pl.DataFrame:
    """Turn graded pairs into the proxy's judged set: a title graded ≥ 1 is correct (A26).

    Products may share a (cut) title; then the mean of their judgements decides, half counts as
    correct.
    """
    cuts = [cut(t, title_tokens) for t in products["title"]]
    titled = products.select("product_id").with_columns(pl.Series("title", cuts, pl.String))
    return (
        pairs.join(titled, on="product_id")
        .group_by("query_id", "title")
        .agg(correct=(pl.col("grade") >= 1).mean() >= 0.5)
        .sort("query_id", "title")
        .select(list(JUDGED))
    )


def rqa_accuracy(retrieved: Retrieved, judged: pl.DataFrame) -> Accuracy:
    """Share of retrieved titles that a JUDGED frame calls correct; unjudged ones do not count.

    ``judged`` comes from raters, or from :func:`judged_titles` where there are none.
    """
    known = _lookup(judged)
    titles = [(q, t.title) for q, found in retrieved.items() for t in found]
    marks = [known[pair] for pair in titles if pair in known]
    value = sum(marks) / len(marks) if marks else None
    return Accuracy(value, len(marks), len(titles))


def choose_threshold(retrieved: Retrieved, judged: pl.DataFrame) -> float | None:
    """Return the cosine below which titles are dropped: the best accuracy on dev (A24).

    Candidates are the cosines of judged titles. A threshold counts only if :data:`COVERAGE` of the
    queries that have titles keep one and :data:`MIN_JUDGED` judged titles stay; the lowest of equal
    ones wins. None where dev judges too few titles to choose.
    """
    known = _lookup(judged)
    placed = [(q, t) for q, found in retrieved.items() for t in found if t.cosine == t.cosine]
    marked = [(t.cosine, known[q, t.title]) for q, t in placed if (q, t.title) in known]
    if len(marked) < MIN_JUDGED:
        return None
    cosine, correct = (np.array(x) for x in zip(*sorted(marked, reverse=True), strict=True))
    accuracy = np.cumsum(correct) / np.arange(1, len(correct) + 1)  # of keeping down to here
    usable = cosine <= _ceiling(placed)
    usable[: MIN_JUDGED - 1] = False
    usable[:-1] &= cosine[:-1] > cosine[1:]  # a threshold keeps all of equal cosine
    if not usable.any() or accuracy[usable].max() <= accuracy[-1]:
        return -1.0
    return float(cosine[usable & (accuracy == accuracy[usable].max())][-1])


def _ceiling(placed: Sequence[tuple[str, Title]]) -> float:
    """Return the highest threshold that leaves :data:`COVERAGE` of the queries with a title."""
    best: dict[str, float] = {}
    for query, title in placed:
        best[query] = max(title.cosine, best.get(query, -1.0))
    return sorted(best.values())[int((1.0 - COVERAGE) * len(best))]


def _lookup(judged: pl.DataFrame) -> dict[tuple[str, str], bool]:
    rows = judged.select("query_id", "title", "correct").iter_rows()
    return {(query, title): correct for query, title, correct in rows}


def recall_at(
    found: Mapping[str, Sequence[str]], relevant: Mapping[str, Sequence[str]]
) -> float | None:
    """Mean over the queries of ``relevant`` of the share of their products among ``found``.

    None when no query has a relevant product.
    """
    shares = [
        len(set(found.get(q, ())) & set(products)) / len(set(products))
        for q, products in relevant.items()
        if products
    ]
    return sum(shares) / len(shares) if shares else None


def relevant_products(pairs: pl.DataFrame) -> dict[str, list[str]]:
    """Return the products graded ≥ 1 of each query."""
    good = pairs.filter(pl.col("grade") >= 1).group_by("query_id").agg("product_id")
    return dict(good.sort("query_id").iter_rows())
