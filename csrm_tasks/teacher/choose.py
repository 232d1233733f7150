"""The teacher on dev: fit a stack, judge it (A50), and hold what teaches against the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csrm_tasks.evaluation.gold import Gold
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.teacher.evidence import LLM, variants
from csrm_tasks.teacher.judge import judge_stack
from csrm_tasks.teacher.stack import Stack, choose, cross_fitted, fit, folds_of, unfit


@dataclass(frozen=True)
class Stacked:
    """What came of stacking: ``stack`` is None where none is kept."""

    stack: Stack | None
    said: Floats  # (N, 3), cross-fitted where a stack is kept, else the LLM's
    facts: dict[str, Any]  # in words, and with figures where one could be fitted


def stack_on(dev: Gold, llm: Floats, ngrams: Floats) -> Stacked:
    """Fit a stack on dev's pairs, ``llm`` and ``ngrams`` (N, 3) their probabilities, and judge it.

    Every variant and strength is chosen on folds of queries, the kept stack's on all of them.
    """
    fold = folds_of(dev.frame["query_id"].to_list())
    reason = unfit(dev.grade, fold)
    if reason is not None:
        return Stacked(None, llm, {"stack": f"none: {reason}"})
    read = variants(llm, ngrams)
    lexical = {name: features for name, features in read.items() if name != LLM}
    said = cross_fitted(lexical, dev.grade, fold)
    judged = judge_stack(dev, llm, cross_fitted({LLM: read[LLM]}, dev.grade, fold), said)
    variant, strength = choose(lexical, dev.grade, fold)
    facts = {"variant": variant, "strength": strength, **judged.facts}
    if not judged.kept:
        return Stacked(None, llm, {"stack": f"dropped: {judged.reason}", **facts})
    stack = fit(variant, lexical[variant], dev.grade, strength)
    return Stacked(stack, said, {"stack": f"kept: {judged.reason}", **facts})
