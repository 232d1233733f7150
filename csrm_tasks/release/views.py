"""The views of the ledger: what servers follow first, then what people look at.

The routing document is what shoppers are served by, so it comes first and must succeed. MLflow's
aliases serve nobody: where MLflow does not answer, that is said, and whatever brings the views up
to date next (a registration, a promotion, a move of a rollout, ``csrm release reconcile``, every
night's ``csrm_refresh``) repairs them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from csrm_tasks.errors import CsrmError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import away, ledger, routing
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("csrm")
HAND = "champion alias in MLflow"
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def refresh_views(
    settings: Settings,
    config: MarketConfig,
    api: MlflowClient,
    entries: Sequence[ledger.Entry] | None = None,
) -> list[str]:
    """Bring the routing document and MLflow's aliases up to the ledger; returns alias repairs.

    ``entries``: the ledger with the caller's row (None: read here). A champion alias that somebody
    moved by hand is put back, and the ledger says so.
    """
    rows = publish(settings, config.market, entries)
    # Said before MLflow is asked: an absent one takes a while to be given up.
    log.info("%s: %s", config.market, away.served(settings, config.market, rows))
    try:
        return follow(settings, config, api, "the ledger decides what is live")
    except Exception as e:  # noqa: BLE001 whatever its client, its server or its database raise
        said = str(e) if isinstance(e, CsrmError) else away.trouble(away.MLFLOW, e)
        log.warning(
            "%s in MLflow is behind the ledger (%s); the next night repairs it, or "
            "csrm release reconcile --market %s",
            config.model_name, said, config.market,
        )  # fmt: skip
        return []


def publish(
    settings: Settings, market: str, entries: Sequence[ledger.Entry] | None = None
) -> Sequence[ledger.Entry]:
    """Bring the routing document up to the ledger, and return that.

    Raises :class:`AwayError`, which says what is served, where the document cannot be written.
    """
    try:
        rows = ledger.verified(settings, market) if entries is None else entries
        routing.publish(settings, market, rows)
        return rows
    except CsrmError:
        raise
    except Exception as e:  # a document that was not written for whatever reason is told of
        raise away.told_of(settings, market, away.which(e) or "routing", e) from e


def follow(settings: Settings, config: MarketConfig, api: MlflowClient, why: str) -> list[str]:
    """Bring MLflow's aliases up to the ledger; returns repairs and raises what MLflow raises."""
    with few_retries():
        # Looked at before the ledger is read (again): a promoter writes there first.
        seen = registry.read_aliases(api, config.model_name)
        entries = ledger.verified(settings, config.market)
        versions = registry.versions(api, config.model_name) if entries else {}
        moved = registry.moved_by_hand(seen, versions, entries)
        if moved is not None:
            _record(settings, config, ledger.live(entries), moved, why)
        return registry.reconcile(api, config.model_name, entries, seen)


@contextmanager
def few_retries() -> Iterator[None]:
    """Let MLflow's client give up after seconds; by itself it asks for minutes."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = before or "2"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(RETRIES, None)


def _record(
    settings: Settings, config: MarketConfig, live: str | None, moved: registry.ManualMove, why: str
) -> None:
    """Write down that a hand moved the champion alias and that it is put back."""
    row = ledger.append(
        settings,
        config.market,
        "reverted",
        moved.release or str(live),
        actor=HAND,
        reason=f"moved by hand to version {moved.version} and put back to {live}: {why}",
        payload={"version": str(moved.version), "after": moved.after},
    )
    log.warning("%s: %s", row.actor, row.reason)
