"""The answers that an evaluation judged, as tables: what the gate reads, and what replays it.

``gold.parquet``: pair_id, query_id, product_id, grade, slices. ``answers.parquet``: one row per
model and pair: name, kind, source, pair_id, predicted, em, defect, score, seen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.evaluation.gate import GateEvidence, TaughtBy
from csrm_tasks.evaluation.gold import Gold, Predictions, counts, judged_set, seen_queries

GOLD = "gold.parquet"
ANSWERS = "answers.parquet"


@dataclass(frozen=True)
class Second:
    """The second stage of a release: its reference, and whether dev has kept it."""

    ref: str | None = None
    kept: bool = False


@dataclass(frozen=True)
class Taught:
    """Who taught a release's towers (A50), and the reference by which a stack was judged."""

    by: TaughtBy
    ref: str | None = None


BY_LLM, NO_SECOND = Taught("llm"), Second()


def write(folder: Path, gold: Gold, models: Sequence[Predictions]) -> None:
    """Write both tables."""
    names = [[name for name, mask in gold.slices.items() if mask[row]] for row in range(gold.pairs)]
    kept = gold.frame.select("pair_id", "query_id", "product_id", "grade")
    kept.with_columns(slices=pl.Series(names, dtype=pl.List(pl.String))).write_parquet(
        folder / GOLD
    )
    empty = pl.DataFrame(schema=dict.fromkeys(("name", "kind", "source"), pl.String))
    frames = [_frame(m, gold) for m in models]
    (pl.concat(frames) if frames else empty).write_parquet(folder / ANSWERS)


def _frame(model: Predictions, gold: Gold) -> pl.DataFrame:
    predicted = [None] * gold.pairs if model.predicted is None else model.predicted
    return pl.DataFrame(
        {
            "name": [model.name] * gold.pairs,
            "kind": [model.kind] * gold.pairs,
            "source": [model.source] * gold.pairs,
            "pair_id": gold.frame["pair_id"],
            "predicted": pl.Series(predicted, dtype=pl.Int64),
            "em": model.em,
            "defect": model.defect,
            "score": model.score,
            "seen": np.zeros(gold.pairs, bool) if model.seen is None else model.seen,
        }
    )


def read(folder: Path) -> tuple[Gold, list[Predictions]]:
    """Read both tables back; models in the order of writing."""
    frame = pl.read_parquet(folder / GOLD)
    slices = {
        name: frame["slices"].list.contains(name).to_numpy()
        for name in frame["slices"].explode().drop_nulls().unique(maintain_order=True).to_list()
    }
    gold = judged_set(frame, slices)
    answers = pl.read_parquet(folder / ANSWERS)
    return gold, [_answers(f) for f in answers.partition_by("name", maintain_order=True)]


def _answers(f: pl.DataFrame) -> Predictions:
    towers = f["predicted"].null_count() == f.height
    return Predictions(
        f["name"][0],
        f["kind"][0],
        f["source"][0],
        f["em"].to_numpy(),
        f["defect"].to_numpy(),
        f["score"].to_numpy(),
        None if towers else f["predicted"].to_numpy(),
        seen=f["seen"].to_numpy() if "seen" in f.columns else None,  # older evaluations say nothing
    )


def evidence(
    folder: Path, release: str, llms: Collection[str], export: str | None,
    taught: Taught = BY_LLM, second: Second = NO_SECOND,
) -> GateEvidence:  # fmt: skip
    """Collect what is known of one release: its LLM by one of ``llms``, its towers by ``export``.

    Models are found by the reference of what was scored, never by name. What was not judged is
    absent from ``counts``, which the gate takes as INCONCLUSIVE. ``taught``: who taught the towers.
    """
    gold, models = read(folder)
    llm = next((m for m in models if m.kind == "llm" and m.source in llms), None)
    towers = next((m for m in models if m.kind == "towers" and m.source == export), None)
    order = second.ref or export
    served = next((m for m in models if m.kind == "served" and m.source == order), None)
    stack = next((m for m in models if m.kind == "teacher" and m.source == taught.ref), None)
    teacher = {"llm": llm, "stack": stack, "labels": None}[taught.by]
    families = {}
    slices = {}
    seen = None
    if llm is not None:
        families["relevance"] = counts(llm, gold)["relevance"]
        slices = {name: counts(llm, gold, mask)["relevance"] for name, mask in gold.slices.items()}
    if towers is not None:
        table = counts(towers, gold)
        families |= {family: table[family] for family in ("em", "defect", "em_at_1")}
        seen = seen_queries(towers, gold)
    return GateEvidence(
        release, gold.query_ids, families, slices,
        {m.name: counts(m, gold) for m in models if m.kind == "baseline"}, seen, taught.by,
        {} if teacher is None else counts(teacher, gold), second.kept,
        None if served is None else counts(served, gold)["em_at_1"],
    )  # fmt: skip
