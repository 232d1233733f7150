"""The frozen gold set (decided in ``dataset/splits.py``), its slices, and models' answers to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from csrm_tasks.artifacts import json_digest
from csrm_tasks.errors import DataError
from csrm_tasks.evaluation import metrics
from csrm_tasks.evaluation.metrics import Floats, Ints, confusion_by_query
from csrm_tasks.evaluation.slices import Mask, slices_of


@dataclass(frozen=True)
class Gold:
    """Judged pairs of the frozen test set (A10), sorted by query.

    ``frame`` has pair_id, query_id, product_id, grade; ``query`` (N,) indexes ``query_ids``.
    ``slices`` maps a name to a mask (N,) over pairs.
    """

    frame: pl.DataFrame
    query: Ints
    grade: Ints
    query_ids: tuple[str, ...]
    slices: Mapping[str, Mask] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Number of judged pairs."""
        return self.frame.height

    @property
    def queries(self) -> int:
        """Number of judged queries."""
        return len(self.query_ids)

    @property
    def digest(self) -> str:
        """Digest of pair ids and grades: which test set a figure was measured on (A10)."""
        return json_digest([self.frame["pair_id"].to_list(), self.grade.tolist()])


def gold_set(pairs: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame) -> Gold:
    """Return the gold pairs of a snapshot (schemas PAIRS, QUERIES, PRODUCTS) with their slices."""
    wanted = ["pair_id", "query_id", "product_id", "locale", "grade"]
    judged = judgeable(pairs, queries, products).filter(pl.col("split") == "gold")
    frame = judged.select(wanted).sort("query_id", "pair_id")
    return judged_set(frame, slices_of(frame, pairs, queries, products))


def judged_set(frame: pl.DataFrame, slices: Mapping[str, Mask] | None = None) -> Gold:
    """Return judged pairs (pair_id, query_id, grade, …) in their order, as models are judged on."""
    ids = tuple(frame["query_id"].unique(maintain_order=True).to_list())
    index = dict(zip(ids, range(len(ids)), strict=True))
    query = np.array([index[q] for q in frame["query_id"].to_list()], dtype=np.int64)
    return Gold(frame, query, frame["grade"].cast(pl.Int64).to_numpy(), ids, slices or {})


def judgeable(pairs: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs whose query and product the snapshot knows; no model can read the others."""
    known = pairs.join(queries, on="query_id", how="semi", maintain_order="left")
    return known.join(products, on=["product_id", "locale"], how="semi", maintain_order="left")


@dataclass(frozen=True)
class Predictions:
    """What one model said about every gold pair, in the order of :class:`Gold`."""

    name: str
    # llm | towers | served (towers, and the second stage's order) | baseline; control, teacher:
    # beside the others, never released
    kind: str
    source: str  # reference of the model that was scored
    em: Mask  # (N,) decided exact
    defect: Mask  # (N,) decided irrelevant
    score: Floats  # (N,) what a search would rank by
    predicted: Ints | None = None  # (N,) most probable grade; towers have none
    probabilities: Floats | None = None  # (N, 3)
    seen: Mask | None = None  # (N,) pairs of queries that towers were taught as traffic (A10)


def seen_queries(answers: Predictions, gold: Gold) -> Mask:
    """Return (Q,) whether the model was taught the query before it was gold."""
    seen: Mask = np.zeros(gold.queries, bool)
    if answers.seen is not None:
        seen[gold.query[answers.seen]] = True
    return seen


def llm_answers(name: str, kind: str, source: str, scored: pl.DataFrame, gold: Gold) -> Predictions:
    """Align three-class probabilities (pair_id, p0, p1, p2) with the gold set."""
    aligned = _align(name, scored, ["p0", "p1", "p2"], gold)
    p = aligned.select(pl.col("p0", "p1", "p2").cast(pl.Float64)).to_numpy().reshape(-1, 3)
    predicted = p.argmax(1)
    expected = p @ np.array([0.0, 1.0, 2.0])
    return Predictions(name, kind, source, predicted == 2, predicted == 0, expected, predicted, p)


def tower_answers(
    name: str, source: str, scored: pl.DataFrame, gold: Gold, kind: str = "towers"
) -> Predictions:
    """Align tower decisions (pair_id, em, defect, em_pred, defect_pred) with the gold set.

    Ranked as online: what the defect head filters comes last, the rest by the EM head; or by a
    column ``order``, where there is one: as the second stage leaves it. A column ``seen`` tells
    which queries they were taught as traffic.
    """
    columns = ["em", "defect", "em_pred", "defect_pred"]
    told = [c for c in scored.columns if c in ("seen", "order")]
    aligned = _align(name, scored, [*columns, *told], gold)
    seen = aligned["seen"].to_numpy().astype(bool) if "seen" in aligned.columns else None
    defect = aligned["defect_pred"].to_numpy().astype(bool)
    em = aligned["em"].cast(pl.Float64).to_numpy()
    score = aligned["order"].to_numpy() if "order" in told else em - 2.0 * defect
    return Predictions(
        name, kind, source, aligned["em_pred"].to_numpy().astype(bool), defect, score, seen=seen
    )


def _align(name: str, scored: pl.DataFrame, columns: list[str], gold: Gold) -> pl.DataFrame:
    """Return ``columns`` for every gold pair in order; raises :class:`DataError` for any gap."""
    missing = [c for c in ("pair_id", *columns) if c not in scored.columns]
    if missing:
        raise DataError(f"scores of {name!r} have no column {missing[0]!r}")
    one = scored.select("pair_id", *columns).unique("pair_id")
    aligned = gold.frame.join(one, on="pair_id", how="left", maintain_order="left").select(columns)
    numbers = aligned.select(pl.all().cast(pl.Float64))
    bad = numbers.select(n=pl.any_horizontal(~pl.all().is_finite().fill_null(False)))["n"]
    if bad.any():
        first = gold.frame["pair_id"][int(bad.arg_max() or 0)]
        raise DataError(
            f"{name!r} has no finite score for {bad.sum()} of {gold.pairs} gold pairs "
            f"(first {first}); score the gold split of this snapshot with it again"
        )
    return aligned


Counts = dict[str, Floats]  # measure family → confusion per query


def counts(answers: Predictions, gold: Gold, mask: Mask | None = None) -> Counts:
    """Return what every figure is a function of, per query, for the pairs of ``mask``.

    Confusions: em and defect (Q, 2, 2), relevance (Q, 3, 3) where known. Ranking of the judged
    products: em_at_1 and defect_at_5 (Q, 2) of hits and queries. Calibration (Q, bins, 3) where
    probabilities are known.
    """
    keep = np.ones(gold.pairs, bool) if mask is None else mask
    query, grade = gold.query[keep], gold.grade[keep]

    def table(truth: Ints, said: Ints, k: int) -> Floats:
        return confusion_by_query(truth, said, query, gold.queries, k)

    families = {
        "em": table((grade == 2).astype(np.int64), answers.em[keep].astype(np.int64), 2),
        "defect": table((grade == 0).astype(np.int64), answers.defect[keep].astype(np.int64), 2),
    }
    one = np.zeros(gold.queries)
    one[query] = 1.0  # a query without a pair in a slice is not of the slice
    hits = metrics.top_hits(query, answers.score[keep], grade, gold.queries)
    for name, hit in zip(("em_at_1", "defect_at_5"), hits, strict=True):
        families[name] = np.stack([hit * one, one], 1)
    if answers.predicted is not None:
        families["relevance"] = table(grade, answers.predicted[keep], 3)
    if answers.probabilities is not None:
        families["calibration"] = metrics.calibration_by_query(
            answers.probabilities[keep], grade, query, gold.queries
        )
    return families
