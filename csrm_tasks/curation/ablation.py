"""What is kept of the options that change what the LLM learns from: dev decides (A41).

Leave one out: a short training with everything, and one without each option in turn, all from a
fresh adapter, by the same seeds and steps. An option is kept where the answers on dev with
everything are non-inferior to those without it, by a paired bootstrap over queries (A45). Two
options that only help together are both kept or both dropped by this; what is left after several
were dropped has not been tried as a whole. Gold is not read.

Dev also chooses the best state of each training, the round and the temperature: figures on dev of
what it has chosen are too good, which is why a release is judged on gold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.metrics import Floats, confusion_by_query, micro_f1
from csrm_tasks.evaluation.paired import Interval, difference, resample
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.launch import train_anew
from csrm_tasks.markets import MarketConfig
from csrm_tasks.options import ablation_steps

ENOUGH = 30  # dev queries below which a bootstrap over them says nothing
SEEDS_APART = 1000  # a training draws from some seeds next to its own
LABELS = 3


@dataclass(frozen=True)
class Decision:
    """What dev says of one option; ``delta``: micro-F1 with everything minus without it."""

    option: str
    delta: Interval
    by_seed: tuple[float, ...]
    kept: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return what reports show."""
        return {
            "option": self.option, "delta": self.delta.as_json(), "by_seed": list(self.by_seed),
            "kept": self.kept, "reason": self.reason,
        }  # fmt: skip


def short_training(
    market: MarketConfig, given: FinetuneInputs, repeat: int, work: Path
) -> tuple[Path, dict[str, Any]]:
    """Train by the ``repeat``-th seed; return the file of the answers on dev, and facts.

    A killed one goes on from its checkpoint below ``work``. Raises :class:`UnlearntError` where it
    has learnt nothing: a comparison with it would say nothing.
    """
    out = work / "model"
    llm = market.llm.model_copy(update={"steps": ablation_steps(market)})
    seed = market.seed + SEEDS_APART * repeat
    short = market.model_copy(update={"llm": llm, "seed": seed})
    given = replace(given, arm="ablation")
    facts = train_anew(short, given, out, work, "ablation", "; raise ablation.steps").facts
    kept = ("dev_micro_f1", "dev_log_loss", "dev_locale", "steps", "best_step", "train_pairs")
    return out / "dev_scores.parquet", {name: facts[name] for name in kept}


def decide(
    everything: Sequence[pl.DataFrame],
    others: Mapping[str, Sequence[pl.DataFrame]],
    margin: float,
) -> list[Decision]:
    """Return for each option of ``others`` whether it is kept.

    Each frame holds one training's answers on dev, pair_id, query_id, grade, p0, p1, p2; the k-th
    of a list is of the k-th seed. The interval (95 %, bootstrap) is over queries, with the seeds'
    answers summed up: it does not say what other seeds would have done, which ``by_seed`` hints
    at. Raises :class:`DataError` where trainings were not judged on the same dev pairs.
    """
    ours = [_counts(frame, everything[0]) for frame in everything]
    weights = resample(len(ours[0]))
    found = []
    for option, frames in others.items():
        theirs = [_counts(frame, everything[0]) for frame in frames]
        delta = difference(np.sum(ours, 0), np.sum(theirs, 0), micro_f1, weights)
        by_seed = tuple(
            float(micro_f1(a.sum(0)) - micro_f1(b.sum(0)))
            for a, b in zip(ours, theirs, strict=True)
        )
        kept, reason = _judged(delta, len(ours[0]), margin)
        found.append(Decision(option, delta, by_seed, kept, reason))
    return found


def _judged(delta: Interval, queries: int, margin: float) -> tuple[bool, str]:
    if queries < ENOUGH:
        return False, f"{queries} dev queries show nothing; {ENOUGH} are the least"
    if delta.lo > -margin:
        return True, f"dev shows it to be no worse by {margin:g} than doing without it"
    if delta.hi < 0:
        return False, "dev is worse with it than without it"
    return False, f"dev does not rule out that it is worse by {margin:g} than doing without it"


def _counts(frame: pl.DataFrame, first: pl.DataFrame) -> Floats:
    """Return the confusion counts of each dev query, (Q, 3, 3), queries in the order of ``first``.

    The predicted label is the most probable one, the earliest of equals, as in a training.
    """
    if not frame.select("pair_id", "grade").equals(first.select("pair_id", "grade")):
        raise DataError("runs of the ablation were not judged on the same dev pairs; run them anew")
    names = first["query_id"].unique(maintain_order=True)
    query = frame["query_id"].replace_strict(names, range(len(names)), return_dtype=pl.Int64)
    said = frame.select("p0", "p1", "p2").to_numpy().argmax(axis=1).astype(np.int64)
    truth = frame["grade"].cast(pl.Int64).to_numpy()
    return confusion_by_query(truth, said, query.to_numpy(), len(names), LABELS)
