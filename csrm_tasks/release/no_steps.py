"""What becomes of a rollout under way when the market's file loses its steps.

``rollout: {steps: []}`` says that nothing goes by steps any more. The release under way was not
judged to the end, so it is given up, with a ledger row, by whatever touches the market's releases
next; the next release goes to everybody at once. One whose steps have all passed is only waiting
for its promotion and may still have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger, rollout, routing
from csrm_tasks.release.views import refresh_views
from csrm_tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

ACTOR = "csrm rollout"
REASON = "the market's file has no rollout steps any more"


def end_without_steps(
    settings: Settings, config: MarketConfig, api: MlflowClient, keep: str | None = None
) -> ledger.Entry | None:
    """Give up what is being rolled out if the plan has no steps; returns the row that did so.

    ``keep``: a release that is spared if it has passed every step. What is served follows at once,
    whatever the caller refuses later. The row is returned, and followed, again when nothing has
    been served otherwise since, so that whoever was killed after it finds it.
    """
    if config.rollout.steps:
        return None
    entries = routing.ledger_to_add_to(settings, config.market)
    row = _ended(settings, config, entries, keep)
    if row is not None:
        refresh_views(settings, config, api, ledger.including(settings, entries, row))
    return row


def _ended(
    settings: Settings, config: MarketConfig, entries: list[ledger.Entry], keep: str | None
) -> ledger.Entry | None:
    state, turn = rollout.current_rollout(entries), ledger.last_serving_row(entries)
    if state is None or state.launched or (state.passed and state.release == keep):
        return turn if turn is not None and turn.reason == REASON else None
    return ledger.append(
        settings, config.market, "aborted", state.release, actor=ACTOR, reason=REASON,
        payload={"step": rollout.step_name(state), "evidence": ""},
        expected=ledger.Precondition(ledger.live(entries), state.turn),
    )  # fmt: skip
