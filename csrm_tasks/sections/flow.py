"""When a market's DAGs run, for how long and whose they are, and which control arms are trained."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag

from csrm_tasks.sections.base import FORMS, BaseModelName, Cron, Days, Section, Unit


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError) as e:  # which one depends on how it is wrong
        raise ValueError(f"{name!r} is no time zone; give an IANA name such as Asia/Seoul") from e
    return name


def _name(text: str) -> str:
    if not text.strip() or "," in text:
        raise ValueError(f"{text!r} is no name of an owner; one name, without a comma")
    return text.strip()


def _link(text: str) -> str:
    found = urlsplit(text)
    web = found.scheme in ("http", "https") and found.hostname and not found.username
    if not (web or (found.scheme == "mailto" and "@" in found.path)):
        raise ValueError(f"{text!r} is no link; give https://host/page or mailto:name@host")
    return text


Owner = Annotated[str, AfterValidator(_name), Unit("name")]
Link = Annotated[str, AfterValidator(_link), Unit("URL")]
Pool = Annotated[str, StringConstraints(pattern=r"^[\w .-]{1,200}$"), Unit("Airflow pool")]
Hours = Annotated[int, Field(gt=0, le=24 * 30), Unit("hours")]
Zone = Annotated[str, AfterValidator(_known_zone), Unit("IANA time zone")]


class WeekOfDays(Section):
    """In place of a cron expression: `csrm_retrain` runs when a week's days have been published.

    The store says which are; what `publish_day` tells Airflow only has it looked up.
    """

    at_least: Annotated[Days, Field(le=7)] = 7
    """Published days that suffice for a week; all seven are trained on at once."""
    wait_days: Annotated[int, Field(ge=0, le=7), Unit("days")] = 1
    """How far beyond its Sunday days are published before a week of fewer than seven is trained."""
    again: bool = False
    """Train a week once more when a day is corrected, or comes, after it was trained."""


def _form(given: object) -> str:
    return FORMS[1 if isinstance(given, (dict, WeekOfDays)) else 2]


Retrain = Annotated[
    Annotated[Cron, Tag(FORMS[2])] | Annotated[WeekOfDays, Tag(FORMS[1])], Discriminator(_form)
]


class Schedule(Section):
    """Cron expressions by the clocks of ``timezone``; null means by hand only.

    A market's days are those of its time zone, whatever lands when: see docs/DATA.md.
    """

    timezone: Zone = "UTC"
    """Where the market's days begin and end, and by whose clocks its DAGs run."""
    ingest: Cron | None = "0 2 * * *"
    """When `csrm_ingest` takes yesterday's files in."""
    retrain: Retrain | None = "0 4 * * 1"
    """When `csrm_retrain` trains on everything up to the last Sunday: by clock or by days."""
    refresh: Cron | None = "0 3 * * *"
    """When `csrm_refresh` embeds new products; after the night's ingest."""
    rollout: Cron | None = "0 6 * * *"
    """When `csrm_rollout` evaluates the step under way; after the night's ingest."""
    drill: Cron | None = "0 5 1 * *"
    """When `csrm_drill` rehearses the rollback."""
    task_hours: Hours = 12
    """Hours after which a task is ended and tried once more, but for trainings."""
    training_hours: Hours = 72
    """Hours after which a training or scoring is ended; the next try goes on at its checkpoint."""
    training_pool: Pool | None = None
    """Airflow pool that trainings and scorings share; null: they run as other tasks do."""
    owner: Owner = "csrm"
    """Who answers for the market, as Airflow shows it."""
    owner_link: Link | None = None
    """Where the owner's name leads: a page or an address (https://…, mailto:…)."""


class Controls(Section):
    """Control arms trained beside the weekly model, to see what each part earns."""

    rqa_cold: bool = False
    """Stage 2 with the cold start's RQA in place of RQA*."""
    rqa_off: bool = False
    """The chosen LLM without retrieved titles: what they resolve, by query."""
    rqa_unclicked: bool = False
    """RQA* without what shoppers did with gold queries: what the gold set's own clicks give."""
    towers_seen: bool = False
    """The same towers, taught gold queries, too (no gold pair)."""
    leave_out: bool = False
    """The linear baseline without each source language in turn, on that language's dev."""
    cross_encoder: bool = False
    """One tower that reads query and title together."""
    encoder: BaseModelName | None = None
    """Base of a supervised encoder classifier (paper 1, table 2); null: none."""
    prompt: BaseModelName | None = None
    """An LLM that is asked without training: a local causal model, or an endpoint's name for it."""
    prompt_connection: str | None = None
    """Airflow connection of that endpoint; null: the model is local."""
