"""Which weeks are due by the days that the store has published, where a market asks for that.

Airflow's asset events only have a week looked at: they may come late, twice or not at all. What
is published is read from the store, what was trained from the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import WeekOfDays
from csrm_tasks.settings import Settings
from csrm_tasks.steps.declaration import Context, Metadata, step

WHOLE = 7
LAST = "9999-12-31"


def sunday_of(day: date) -> date:
    """Return the last day of a day's ISO week."""
    return day + timedelta(days=WHOLE - day.isoweekday())


@dataclass(frozen=True)
class Trained:
    """A snapshot that a market's LLM was trained on and judged by: its last day, its days."""

    until: str
    days: Mapping[str, str]  # day → digest, as it was published then


def why_not_due(market: MarketConfig, settings: Settings, sunday: date) -> str:
    """Say why the week that ends with ``sunday`` is not to be trained now; empty: it is due.

    ``schedule.retrain`` of the market is a :class:`WeekOfDays`, else :class:`ConfigError`.
    """
    rule = market.schedule.retrain
    if not isinstance(rule, WeekOfDays):
        raise ConfigError(
            f"market {market.market}: schedule.retrain counts no days; it is {rule!r}"
        )
    days, before = _published(market, settings), trained(market, settings)
    return why_not(rule, days, before, sunday) or _nothing_live(market, settings)


def why_not(
    rule: WeekOfDays, days: Mapping[str, str], before: Iterable[Trained], sunday: date
) -> str:
    """Say why a week is not due by its market's rule, the published ``days`` and what was trained
    ``before``; empty: it is.

    Days up to ``sunday`` that were corrected since count where the rule trains a week again.
    """
    return _incomplete(rule, days, sunday) or _done(rule, before, days, sunday)


def partitions(market: MarketConfig, settings: Settings, day: str) -> list[str]:
    """Return the days that are told of once ``day`` was published: itself, and all of a due week.

    Its own week or the one before may be due by what an earlier event was to say and did not: it
    was sent while the DAG was paused, or by another definition of its week.
    """
    found = {day}
    if isinstance(market.schedule.retrain, WeekOfDays):
        days = _published(market, settings)
        sunday = sunday_of(date.fromisoformat(day))
        for end in (sunday - timedelta(days=WHOLE), sunday):
            if not why_not_due(market, settings, end):
                found |= _of_week(days, end)
    return sorted(found)


def _decision(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """Say why a run's week is not due; empty: it is, or this run was told before that it is."""
    store = ArtifactStore(settings.artifacts, settings.cache)
    claims = (m["facts"] for _, m in store.published(f"{market.market}/claim_week"))
    if any(not said["why_not"] and said["run"] == params["run"] for said in claims):
        return ""
    return why_not_due(market, settings, date.fromisoformat(params["until"]))


@step("claim_week", config=["schedule.retrain", "tasks"], external_inputs=_decision)
def claim_week(ctx: Context, *, until: str, run: str) -> Metadata:
    """Say whether the week that ends with ``until`` is to be trained by this run, or why not.

    Once told that it is, a run stays the one that trains the week, however often it is cleared.
    """
    why_not = _decision(ctx.market, ctx.settings, {"until": until, "run": run})
    return {"until": until, "run": run, "why_not": why_not}


def trained(market: MarketConfig, settings: Settings) -> Iterator[Trained]:
    """Yield what the market's releases of stage 2 were trained on, the newest first.

    Of a market without relevance: what its LLMs were judged with.
    """
    store = ArtifactStore(settings.artifacts, settings.cache)
    for ref in _snapshots(market, settings, store):
        about = (store.manifest(ref) or {}).get("about")
        if about and about["params"]["stage"] == 2:
            # A snapshot of an earlier version does not say of which days it was made.
            yield Trained(about["params"]["until"], about.get("external_inputs", {}))


def _snapshots(market: MarketConfig, settings: Settings, store: ArtifactStore) -> Iterator[str]:
    from csrm_tasks.release import ledger

    if "relevance" not in market.tasks:
        for _, verdict in reversed(store.published(f"{market.market}/gate_tasks")):
            if made := store.manifest(verdict["inputs"]["evaluation"]):
                yield made["inputs"]["snapshot"]
        return
    for row in reversed(ledger.history(settings, market.market)):
        if row.action == "registered" and (made := store.manifest(row.payload["bundle"])):
            yield made["inputs"]["snapshot"]


def _published(market: MarketConfig, settings: Settings) -> dict[str, str]:
    from csrm_tasks.dataset.source import published_days
    from csrm_tasks.store.engine import open_store, reading

    with reading(open_store(settings.db_url)) as connection:
        return published_days(connection, market.market, LAST)


def _of_week(days: Mapping[str, str], sunday: date) -> set[str]:
    monday = sunday - timedelta(days=WHOLE - 1)
    return {day for day in days if monday.isoformat() <= day <= sunday.isoformat()}


def _incomplete(rule: WeekOfDays, days: Mapping[str, str], sunday: date) -> str:
    there = len(_of_week(days, sunday))
    if there == WHOLE:
        return ""
    if there < rule.at_least:
        return f"{there} of its days are published, and schedule.retrain takes {rule.at_least}"
    waits = (sunday + timedelta(days=rule.wait_days)).isoformat()
    if max(days) < waits:
        return f"{there} of its days are published, and the others are waited for until {waits} is"
    return ""


def _nothing_live(market: MarketConfig, settings: Settings) -> str:
    from csrm_tasks.release import ledger

    if "relevance" in market.tasks and ledger.live(ledger.history(settings, market.market)) is None:
        return "no release is live that it could be compared with; run csrm_cold_start first"
    return ""


def _done(
    rule: WeekOfDays, before: Iterable[Trained], days: Mapping[str, str], sunday: date
) -> str:
    until = sunday.isoformat()
    now = {day: digest for day, digest in days.items() if day <= until}
    same = False
    for one in before:
        if one.until > until:
            return f"a later week, up to {one.until}, is trained already"
        if one.until == until and (one.days == now or not rule.again):
            same = True
    return "it is trained already; trigger it by hand to train it again" if same else ""
