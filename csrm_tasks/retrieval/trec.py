"""Retrieval measured by ir_measures, and qrels and runs as TREC files for anybody's tools.

Relevance comes from labels (the grade) or from purchases (1 where a query's product was bought).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ir_measures
import polars as pl
from ir_measures import RR, Measure, R, nDCG

from csrm_tasks.records import Schema

QRELS: Schema = {"query_id": pl.String, "doc_id": pl.String, "relevance": pl.Int64}
RUN: Schema = {"query_id": pl.String, "doc_id": pl.String, "score": pl.Float64}
DEPTH = 100
MEASURES: Mapping[str, Measure] = {
    "recall_at_20": R @ 20,
    "recall_at_100": R @ DEPTH,
    "mrr_at_10": RR @ 10,
    "ndcg_at_10": nDCG @ 10,
}


def qrels_of_labels(pairs: pl.DataFrame, split: str) -> pl.DataFrame:
    """Return QRELS of a split's pairs (PAIRS); grade 1 and 2 count as relevant."""
    own = pairs.filter(pl.col("split") == split)
    return _sorted(own.rename({"product_id": "doc_id", "grade": "relevance"}))


def qrels_of_purchases(behaviour: pl.DataFrame) -> pl.DataFrame:
    """Return QRELS of bought pairs (BEHAVIOUR)."""
    bought = behaviour.filter(pl.col("purchases") > 0)
    return _sorted(bought.with_columns(relevance=pl.lit(1)).rename({"product_id": "doc_id"}))


def run_of(hits_of: Mapping[str, Sequence[tuple[str, float]]]) -> pl.DataFrame:
    """Return RUN of (product, score) lists, best first.

    Scores are made to fall strictly, as tools break ties each in their own way: by the rank.
    """
    rows = [
        (query, product, float(len(hits) - rank))
        for query, hits in sorted(hits_of.items())
        for rank, (product, _) in enumerate(hits)
    ]
    return pl.DataFrame(rows, RUN, orient="row")


def measure(qrels: pl.DataFrame, run: pl.DataFrame) -> dict[str, float] | None:
    """Return :data:`MEASURES` over the queries with a relevant product (None without any).

    A query that the run does not answer counts 0.
    """
    able = qrels.filter(pl.col("relevance") > 0)["query_id"].unique()
    if able.is_empty():
        return None
    judged = qrels.filter(pl.col("query_id").is_in(able.implode()))
    figures = ir_measures.calc_aggregate(
        list(MEASURES.values()),
        [ir_measures.Qrel(*row) for row in judged.iter_rows()],
        [ir_measures.ScoredDoc(*row) for row in run.iter_rows()],
    )
    return {name: float(figures[m]) for name, m in MEASURES.items()}


def write_qrels(qrels: pl.DataFrame, path: Path) -> None:
    """Write ``query 0 document relevance`` lines."""
    lines = (f"{q} 0 {d} {r}\n" for q, d, r in qrels.iter_rows())
    path.write_text("".join(lines), encoding="utf-8")


def write_run(run: pl.DataFrame, path: Path, tag: str) -> None:
    """Write ``query Q0 document rank score tag`` lines, ranks from 1."""
    ranked = run.with_columns(rank=pl.int_range(1, pl.len() + 1).over("query_id"))
    lines = (f"{q} Q0 {d} {rank} {s:g} {tag}\n" for q, d, s, rank in ranked.iter_rows())
    path.write_text("".join(lines), encoding="utf-8")


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    wanted = [pl.col(c).cast(t) for c, t in QRELS.items()]
    return frame.select(wanted).sort("query_id", "doc_id")
