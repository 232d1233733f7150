"""A night without Airflow: the five steps that take one day in, as ``csrm_ingest`` runs them."""

from __future__ import annotations

from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import Settings
from csrm_tasks.steps.running import run_step


def take_in(market: str | MarketConfig, settings: Settings, day: str) -> str:
    """Land, validate, store, aggregate and publish ``day``; returns the reference of the last."""
    ref = run_step("land", market, {}, {"day": day}, settings)
    ref = run_step("validate", market, {"land": ref}, {}, settings)
    ref = run_step("store", market, {"validate": ref}, {}, settings)
    ref = run_step("aggregate", market, {"store": ref}, {"day": day}, settings)
    return run_step("publish_day", market, {"aggregate": ref}, {"day": day}, settings)
