"""Who is told of a run that failed or is late, of a release that waits, and of none."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, StringConstraints, model_validator

from csrm_tasks.sections.base import Days, Section, Unit
from csrm_tasks.sections.flow import Hours

Event = Literal["failed", "late", "approval", "no_promotion"]
EVENTS: tuple[Event, ...] = ("failed", "late", "approval", "no_promotion")
ADDRESS = re.compile(r"[^@\s,;<>]+@[^@\s,;<>]+")


def _address(text: str) -> str:
    if not ADDRESS.fullmatch(text):
        raise ValueError(f"{text!r} is no address; give name@host")
    return text


Address = Annotated[str, AfterValidator(_address), Unit("mail address")]
ConnectionId = Annotated[
    str, StringConstraints(pattern=r"^[\w.-]{1,200}$"), Unit("Airflow connection")
]


class Notify(Section):
    """Who is told when a run fails or is late, when a release waits, and when none comes."""

    connection: ConnectionId | None = None
    """Airflow connection to tell by: of type smtp, or http for a webhook; null: nobody is told."""
    to: tuple[Address, ...] = ()
    """Who is written to by mail; a webhook has its own readers."""
    events: tuple[Event, ...] = EVENTS
    """What is told of."""
    night_hours: Hours = 4
    """Hours after which a nightly run that has not ended is late."""
    week_hours: Hours = 48
    """Hours after which a training run that has not ended is late."""
    no_promotion_days: Days = 21
    """Days after which somebody is told that no new release went live."""

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Self:
        if self.connection is None and self.model_dump(exclude_defaults=True):
            raise ValueError("nobody is told without connection: name an Airflow connection")
        if not self.events or len(set(self.events)) < len(self.events):
            raise ValueError("events: name at least one, and each once")
        return self
