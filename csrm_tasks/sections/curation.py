"""The section of the self-validation filter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from csrm_tasks.sections.base import Section, Share, Steps, Unit


class Filter(Section):
    """Self-validation filter of the train pairs (A39)."""

    action: Literal["remove", "down_weight", "review"] | None = None
    """What is done with a train pair whose label the out-of-fold model contradicts: left out,
    learnt with `weight`, or put on a sheet for raters and learnt as it is; null: no filter."""
    scorer: Literal["linear", "llm"] = "llm"
    """What judges the held-out folds: short trainings of the LLM, or a linear model of characters,
    which needs seconds and no GPU."""
    folds: Annotated[int, Field(ge=2, le=10), Unit("folds")] = 2
    """Parts of the queries, each judged by a model that has learnt from the others."""
    steps: Steps | None = None
    """Optimizer steps of a fold's LLM; null: of `llm.steps` the share of folds it learns from."""
    threshold: Annotated[float, Field(ge=0.5, lt=1.0), Unit("probability")] | None = None
    """Probability of another label above which a pair is flagged; null: chosen on dev pairs whose
    raters agree, and 0.8 where there are too few of them."""
    weight: Share = 0.3
    """Weight of a flagged pair's loss under `down_weight`."""
    max_share: Annotated[float, Field(gt=0.0, le=0.5), Unit("share")] = 0.1
    """Share of a label's pairs in a language above which the filter refuses to remove them."""
