"""The chosen teacher's word on pairs that the LLM has scored."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from csrm_tasks.evaluation.baselines import CharacterModel
from csrm_tasks.llm.scoring.probabilities import PROBABILITIES, with_probabilities
from csrm_tasks.teacher.evidence import JudgedTexts, read_as
from csrm_tasks.teacher.stack import FILE, Stack


def stacked(teacher: Path, snapshot: Path, scored: pl.DataFrame) -> pl.DataFrame:
    """Return ``scored`` (query_id, product_id, locale, p0, p1, p2, …) with the stack's word.

    ``teacher``: folder of ``choose_teacher``; where it kept no stack, the LLM's word stands.
    """
    if not (teacher / FILE).exists():
        return scored
    stack, texts = Stack.read(teacher), JudgedTexts.of(snapshot)
    read = read_as(stack.variant, texts, CharacterModel.load(teacher), scored)
    return with_probabilities(scored.drop(PROBABILITIES), stack.probabilities(read))
