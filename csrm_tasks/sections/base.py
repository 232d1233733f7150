"""What every section of a market file is, and the units its keys are given in.

The text under a field is its description: ``csrm market reference`` writes docs/MARKET.md from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from csrm_tasks.sections.cron import check_cron


def is_day(text: str) -> bool:
    """Whether a text is a day as we write them, YYYY-MM-DD."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _check_day(value: str) -> str:
    if is_day(value):
        return value
    raise ValueError("write a day as YYYY-MM-DD")


@dataclass(frozen=True)
class Unit:
    """The unit of a key, as the reference names it; part of the key's type."""

    name: str


Share = Annotated[float, Field(ge=0.0, le=1.0), Unit("share")]
Multiple = Annotated[float, Field(gt=0.0, allow_inf_nan=False), Unit("× lr")]
Positive = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
Days = Annotated[Positive, Unit("days")]
Seconds = Annotated[Positive, Unit("seconds")]
Tokens = Annotated[Positive, Unit("tokens")]
Steps = Annotated[Positive, Unit("optimizer steps")]
Products = Annotated[Positive, Unit("products")]
Queries = Annotated[Positive, Unit("queries")]
Tasks = Annotated[Positive, Unit("Airflow tasks")]
Day = Annotated[str, AfterValidator(_check_day), Unit("day, YYYY-MM-DD")]
Cron = Annotated[str, AfterValidator(check_cron), Unit("cron expression")]
BaseModelName = Annotated[str, Unit("base model")]

# of a key that may be written in several; which one decides what is wrong in it
FORMS = ("as a list", "as a mapping", "as a text")


class Section(BaseModel):
    """Base of every section: frozen, typed, closed."""

    # Without use_attribute_docstrings: it parses each section's source whenever one is imported, a
    # fifth of what a task's process takes to import them; the reference reads them itself.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rates(Section):
    """Own learning rates of an encoder's parts, as multiples of `lr`."""

    head: Multiple = 1.0
    """Of what stands on the encoder: the projection to vectors."""
    encoder: Multiple = 1.0
    """Of the encoder's layers."""
    vocabulary: Multiple = 1.0
    """Of the encoder's word embeddings."""


def check_ranks(first: int, last: int) -> None:
    """Raise :class:`ValueError` where no rank is left from ``first`` up to below ``last``."""
    if first >= last:
        raise ValueError(f"first {first} must be below last {last}: no rank is left")
