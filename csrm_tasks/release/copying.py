"""A release taken to another environment's registered model, as MLflow's users do it.

MLflow copies the version; its files stay where they are, and the copy says which version it is of.
The other environment has its own rights in MLflow, and no ledger of ours: its alias ``champion``
is all that says what it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csrm_tasks.errors import ConfigError, RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


def copy_release(
    settings: Settings, config: MarketConfig, api: MlflowClient, target: str, release: str | None
) -> tuple[str, str]:
    """Copy a release's version to model ``target`` once, as its champion; returns both ids.

    ``release``: None for the live one. Returns the release and the number of its version there.
    Raises :class:`RefusedError` where there is none, where its last verdict is not PASS, or where
    MLflow lacks its version; :class:`ConfigError` where the target is the market's own model.
    """
    if target == config.model_name:
        raise ConfigError(f"{target} is the market's own model; name another environment's")
    entries = ledger.verified(settings, config.market)
    wanted = release or ledger.live(entries)
    rows = [e for e in entries if (e.action, e.release_id) == ("registered", wanted)]
    if wanted is None or not rows:
        missing = f"no registered release {release}" if release else "no live release to copy"
        raise RefusedError(f"{config.market} has {missing}")
    if rows[-1].payload["outcome"] != "PASS":
        raise RefusedError(f"the verdict of {wanted} is {rows[-1].payload['outcome']}: not copied")
    known = registry.versions(api, config.model_name)
    if wanted not in known:
        raise RefusedError(
            f"MLflow model {config.model_name} has no version of {wanted}; run csrm release "
            f"reconcile --market {config.market}"
        )
    there = registry.versions(api, target)
    if wanted not in there:
        api.copy_model_version(f"models:/{config.model_name}/{known[wanted]}", target)
        there = registry.versions(api, target)  # two copiers: both read the lower number
    api.set_registered_model_alias(target, "champion", there[wanted])
    return wanted, there[wanted]
