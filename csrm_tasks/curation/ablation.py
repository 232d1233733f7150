"""What is kept of the options that change what the LLM learns from: dev decides (A41).

Leave one out: a short training with everything, and one without each option in turn, all from a
fresh adapter, by the same seeds (adapter, dropout, order of what rows they share) and steps, of
which the last state is taken: a best one would be chosen on the dev that judges. An option is
judged by the tasks whose rows it changes, each in the share that it has in a batch: micro-F1 of
relevance, F1 of yes of qc and qi, at cross-fitted shares and thresholds (:mod:`.dev_answers`).
Negatives are there for the precision on wrong pairs that are near, and translations for the
languages without train labels; these are looked at where dev has them. The rule is that of
:mod:`.ablation_rule`.

Two options that only help together are both kept or both dropped by this; what is left after
several were dropped has not been tried as a whole. Gold is not read. Dev also chooses the best
state of each training, the round and the temperature: figures on dev of what it has chosen are too
good, which is why a release is judged on gold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.curation.ablation_rule import Claim, Decision, judged, limits, training_noise
from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.metrics import (
    Floats,
    Metric,
    confusion_by_query,
    micro_f1,
    positive_f1,
    ratio,
)
from csrm_tasks.evaluation.paired import paired_draws, resample
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.launch import train_anew
from csrm_tasks.markets import MarketConfig
from csrm_tasks.options import OPTIONS, ablation_steps
from csrm_tasks.sections import Ablation

ENOUGH = 30  # dev queries below which a bootstrap over them says nothing
SEEDS_APART = 1000  # a training draws from some seeds next to its own
LABELS = 3
F1, HARD = "F1", "precision on near wrong pairs"
Runs = Sequence[pl.DataFrame]  # answers on dev, seed by seed
Counts = Callable[[pl.DataFrame], Floats]  # additive, by query: (Q, ...)


@dataclass(frozen=True)
class Scope:
    """What an option is judged by."""

    weights: Mapping[str, float]  # task → its part of the figure
    locales: frozenset[str] | None = None  # those that it is for; None: all
    hard: bool = False  # by the precision on wrong pairs that are near, too
    expected: bool = False  # others have measured that it helps


def scopes(market: MarketConfig, missing: Sequence[str]) -> dict[str, Scope]:
    """Return what each option of :data:`OPTIONS` is judged by; ``missing``: languages (A36)."""
    shares = {"relevance": 1.0, "qc": market.llm.mixture.qc, "qi": market.llm.mixture.qi}
    return {
        o.key: Scope(
            {task: shares[task] for task in o.tasks_of(market)},
            frozenset(missing) if o.absent else None, o.hard, o.expected,
        ) for o in OPTIONS
    }  # fmt: skip


def short_training(
    market: MarketConfig, given: FinetuneInputs, repeat: int, work: Path
) -> tuple[Path, dict[str, Any]]:
    """Train by the ``repeat``-th seed; return the folder of the model, and facts.

    A killed one goes on from its checkpoint below ``work``. Raises :class:`UnlearntError` where it
    has learnt nothing: a comparison with it would say nothing.
    """
    out, steps = work / "model", ablation_steps(market)
    llm = market.llm.model_copy(update={"steps": steps, "evaluate_every": steps})
    seed = market.seed + SEEDS_APART * repeat
    short = market.model_copy(update={"llm": llm, "seed": seed})
    given = replace(given, arm="ablation")
    facts = train_anew(short, given, out, work, "ablation", "; raise ablation.steps").facts
    kept = ("dev_micro_f1", "dev_log_loss", "dev_locale", "steps", "train_pairs")
    return out, {name: facts[name] for name in kept} | {
        name: facts[name] for name in ("task_dev_mean_f1",) if name in facts
    }


def decide(
    everything: Runs, others: Mapping[str, Runs], by: Mapping[str, Scope], rules: Ablation
) -> tuple[list[Decision], float]:
    """Return for each option of ``others`` whether it is kept, and the noise of one seed.

    Each frame holds one training's ANSWERS with ``hard``; the k-th of a list is of the k-th seed.
    Raises :class:`DataError` where trainings were not judged on the same dev pairs.
    """
    for frame in (f for runs in (everything, *others.values()) for f in runs):
        _check_same(frame, everything[0])
    claims = {o: _claims(everything, runs, by[o]) for o, runs in others.items()}
    noise, freedom = training_noise([c for own in claims.values() for c in own.told])
    decided = []
    for option, own in claims.items():
        found = [limits(claim, noise, freedom) for claim in own.told]
        kept, reason = False, f"{own.queries} dev queries show nothing; {ENOUGH} are the least"
        if own.queries >= ENOUGH and own.aimed and all(claim.nothing for claim in own.told):
            reason = "the answers on dev are the same without it"
        elif own.queries >= ENOUGH:
            aim = found[-1] if own.aimed else None
            kept, reason = judged(found[0], aim, own.told[-1].measure, by[option].expected, rules)
        hard = found[1] if len(found) > 1 else None
        decided.append(Decision(option, found[0], own.told[0].by_seed, kept, reason, hard))
    return decided, noise


@dataclass(frozen=True)
class _Claims:
    told: list[Claim]  # F1, and what else the option is there for
    queries: int
    aimed: bool  # whether dev has the rows that it is there for


def _claims(everything: Runs, without: Runs, scope: Scope) -> _Claims:
    ours, theirs = ([_of_tasks(f, scope) for f in runs] for runs in (everything, without))
    aimed = True
    if scope.locales is not None:
        own = [[_spoken_in(f, scope.locales) for f in runs] for runs in (ours, theirs)]
        aimed = own[0][0]["query_id"].n_unique() >= ENOUGH
        ours, theirs = own if aimed else (ours, theirs)
    tasks = {task: scope.weights[task] for task in ours[0]["task"].unique(maintain_order=True)}
    told = [_claim(F1, ours, theirs, _confusions, _mean_f1(tasks))]
    if scope.hard and ours[0]["hard"].any():
        told.append(_claim(HARD, ours, theirs, _hard_answers, _precision))
    return _Claims(told, ours[0]["query_id"].n_unique(), aimed)


def _of_tasks(frame: pl.DataFrame, scope: Scope) -> pl.DataFrame:
    return frame.filter(pl.col("task").is_in([*scope.weights]))


def _spoken_in(frame: pl.DataFrame, locales: frozenset[str]) -> pl.DataFrame:
    return frame.filter(pl.col("locale").is_in(sorted(locales)))


def _claim(measure: str, ours: Runs, theirs: Runs, counts: Counts, figure: Metric) -> Claim:
    one, other = ([counts(frame) for frame in runs] for runs in (ours, theirs))
    a, b = np.sum(one, 0), np.sum(other, 0)  # (Q, ...)
    value, draws = paired_draws(a, b, figure, resample(len(a)))
    by_seed = tuple(
        float(figure(x.sum(0)) - figure(y.sum(0))) for x, y in zip(one, other, strict=True)
    )
    known = draws[np.isfinite(draws)]
    return Claim(measure, value, float(known.std()) if len(known) else 0.0, by_seed)


def _confusions(frame: pl.DataFrame) -> Floats:
    """Return (Q, T, 3, 3): of each query and task in order, truth by answer."""
    truth, said = (frame[c].cast(pl.Int64).to_numpy() for c in ("grade", "said"))
    query, queries = _numbered(frame)
    found = []
    for task in frame["task"].unique(maintain_order=True):
        own = (frame["task"] == task).to_numpy()
        found.append(confusion_by_query(truth[own], said[own], query[own], queries, LABELS))
    return np.stack(found, 1)


def _mean_f1(tasks: Mapping[str, float]) -> Metric:
    """Return the mean of the tasks' F1, weighted, of (..., T, 3, 3)."""
    weights = np.asarray([*tasks.values()]) / sum(tasks.values())

    def figure(counts: Floats) -> Floats:
        each = [
            micro_f1(counts[..., k, :, :]) if task == "relevance"
            else positive_f1(counts[..., k, :2, :2])
            for k, task in enumerate(tasks)
        ]  # fmt: skip
        return np.asarray(np.stack(each, -1) @ weights)

    return figure


def _hard_answers(frame: pl.DataFrame) -> Floats:
    """Return (Q, 2): of right pairs and near wrong ones those that are called right; of these hits.

    Of relevance a substitute is right as well: what negatives teach is what is irrelevant.
    """
    query, queries = _numbered(frame)
    right, said = ((frame[c] > 0).to_numpy() for c in ("grade", "said"))
    claimed = said & (right | frame["hard"].to_numpy())
    return np.stack([np.bincount(query[x], minlength=queries) for x in (claimed & right, claimed)],
                    1).astype(np.float64)  # fmt: skip


def _precision(counts: Floats) -> Floats:
    return ratio(counts[..., 0], counts[..., 1])


def _numbered(frame: pl.DataFrame) -> tuple[npt.NDArray[np.int64], int]:
    number = frame["query_id"].rank("dense").cast(pl.Int64).to_numpy() - 1
    return number, frame["query_id"].n_unique()


def _check_same(frame: pl.DataFrame, first: pl.DataFrame) -> None:
    keys = ["task", "pair_id", "grade"]
    if not frame.select(keys).equals(first.select(keys)):
        raise DataError("runs of the ablation were not judged on the same dev pairs; run them anew")
