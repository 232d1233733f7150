"""Which day or week a run is for: its parameter's, else its data interval's, by local clocks.

And what it asks for otherwise than its market's file says, and whether what it makes may be
released.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from csrm_tasks import clocks
from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.steps.asked import asked_of, refuse_unknown

BACKFILL = "backfill"  # Airflow's type of such runs
TRIGGERED = "asset_triggered"  # … and of those that start by what was told of assets

if TYPE_CHECKING:
    from airflow.sdk.types import DagRunProtocol


def day_of(params: Mapping[str, Any], dag_run: DagRunProtocol, zone: str = "UTC") -> str:
    """Return the day that a run is for: its parameter, else the day (by the clocks of ``zone``) on
    which its data interval starts. Raises :class:`ConfigError` for a day that does not exist.
    """
    if not params["day"]:
        return _interval_start(dag_run, "day", zone).isoformat()
    try:
        return date.fromisoformat(params["day"]).isoformat()
    except ValueError as e:
        raise ConfigError(
            f"parameter 'day': {params['day']!r} is no day of any calendar; write it as YYYY-MM-DD"
        ) from e


def week_end(
    params: Mapping[str, Any], dag_run: DagRunProtocol, zone: str = "UTC", by_days: bool = False
) -> str:
    """Return the Sunday of the run's ISO week: its parameter's, else its partition's, else its data
    interval's, as :func:`day_of`. Raises :class:`ConfigError` for a week that its year does not
    have.

    ``by_days``: the schedule has no intervals; a run by hand is for the last week that is over.
    """
    if not params["week"]:
        key = getattr(dag_run, "partition_key", None)
        start = _of_key(key) if key else _interval_start(dag_run, "week", zone)
        ends = start + timedelta(days=7 - start.isoweekday())
        return (ends - timedelta(days=7 if by_days and not key else 0)).isoformat()
    try:
        year, week = params["week"].split("-W")
        return date.fromisocalendar(int(year), int(week), 7).isoformat()
    except ValueError as e:
        raise ConfigError(
            f"parameter 'week': there is no week {params['week']!r}; write it as YYYY-Www, and 53 "
            "only for a year that has so many"
        ) from e


def asked(
    params: Mapping[str, Any],
    dag_run: DagRunProtocol,
    market: MarketConfig,
    known: Collection[str],
) -> str:
    """Return what a run asks for otherwise than its market's file says, as JSON; "": nothing.

    ``known``: the DAG's parameters. Raises :class:`ConfigError` for what none of them takes.
    """
    refuse_unknown(dag_run.conf or {}, params, known)
    return asked_of(market, params, dag_run.run_id).as_text()


def withheld(params: Mapping[str, Any], dag_run: DagRunProtocol, market: MarketConfig) -> str:
    """Say why a run releases nothing; empty: it may, if it is good enough.

    A backfill makes up for windows of the past; what is served is decided by the present. A run
    that is none of the market's normal ones releases only if whoever started it has said so.
    """
    if kind_of(dag_run) == BACKFILL:
        return "a backfill changes nothing that is served; trigger the window by hand to release"
    if params.get("dry_run"):
        return "parameter 'dry_run' is set: nothing is released"
    differs = asked_of(market, params, "this run")
    if differs and not params.get("release"):
        return (
            f"it is none of the market's normal runs ({differs.in_words()}): nothing is released "
            "unless parameter 'release' is set"
        )
    return ""


def kind_of(dag_run: DagRunProtocol) -> str:
    """Return Airflow's type of a run: scheduled, manual, asset_triggered or backfill."""
    return str(getattr(dag_run.run_type, "value", dag_run.run_type))


def _of_key(key: str) -> date:
    """Return the day that a partition key begins with, as ``2026-01-05 (W02)`` does."""
    try:
        return date.fromisoformat(key[:10])
    except ValueError as e:
        raise ConfigError(
            f"the run's partition {key!r} begins with no day; write it as YYYY-MM-DD"
        ) from e


def _interval_start(dag_run: DagRunProtocol, param: str, zone: str) -> date:
    """Return the local date: an interval from midnight in Seoul starts on the day before in UTC."""
    if dag_run.data_interval_start is None:
        raise ConfigError(f"this run has no data interval: give the parameter {param!r}")
    return clocks.day_of(dag_run.data_interval_start, zone)
