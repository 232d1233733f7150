"""A small judged world: gold pairs of a few queries, and models of known quality."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from csrm_tasks.evaluation.gate import GateEvidence
from csrm_tasks.evaluation.gold import Gold, gold_set, llm_answers, tower_answers
from csrm_tasks.evaluation.metrics import Floats, Ints, confusion_by_query
from csrm_tasks.records import PAIRS, PRODUCTS, QUERIES

LOCALE = "zh-TW"

CHECK = {"locale": LOCALE, "series": "grades", "before": {"0": 0.5, "2": 0.5}, "now": {"0": 1.0}}
DATA = {  # as a snapshot's health.json and raters.json
    "health": {
        "verdict": "warn",
        "checks": [
            CHECK | {"measure": "grades", "distance": 0.21, "verdict": "warn", "limit": 0.1},
            CHECK | {"measure": "nulls", "series": "a<b>", "before": 0.01, "now": 0.02,
                     "distance": 0.01, "verdict": "ok", "limit": None},
            CHECK | {"measure": "nulls", "series": "c", "before": 0.0, "now": 0.0,
                     "distance": 0.0, "verdict": "ok", "limit": None},
            CHECK | {"measure": "new_queries", "series": "impressions", "before": None, "now": 0.3,
                     "distance": None, "verdict": "first", "limit": None},
        ],
        "traffic": [
            {"locale": "zh-TW", "day": "2026-01-04", "events": 9000, "searches": 500,
             "machines": 0, "machine_events": 0, "machine_searches": 0, "over_bound": 0},
            {"locale": "zh-TW", "day": "2026-01-05", "events": 12345, "searches": 600,
             "machines": 2, "machine_events": 3456, "machine_searches": 78, "over_bound": 9},
        ],
    },
    "raters": {
        LOCALE: {
            "alpha": 0.8125, "pairs": 300, "ratings": 2400, "ties": 2,
            "raters": [{"rater": "tw-x<0>", "ratings": 300, "accuracy": 0.9,
                        "confusion": [[90, 5, 5], [5, 90, 5], [5, 5, 90]]}],
        },
        "ko-KR": {"alpha": None, "pairs": 0, "ratings": 0, "ties": 0, "raters": []},
    },
}  # fmt: skip


def tables(
    queries: int = 40, per_query: int = 8, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return pairs, queries and products: half the queries gold, one category never trained on."""
    rng = np.random.default_rng(seed)
    products = pl.DataFrame(
        {
            "product_id": [f"p{i}" for i in range(60)],
            "locale": LOCALE,
            "title": [f"品牌{i % 7} 物品{i % 10} 紅色" for i in range(60)],
            "brand": [f"品牌{i % 7}" for i in range(60)],
            "category": [f"類別{i % 10}" for i in range(60)],
            "description": "",
        },
        schema=PRODUCTS,
    )
    query_rows = pl.DataFrame(
        {
            "query_id": [f"q{i}" for i in range(queries)],
            "locale": LOCALE,
            "query": [f"物品{i % 10}" for i in range(queries)],
            "norm": [f"物品{i % 10}" for i in range(queries)],
            "brand": ["品牌1" if i % 3 == 0 else "" for i in range(queries)],
            "origin": "label",
            "impressions": list(range(queries)),
        },
        schema=QUERIES,
    )
    rows = []
    for q in range(queries):
        for p in rng.choice(60, per_query, replace=False):
            split = "gold" if q % 2 else ("dev" if q % 8 == 0 else "train")
            if split != "gold" and p % 10 == 9:
                continue  # category 9 is never trained on
            same = int(p) % 10 == q % 10
            grade = 2 if same else int(rng.random() < 0.3)
            rows.append((f"q{q}-p{p}", f"q{q}", f"p{p}", LOCALE, grade, split, 8, 8))
    pairs = pl.DataFrame(rows, schema=PAIRS, orient="row")
    return pairs, query_rows, products


def gold(queries: int = 40, seed: int = 0) -> Gold:
    """Return the gold set of :func:`tables`."""
    return gold_set(*tables(queries, seed=seed))


def noisy_grades(grade: Ints, right: float, rng: np.random.Generator) -> Ints:
    """Return grades of which about the share ``right`` is right."""
    wrong = (grade + rng.integers(1, 3, len(grade))) % 3
    return np.where(rng.random(len(grade)) < right, grade, wrong)


def llm_frame(gold: Gold, right: float, seed: int = 0) -> pl.DataFrame:
    """Return a score file of an LLM that is right on about the share ``right``."""
    said = noisy_grades(gold.grade, right, np.random.default_rng(seed))
    p = np.full((gold.pairs, 3), 0.1)
    p[np.arange(gold.pairs), said] = 0.8
    return gold.frame.select("pair_id", "grade").with_columns(
        **{f"p{i}": pl.Series(p[:, i].astype(np.float32)) for i in range(3)}
    )


def tower_frame(gold: Gold, right: float, seed: int = 0) -> pl.DataFrame:
    """Return a score file of towers that are right on about the share ``right`` per head."""
    rng = np.random.default_rng(seed)

    def head(truth: Floats) -> Floats:
        said = np.where(rng.random(len(truth)) < right, truth, 1 - truth)
        return (0.25 + 0.5 * said).astype(np.float32)

    em, defect = head((gold.grade == 2) * 1.0), head((gold.grade == 0) * 1.0)
    return gold.frame.select("pair_id", "grade", "query_id", "product_id").with_columns(
        em=pl.Series(em), defect=pl.Series(defect),
        em_pred=pl.Series(em > 0.5), defect_pred=pl.Series(defect > 0.5),
    )  # fmt: skip


def models(gold: Gold) -> list[object]:
    """Return a baseline, two LLMs and two towers of rising quality."""
    return [
        llm_answers("tfidf", "baseline", "m/baselines/1", llm_frame(gold, 0.5, 1), gold),
        llm_answers("champion", "llm", "m/select_llm/old", llm_frame(gold, 0.6, 2), gold),
        llm_answers("final", "llm", "m/select_llm/new", llm_frame(gold, 0.9, 3), gold),
        tower_answers("champion_towers", "m/export_towers/old", tower_frame(gold, 0.7, 4), gold),
        tower_answers("towers", "m/export_towers/new", tower_frame(gold, 0.9, 5), gold),
    ]


def evidence_of(
    release: str, right: float, queries: int = 200, per_query: int = 10, seed: int = 0,
    slices: dict[str, Callable[[Ints], Ints]] | None = None,
) -> GateEvidence:  # fmt: skip
    """Return synthetic evidence; the gold grades depend on the sizes only, so sides compare."""
    truth_rng = np.random.default_rng(99)
    grade = truth_rng.integers(0, 3, queries * per_query)
    query = np.repeat(np.arange(queries), per_query)
    rng = np.random.default_rng(seed)
    said = noisy_grades(grade, right, rng)

    def head(of: int) -> Floats:
        truth = (grade == of).astype(np.int64)
        decided = np.where(rng.random(len(truth)) < right, truth, 1 - truth)
        return confusion_by_query(truth, decided, query, queries, 2)

    counts = {
        "relevance": confusion_by_query(grade, said, query, queries, 3),
        "em": head(2),
        "defect": head(0),
    }
    found = {}
    for name, change in (slices or {}).items():
        keep = query % 2 == 0
        found[name] = confusion_by_query(grade[keep], change(said[keep]), query[keep], queries, 3)
    return GateEvidence(release, tuple(f"q{i}" for i in range(queries)), counts, found)
