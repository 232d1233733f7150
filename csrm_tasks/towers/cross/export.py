"""The cross-encoder to ONNX, fp32 and int8, each judged on dev pairs before it may be used (A34).

Graph and int8 recipes are those of the towers. There is no vector whose cosine could be bounded:
the largest difference of a probability is, beside the decision flips.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csrm_tasks.errors import RefusedError
from csrm_tasks.towers.cross.model import CrossEncoder
from csrm_tasks.towers.export import MAX_FLIPS, decision_flips, write_about, write_onnx
from csrm_tasks.towers.quantise import RECIPES, quantise
from csrm_tasks.towers.serving.cross import ONNX, CrossRuntime
from csrm_tasks.towers.serving.runtime import Scores, Vectors

log = logging.getLogger("csrm")

MAX_DELTA = {"fp32": 1e-3, "int8": 0.1}  # of a probability; fp32 as of a merged LLM (A14)


@dataclass(frozen=True)
class ScoredPairs:
    """Dev pairs and what the trained model says of them."""

    queries: Sequence[str]  # (P,)
    titles: Sequence[str]
    scores: Vectors  # (P, 2): probability of exact match and of defect


@dataclass(frozen=True)
class CrossParity:
    """How far a variant is from the trained model on dev pairs."""

    admitted: bool
    delta: float  # largest difference of a probability
    flips: float  # share of pairs decided otherwise by at least one head
    pairs: int
    recipe: str = ""  # of an int8 variant


def export_cross(
    model: CrossEncoder, out: Path, about: Mapping[str, Any], judged: ScoredPairs
) -> dict[str, CrossParity]:
    """Write ONNX files and ``serving.json`` into ``out``, where ``tokenizer.json`` already lies.

    ``about`` is what :class:`CrossRuntime` reads, without ``serve`` and ``variants``. Raises
    :class:`RefusedError` when fp32 is outside the bounds; an int8 variant that is, is left out.
    """
    write_onnx(model, out / ONNX["fp32"], "logits")
    write_about(out, {**about, "serve": "fp32"})
    checked = {"fp32": _judge(out, "fp32", "", judged)}
    if not checked["fp32"].admitted:
        raise RefusedError(f"export of the cross-encoder refused: {_reason(checked['fp32'])}")
    checked["int8"] = _int8(out, judged)
    serve = "int8" if checked["int8"].admitted else "fp32"
    variants = {name: asdict(parity) for name, parity in checked.items()}
    write_about(out, {**about, "serve": serve, "variants": variants})
    return checked


def _int8(out: Path, judged: ScoredPairs) -> CrossParity:
    """Write the int8 variant by the first recipe within the bounds, or leave none behind."""
    target = out / ONNX["int8"]
    for recipe in RECIPES:
        quantise(out / ONNX["fp32"], target, recipe)
        parity = _judge(out, "int8", recipe, judged)
        if parity.admitted:
            return parity
    target.unlink()
    return parity


def _judge(out: Path, variant: str, recipe: str, judged: ScoredPairs) -> CrossParity:
    runtime = CrossRuntime(out, variant=variant)
    scores = runtime.score_texts(judged.queries, judged.titles)
    delta = float(np.abs(np.stack(scores, 1) - judged.scores).max())
    ours, truth = (runtime.decide(s) for s in (scores, Scores(*judged.scores.T)))
    flips = decision_flips(ours, truth)
    # NaN compares as False, so a broken graph is never admitted.
    admitted = delta <= MAX_DELTA[variant] and flips <= MAX_FLIPS
    parity = CrossParity(admitted, delta, flips, len(judged.scores), recipe)
    if not admitted:
        log.warning("cross-encoder: %s is refused: %s", variant, _reason(parity))
    return parity


def _reason(parity: CrossParity) -> str:
    return (
        f"{parity.recipe} on {parity.pairs} dev pairs: a probability differs by "
        f"{parity.delta:.4f}, decision flips {parity.flips:.2%} (at most {MAX_FLIPS:.1%})"
    )
