"""A stack of the LLM's probabilities and lexical evidence: a multinomial logistic model (A50).

It is fitted on judged dev pairs, which neither the LLM nor the n-gram model has learnt. What it
says of a dev pair is said by a stack of other queries' pairs, with settings chosen on those alone
(nested folds), so dev may judge it. The L2 penalty is on standardised features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from csrm_tasks.blobs import text_digest
from csrm_tasks.evaluation.metrics import Floats, Ints
from csrm_tasks.json_files import write_json
from csrm_tasks.llm.scoring.calibration import apply_temperature, log_loss

GRADES = 3
FOLDS = 5  # of queries
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # inverse regularisation (C), tried on the folds
FILE = "stack.json"
Variants = Mapping[str, Floats]  # name → features of the same N pairs, (N, F)


@dataclass(frozen=True)
class Stack:
    """A fitted stack of F features."""

    variant: str  # which features it reads
    strength: float  # the C it was fitted with
    mean: list[float]  # (F,)
    scale: list[float]  # (F,); 1 for a feature that is constant
    weights: list[list[float]]  # (3, F) of standardised features
    bias: list[float]  # (3,)
    temperature: float = 1.0

    def probabilities(self, features: Floats) -> Floats:
        """Return the grades' probabilities, (N, 3), of pairs with ``features`` (N, F)."""
        standard = (features - np.array(self.mean)) / np.array(self.scale)
        logits = standard @ np.array(self.weights).T + np.array(self.bias)
        exponent = np.exp(logits - logits.max(1, keepdims=True))
        return apply_temperature(exponent / exponent.sum(1, keepdims=True), self.temperature)

    def write(self, folder: Path) -> None:
        """Write ``stack.json``."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Stack:
        """Read what :meth:`write` has written."""
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))

    def cooled(self, temperature: float) -> Stack:
        """Return the same stack with another temperature."""
        return replace(self, temperature=temperature)


def fit(variant: str, features: Floats, grade: Ints, strength: float) -> Stack:
    """Fit a stack to ``features`` (N, F) and ``grade`` (N,), in which every grade occurs."""
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    model = LogisticRegression(C=strength, max_iter=1000).fit((features - mean) / scale, grade)
    return Stack(
        variant, strength, mean.tolist(), scale.tolist(), model.coef_.tolist(),
        model.intercept_.tolist(),
    )  # fmt: skip


def folds_of(query_ids: list[str]) -> Ints:
    """Deal queries to folds 0 … FOLDS-1 as evenly as goes, by digest; (N,), one of each pair."""
    ordered = sorted(set(query_ids), key=lambda q: text_digest("teacher", q))
    fold = {q: i % FOLDS for i, q in enumerate(ordered)}
    return np.array([fold[q] for q in query_ids], dtype=np.int64)


def unfit(grade: Ints, fold: Ints) -> str | None:
    """Say why no stack can be fitted and judged on these pairs, or None where one can.

    Two folds are held out at a time, and what is left must have every grade.
    """
    found = len(np.unique(fold))
    if found < FOLDS:
        return f"{found} judged dev queries are too few for {FOLDS} folds"
    for out in combinations(range(FOLDS), 2):
        left = grade[~np.isin(fold, out)]
        missing = [k for k in range(GRADES) if not (left == k).any()]
        if missing:
            return f"too few dev pairs of grade {missing[0]}: a fold's rest has none"
    return None


def held_out(features: Floats, grade: Ints, fold: Ints, strength: float) -> Floats:
    """Return what stacks of the other folds say of each pair, (N, 3)."""
    said = np.empty((len(grade), GRADES))
    for k in np.unique(fold):
        out: npt.NDArray[np.bool_] = fold == k
        stack = fit("", features[~out], grade[~out], strength)
        said[out] = stack.probabilities(features[out])
    return said


def choose(variants: Variants, grade: Ints, fold: Ints) -> tuple[str, float]:
    """Return the variant and strength of the least log loss over folds; of equals the first."""
    settings = list(product(variants, STRENGTHS))
    losses = [log_loss(held_out(variants[v], grade, fold, c), grade) for v, c in settings]
    return settings[int(np.argmin(losses))]


def cross_fitted(variants: Variants, grade: Ints, fold: Ints) -> Floats:
    """Return what is said of each pair without its fold, which chose nothing either; (N, 3)."""
    said = np.empty((len(grade), GRADES))
    for k in range(FOLDS):
        out: npt.NDArray[np.bool_] = fold == k
        others = {name: features[~out] for name, features in variants.items()}
        variant, strength = choose(others, grade[~out], fold[~out])
        stack = fit(variant, others[variant], grade[~out], strength)
        said[out] = stack.probabilities(variants[variant][out])
    return said
