"""A market's days as an asset of Airflow: one partition a day, and weeks that wait for theirs.

Airflow counts the days that it was told of and starts a run; whether the week is due the run asks
the store (``csrm_tasks/steps/weeks.py``).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow.sdk import (
    Asset,
    MinimumCount,
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfWeekMapper,
    WeekWindow,
    get_current_context,
    task,
)
from airflow.sdk.lineage import get_hook_lineage_collector
from csrm_faults import refusals_fail
from csrm_windows import BACKFILL, TRIGGERED, kind_of

from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.sections import WeekOfDays
from csrm_tasks.settings import load_settings

if TYPE_CHECKING:
    from airflow.sdk import XComArg

log = logging.getLogger("csrm")
PUBLISHING = "publish_day"  # the step whose tasks tell of days


def days_of(market: str) -> Asset:
    """Return the asset whose partitions, YYYY-MM-DD, are a market's published days."""
    return Asset(name=f"csrm_days__{market}", uri=f"x-csrm://{market}/days")


def on_days(market: MarketConfig, rule: WeekOfDays) -> PartitionedAssetTimetable:
    """Return the schedule of a DAG that runs for a week once enough of its days were told of.

    Its runs have the week's Monday as partition key, as ``2026-01-05 (W02)``.
    """
    weeks = RollupMapper(
        upstream_mapper=StartOfWeekMapper(input_format="%Y-%m-%d"),
        window=WeekWindow(),
        wait_policy=MinimumCount(rule.at_least),
    )
    return PartitionedAssetTimetable(assets=days_of(market.market), default_partition_mapper=weeks)


def announce(market: str, day: str) -> None:
    """Tell Airflow of a day that this task has published, and of what else may start a week.

    A backfill tells of no day: it makes up for the past, and starts nothing that may be released.
    """
    context = get_current_context()
    if kind_of(context["dag_run"]) == BACKFILL:
        return
    from csrm_tasks.steps.weeks import partitions

    settings = load_settings(market=market)
    told = partitions(load_market(market, settings.markets), settings, day)
    context["outlet_events"][days_of(market)].add_partitions(told)


def note_made(ref: str) -> None:
    """Have whoever collects lineage know what this task made (plugins/csrm_lineage.py)."""
    one = get_current_context()["ti"]
    # With whose it is: where tasks share a process, as in `airflow dags test`, they share this.
    note = {"ref": ref, "task_instance": str(one.id)}
    get_hook_lineage_collector().add_extra(one.task, "csrm_made", note)


@task.short_circuit(do_xcom_push=False)
def is_due(market: str, until: str, run: str, kind: str) -> bool:
    """Whether the week that this run is for is to be trained: enough days, and not trained yet.

    The store and the ledger say so. Otherwise nothing after it runs and the run ends well; its log
    says why. A run that somebody started by hand is not asked. Once it was told that its week is
    due, a run stays the one that trains it, however often it is cleared.
    """
    if kind != TRIGGERED:
        return True
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.steps import run_step

    with refusals_fail("claim_week"):
        claim = run_step("claim_week", market, {}, {"until": until, "run": run})
        settings = load_settings(market=market)
        why_not = ArtifactStore(settings.artifacts, settings.cache).open(claim).facts["why_not"]
    if why_not:
        log.warning("the week up to %s is not trained: %s", until, why_not)
    return not why_not


def once_due(market: MarketConfig, *first: XComArg) -> None:
    """Put ``is_due`` before the first tasks of a DAG that the market schedules by its days."""
    if isinstance(market.schedule.retrain, WeekOfDays):
        asked = is_due(
            market=market.market, until="{{ week_end(params, dag_run) }}", run="{{ run_id }}",
            kind="{{ kind_of(dag_run) }}",
        )  # fmt: skip
        for one in first:
            asked >> one
