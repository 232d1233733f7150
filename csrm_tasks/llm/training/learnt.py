"""Whether a training has taught anything: its loss against the entropy of its labels.

A model that has found no more than how frequent each label is has a cross-entropy of at least the
entropy of these shares. Both are taken of one fixed sample of what was trained on, with the state
that is kept and dropout off: its shares are the best constant answer to just these samples, so no
constant, and no luck, is below it.

Where labels are learnt through their raters' confusion (A51), it is that loss on both sides. Where
targets are smoothed (A53) or soft, both count the uncertainty that is in the targets
themselves: no model has less than the mean of their own entropies. Where that is the entropy of
the shares, all targets are the same, and there was nothing to learn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from csrm_tasks.llm.corrected import best_answers, corrected_loss
from csrm_tasks.llm.data import LabelRows
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.scoring.predict import predict
from csrm_tasks.llm.training.train import TrainingError

SAMPLE = 500  # at the length of real prompts a minute or two of a small real base on one core
TINY = 1e-12
SAME = 1e-9  # nats between shares and single targets below which all targets are the same

Floats = npt.NDArray[np.float64]


class UnlearntError(TrainingError):
    """A training whose loss has not fallen below what a constant answer gives."""


def fit(
    model: Model, encoder: PromptEncoder, rows: LabelRows, labels: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Return what the model says of a fixed sample of what it was trained on.

    ``train_fit``: agreement with people's ``labels``, (N,), of the rows (A18); ``train_loss``: the
    cross-entropy of the rows' targets, smoothed or mixed as they were learnt, ``class_entropy``,
    :func:`class_entropy` of them, and ``target_entropy``, their own, the least loss there is; nats.
    """
    chosen = random.Random(0).sample(range(len(rows)), min(SAMPLE, len(rows)))
    probabilities = predict(
        model, encoder, rows.space,
        [rows.queries[i] for i in chosen], [rows.products[i] for i in chosen],
    ).astype(np.float64)  # fmt: skip
    facts = {
        "train_fit": float((probabilities.argmax(axis=1) == labels[chosen]).mean()),
        "fitted_on": rows.space.name,
    }
    if rows.corrected is not None:
        learnt = rows.corrected.take(chosen)
        return facts | {
            "train_loss": corrected_loss(probabilities, learnt),
            "class_entropy": corrected_loss(best_answers(learnt, alike=True), learnt),
            "target_entropy": corrected_loss(best_answers(learnt, alike=False), learnt),
        }
    targets = rows.targets[chosen].astype(np.float64)
    return facts | {
        "train_loss": cross_entropy(probabilities, targets),
        "class_entropy": class_entropy(targets),
        "target_entropy": cross_entropy(targets, targets),
    }


def cross_entropy(probabilities: Floats, targets: Floats) -> float:
    """Return the mean over samples of −Σₖ targetₖ·log pₖ; both (N, K)."""
    return float(-(targets * np.log(probabilities.clip(TINY))).sum(axis=1).mean())


def class_entropy(targets: Floats) -> float:
    """Return the entropy in nats of the mean of ``targets`` (N, K), one-hot or soft.

    It is the cross-entropy of the best answer that is the same for every sample.
    """
    shares = targets.mean(axis=0)
    return float(-(shares * np.log(shares.clip(TINY))).sum())


def unlearnt(facts: Mapping[str, Any]) -> str | None:
    """Say in a line that a training (its facts) has learnt nothing, and what to do; or None.

    Where all labels are the same there was nothing to learn, and nothing can be told.
    """
    loss, entropy = float(facts["train_loss"]), float(facts["class_entropy"])
    own = float(facts.get("target_entropy", 0.0))  # of one-hot targets
    if loss < entropy or entropy - own < SAME:
        return None
    return (
        f"the {facts['fitted_on']} loss on what was trained on is {loss:.4f} after "
        f"{facts['best_step']} steps, not below the {entropy:.4f} that the labels' shares alone "
        "give: nothing was learnt, and nothing is scored with it; raise llm.lr or llm.steps "
        "(llm.ranker_steps), set llm.warm_start, or choose another llm.base"
    )
