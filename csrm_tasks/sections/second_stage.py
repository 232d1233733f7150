"""The section of the second stage, which re-ranks the top of a search."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from csrm_tasks.sections.base import Products, Section, Unit


class SecondStage(Section):
    """A cross-encoder that re-ranks the first products of `/rank` (docs/SERVING.md).

    It is trained beside the towers, served where dev says that it orders better, and gated.
    """

    enabled: bool = False
    """Train one, release it, and let servers use what a release has; false: they leave it alone."""
    top: Products = 20
    """Products that it re-ranks of a search, from the first; as trained and judged."""
    budget_ms: Annotated[float, Field(gt=0), Unit("milliseconds")] = 50.0
    """From a request's begin to its answer; what does not fit in is not re-ranked. Read when a
    server starts."""
