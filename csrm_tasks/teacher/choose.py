"""The teacher on dev: fit a stack, judge it (A50), and hold what teaches against the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csrm_tasks.evaluation.gold import Gold
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.teacher.evidence import LLM
from csrm_tasks.teacher.judge import judge_stack
from csrm_tasks.teacher.stack import (
    Stack,
    Variants,
    choose,
    cross_fitted,
    fit,
    folds_of,
    unfit,
)


@dataclass(frozen=True)
class Stacked:
    """What came of stacking: ``stack`` is None where none is kept."""

    stack: Stack | None
    said: Floats  # (N, 3), cross-fitted where a stack is kept, else the LLM's
    facts: dict[str, Any]  # in words, and with figures where one could be fitted


def stack_on(dev: Gold, llm: Floats, read: Variants) -> Stacked:
    """Fit a stack on dev's pairs and judge it.

    ``llm`` (N, 3): what the LLM says by itself; ``read``: features of all variants, the LLM's own
    among them. Variant and strength are chosen on folds of queries, the kept stack's on all.
    """
    fold = folds_of(dev.frame["query_id"].to_list())
    reason = unfit(dev.grade, fold)
    if reason is not None:
        return Stacked(None, llm, {"stack": f"none: {reason}"})
    lexical = {name: features for name, features in read.items() if name != LLM}
    said = cross_fitted(lexical, dev.grade, fold)
    judged = judge_stack(dev, llm, cross_fitted({LLM: read[LLM]}, dev.grade, fold), said)
    variant, strength = choose(lexical, dev.grade, fold)
    facts = {"variant": variant, "strength": strength, **judged.facts}
    if not judged.kept:
        return Stacked(None, llm, {"stack": f"dropped: {judged.reason}", **facts})
    stack = fit(variant, lexical[variant], dev.grade, strength)
    return Stacked(stack, said, {"stack": f"kept: {judged.reason}", **facts})
