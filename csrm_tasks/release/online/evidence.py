"""Reading the evidence of a rollout: sessions from the store, serving figures, audits.

Everything from the rollout's first day up to one published day, days by the market's clocks
(``schedule.timezone``), whose end is the end of the evidence. What is delivered later is seen by a
later look; a session delivered on two days is one session.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from functools import reduce
from operator import add
from typing import Annotated, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from csrm_tasks.blobs import BlobStore, open_blobs
from csrm_tasks.errors import DataError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release.ledger import Entry
from csrm_tasks.release.online.checks import Audit, OnlineEvidence, Sums
from csrm_tasks.release.online.served import FIRST, LAST, Served
from csrm_tasks.release.online.sessions import preferences, session_groups, session_strata
from csrm_tasks.release.online.span import Span
from csrm_tasks.release.rollout import CurrentRollout
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading


def read(
    settings: Settings,
    config: MarketConfig,
    state: CurrentRollout,
    entries: Sequence[Entry],
    day: str,
) -> OnlineEvidence:
    """Gather what is known of ``state``'s release at the end of ``day``."""
    span = Span.of(state, day, config.schedule.timezone)
    with reading(open_store(settings.db_url)) as connection:
        asked = connection, config.market, config.target_locale, state, span
        sessions, preferred = session_strata(*asked), preferences(*asked)
        known = session_groups(*asked) if state.plan.adjust_conversion else None
    requests = serving(open_blobs(settings.routing), config.market, state, span)
    audit, teacher = audits(entries, state, "rater"), audits(entries, state, "teacher")
    return OnlineEvidence(sessions, audit, requests, teacher, preferred, known)


def serving(blobs: BlobStore, market: str, state: CurrentRollout, span: Span) -> Served | None:
    """Read what servers reported of both releases, by quarter of an hour and routing document.

    Reports are ``{market}/serving/{UTC day}.json`` beside the routing document (docs/ROUTING.md);
    quarters that begin after the market's day is over are left to the next look. Times in which
    only one of the two served say nothing; None where there is no other.
    """
    windows = served_windows(blobs, market, state, span)
    if not windows:
        return None
    rows = [pair for _, pair in windows]
    names = [quarter for quarter, _ in windows]
    seen = [bucket for pair in rows for window in pair for bucket in window.buckets]
    first, last = min(seen, default=0), max(seen, default=0)
    times = np.zeros((len(rows), 2, last - first + 1), np.int32)
    for k, pair in enumerate(rows):
        for arm, window in enumerate(pair):
            for bucket, number in window.buckets.items():
                times[k, arm, bucket - first] = number
    requests = np.array([[w.requests for w in pair] for pair in rows], np.int64)
    errors = np.array([[w.errors for w in pair] for pair in rows], np.int64)
    return Served(requests, errors, times, first, np.unique(names, return_inverse=True)[1])


def served_windows(
    blobs: BlobStore, market: str, state: CurrentRollout, span: Span
) -> list[tuple[str, tuple[_Window, _Window]]]:
    """Return quarter of an hour (UTC) and what the judged release and its control served in it, of
    every window of ``span`` in which both did.
    """
    windows = []
    for d in span.utc_days():
        report = _report(blobs, f"{market}/serving/{d}.json")
        ours, theirs = (report.get(r, {}) for r in (state.release, state.control))
        for at in sorted(ours.keys() & theirs.keys()):
            quarter = f"{d}T{at.split('/', 1)[0]}+00:00"
            if datetime.fromisoformat(quarter) < span.until:
                windows.append((quarter, (ours[at], theirs[at])))
    return windows


class _Window(BaseModel):
    """What one release served in a quarter of an hour of one routing document."""

    model_config = ConfigDict(frozen=True, strict=True)

    requests: Annotated[int, Field(gt=0)]
    errors: Annotated[int, Field(ge=0)]
    # JSON's keys are texts, whatever they stand for
    buckets: dict[
        Annotated[int, Field(strict=False, ge=FIRST, le=LAST)], Annotated[int, Field(ge=0)]
    ]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.errors + sum(self.buckets.values()) != self.requests:
            raise ValueError("requests are not errors and the answered ones of the buckets")
        return self


# when its quarter of an hour began (UTC), then what else it was told apart by
_Name = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9](/|$)")]


class _Release(BaseModel):
    """A release's day; its totals are for people."""

    # none: written by an older server
    windows: dict[_Name, _Window] = Field(default_factory=dict)


_REPORT = TypeAdapter(dict[str, _Release])


def _report(blobs: BlobStore, key: str) -> dict[str, dict[str, _Window]]:
    """Return release → window → what it served then."""
    raw = blobs.read(key)
    if raw is None:
        return {}
    try:
        return {release: day.windows for release, day in _REPORT.validate_json(raw).items()}
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{key}: {at}: {first['msg']}; expected an object of release → windows (HH:MM/…) → "
            "requests (above 0), errors, buckets (docs/ROUTING.md)"
        ) from e


def audits(entries: Sequence[Entry], state: CurrentRollout, by: str) -> Audit | None:
    """Add up the audits of this rollout that are in the ledger; ``by`` rater or teacher.

    Of each audit the newest row counts: raters may have given back more, or something else.
    """
    rows = {
        e.payload["audit"]: e.payload
        for e in entries
        if e.action == "audited" and e.release_id == state.release and e.payload["by"] == by
    }
    names = ("queries", "em_lost", "em_won", "defect_new", "defect_gone")
    if not rows:
        return None
    return Audit(
        *(sum(int(p[n]) for p in rows.values()) for n in names),
        em=_sums("em", rows.values()),
        defect=_sums("defect", rows.values()),
    )


def _sums(measure: str, rows: Collection[Mapping[str, str]]) -> Sums | None:
    """Add up what audits by strata wrote; None where they were drawn plainly."""
    names = [f"{measure}_{f.name}" for f in fields(Sums)]
    parts = [Sums(*(float(p[n]) for n in names)) for p in rows if names[0] in p]
    return reduce(add, parts) if parts else None
