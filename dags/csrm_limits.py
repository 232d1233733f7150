"""Which markets have DAGs; whose their tasks are, how long they may take and in which pool."""

from __future__ import annotations

import importlib
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from airflow.sdk import get_parsing_context
from csrm_faults import retried

from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import MarketConfig, load_markets
from csrm_tasks.settings import load_settings
from csrm_tasks.steps.classes import TRAINING

if TYPE_CHECKING:
    from airflow.sdk import BaseNotifier


def examined() -> tuple[list[MarketConfig], list[str]]:
    """Return the markets that can have DAGs, and what is wrong with the others.

    What one market cannot have must not cost the others theirs: they stand in the same DAG file.
    A task's own process needs its market alone (docs/decisions/0011-what-a-task-loads.md).
    """
    folder = load_settings().markets
    found, wrong = load_markets(folder, own_market(folder))
    usable = []
    for market in found:
        try:
            watched(market, "csrm_ingest")
        except ConfigError as e:
            wrong.append(str(e))
        else:
            usable.append(market)
    return usable, wrong


def own_market(folder: Path) -> str | None:
    """Return the market whose task this process is for; None where all DAGs are wanted."""
    asked = get_parsing_context()
    name = (asked.dag_id or "").partition("__")[2] if asked.task_id else ""
    return name if name and (folder / f"{name}.yaml").is_file() else None


def every_task(market: MarketConfig) -> dict[str, Any]:
    """Return the arguments that all tasks of a market have."""
    hours = timedelta(hours=market.schedule.task_hours)
    told = notifying(market).of_tasks(market) if market.notify.connection else {}
    return retried() | {"owner": market.schedule.owner, "execution_timeout": hours} | told


def limits_of(market: MarketConfig, step: str) -> dict[str, Any]:
    """Return how long a step's task may take and in which pool it runs, if not as the others."""
    if step not in TRAINING:
        return {}
    pool = market.schedule.training_pool
    hours = timedelta(hours=market.schedule.training_hours)
    return {"execution_timeout": hours} | ({"pool": pool} if pool else {})


def owner_links(market: MarketConfig) -> dict[str, str]:
    """Return where the owner's name leads in Airflow, if anywhere."""
    link = market.schedule.owner_link
    return {market.schedule.owner: link} if link else {}


def watched(market: MarketConfig, name: str) -> dict[str, Any]:
    """Return the arguments of a DAG that has somebody told when it fails or is late."""
    return notifying(market).watched(market, name) if market.notify.connection else {}


def asking(market: MarketConfig) -> list[BaseNotifier]:
    """Return who is told when a market's approvers are asked."""
    return notifying(market).asking(market) if market.notify.connection else []


def notifying(market: MarketConfig) -> ModuleType:
    """Return the module of the plugin folder that tells; :class:`ConfigError` where it is not."""
    try:
        return importlib.import_module("csrm_notify")
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"market {market.market} has notify.connection, but plugins/csrm_notify.py is not in "
            "AIRFLOW__CORE__PLUGINS_FOLDER: set it to the plugins folder beside dags"
        ) from e
