"""Section of what people are asked to judge next: unsure pairs, and the label budget."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from csrm_tasks.sections.base import Section, Unit, Whole


class Review(Section):
    """Pairs of the served traffic that the towers' teacher is not sure of, for raters (A60)."""

    pairs: Annotated[Whole, Unit("pairs")] = 0
    """Pairs on the week's sheet, those first of which a judgement is worth most; 0: no sheet."""
    alpha: Annotated[float, Field(gt=0.0, lt=0.5), Unit("share")] = 0.1
    """Share of each grade's pairs whose set of possible grades may lack it."""
    budget: Annotated[Whole, Unit("judgements")] = 500
    """Judgements for which the run says where they decide the gate's open claims soonest."""
