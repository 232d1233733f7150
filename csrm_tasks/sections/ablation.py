"""The section of the ablation of what changes the rows and labels that the LLM learns from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from csrm_tasks.sections.base import Section, Share, Steps, Unit


class Ablation(Section):
    """Options of what the LLM learns from that must earn their place on dev, run by run (A41)."""

    enabled: bool = False
    """Train short LLMs with all that is on of `llm.negatives`, `llm.augmentation`,
    `llm.misspelt_share`, `llm.label_smoothing`, `llm.noise_correction`, `llm.pivot`,
    `llm.mix_languages` and `filter`, and without each in turn; an option that dev says does not
    help is off in the run's trainings."""
    steps: Steps | None = None
    """Optimizer steps of each; null: half of `llm.steps`."""
    seeds: Annotated[int, Field(ge=2, le=10), Unit("seeds")] = 2
    """Seeds that each is trained with: how much they differ is part of every interval."""
    gain: Annotated[Share, Field(gt=0.0)] = 0.005
    """Gain on dev that an option has to bring: it is dropped where dev rules out that it does."""
    margin: Annotated[Share, Field(gt=0.0)] = 0.01
    """Loss on dev that must be ruled out for an option to be kept of which nobody has measured that
    it helps; the fewer dev queries, the wider it has to be."""
