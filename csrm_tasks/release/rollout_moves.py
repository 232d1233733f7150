"""Moving a rollout on: every transition is one conditional ledger row, then the views follow.

Whoever is killed between two writes runs again: rows that are there are found, views are brought up
to date, and nothing happens twice. Raises :class:`RefusedError` where a guard says no, or where
something else has happened since the evidence was judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import approval, away, ledger, rollout, routing
from csrm_tasks.release.guard import guard, refuse_begun, refuse_taken_back, still_approved, vouched
from csrm_tasks.release.no_steps import ACTOR, end_without_steps
from csrm_tasks.release.promote import promote
from csrm_tasks.release.rollback import roll_back
from csrm_tasks.release.views import refresh_views
from csrm_tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


@away.one_line
def begin(
    settings: Settings, config: MarketConfig, api: MlflowClient, release: str
) -> ledger.Entry:
    """Start a release's steps; where there are none, or nothing to compare with, promote it."""
    end_without_steps(settings, config, api, keep=release)
    entries = routing.ledger_to_add_to(settings, config.market)
    known = ledger.find(entries, "started", release)
    if known is None and not rollout.by_steps(config.rollout, entries):
        return _promote(settings, config, api, release, entries)
    return _start(settings, config, api, release, entries)


def _promote(
    settings: Settings,
    config: MarketConfig,
    api: MlflowClient,
    release: str,
    entries: list[ledger.Entry],
) -> ledger.Entry:
    made = ledger.registration(entries, release)
    store = ArtifactStore(settings.artifacts, settings.cache)
    return promote(settings, config, store.open(made["bundle"]), store.open(made["gate"]), api)


@away.one_line
def start(
    settings: Settings, config: MarketConfig, api: MlflowClient, release: str
) -> ledger.Entry:
    """Begin the rollout of a registered release with its first step, once.

    The verdict and the approval are read again. A release waits while another is under way.
    """
    return _start(settings, config, api, release, routing.ledger_to_add_to(settings, config.market))


def _start(
    settings: Settings,
    config: MarketConfig,
    api: MlflowClient,
    release: str,
    entries: list[ledger.Entry],
) -> ledger.Entry:
    refuse_taken_back(config, entries, release)
    row = ledger.find(entries, "started", release)
    if row is None:
        row = _append_start(settings, config, entries, release)
    refresh_views(settings, config, api, ledger.including(settings, entries, row))
    return row


def _append_start(
    settings: Settings, config: MarketConfig, entries: list[ledger.Entry], release: str
) -> ledger.Entry:
    market, turn = config.market, ledger.last_serving_row(entries)
    if turn is None or not rollout.by_steps(config.rollout, entries):
        raise RefusedError(f"{market} has no steps or nothing to compare with: promote {release}")
    state = rollout.current_rollout(entries)
    if state is not None and not state.launched:
        raise RefusedError(
            f"{release} has to wait: {state.release} is being rolled out in {market}"
        )
    made = ledger.registration(entries, release)
    store = ArtifactStore(settings.artifacts, settings.cache)
    bundle, gate = store.open(made["bundle"]), store.open(made["gate"])
    verdict = guard(settings, config, bundle, gate, entries)
    return ledger.append(
        settings,
        market,
        "started",
        release,
        actor=ACTOR,
        reason="; ".join(verdict["reasons"]),
        payload=vouched(settings, bundle, verdict) | {"plan": config.rollout.model_dump_json()},
        expected=ledger.Precondition(verdict["champion"], turn.seq),
        check=still_approved(config, release, verdict),
    )


@away.one_line
def record_answer(
    settings: Settings, config: MarketConfig, api: MlflowClient, release: str, *, approved: bool,
    actor: str, run: str, verdict: str = "", said: str = "",
) -> bool:  # fmt: skip
    """Record what a person (or the lack of one) said of a waiting release; returns whether the
    release is approved now.

    ``verdict``: the digest that was asked about (empty: the newest); ``said``: when (ISO 8601).
    One answer of one ``run`` is one row, and none where the same person's same word is the last one
    already: the release board answers the question too. A release that was rejected is not asked
    about again; ``csrm release approve`` overrules it. A person's no that comes when the release
    has begun its way to shoppers is refused, with the command that takes it back, unless it was
    given before the approval that let it begin; a timeout overrules nobody.
    """

    def check(entries: Sequence[ledger.Entry]) -> None:
        if actor and not approved and approval.overrules(entries, release, verdict or newest, said):
            refuse_begun(config.market, entries, release)

    entries = ledger.verified(settings, config.market)
    newest = ledger.registration(entries, release)["verdict"]
    action: ledger.Action = "approved" if approved else "rejected"
    last = approval.decided(entries, release, verdict or newest)
    if actor and last.row is not None and (last.word, last.row.actor) == (action, actor):
        return approval.decided(entries, release, newest).word == "approved"
    payload = {"verdict": verdict or newest, "run": run} | ({"said": said} if said else {})
    reason = "answered in Airflow" if actor else "nobody answered in time"
    row = ledger.append(
        settings, config.market, action, release, actor=actor or approval.TIMEOUT, reason=reason,
        payload=payload, check=check,
    )  # fmt: skip
    entries = ledger.including(settings, entries, row)
    refresh_views(settings, config, api, entries)  # a release that is rejected is no challenger
    return approval.decided(entries, release, newest).word == "approved"


@away.one_line
def apply_decision(
    settings: Settings,
    config: MarketConfig,
    api: MlflowClient,
    judgement: Mapping[str, Any],
    ref: str,
) -> rollout.Move:
    """Record one day's judgement and do what it asks for; returns what that was.

    ``judgement`` is what the step ``rollout_evaluate`` wrote: release, step, turn, day,
    until, outcome, reasons. ``ref``: its artifact.
    """
    ended = end_without_steps(settings, config, api, keep=judgement["release"])
    if ended is not None and ended.release_id == judgement["release"]:
        return "abort"
    entries = routing.ledger_to_add_to(settings, config.market)
    state = rollout.current_rollout([e for e in entries if e.seq <= judgement["turn"]])
    step = None if state is None else rollout.step_name(state)
    if state is None or (state.release, step) != (judgement["release"], judgement["step"]):
        raise RefusedError(f"{ref} judged a rollout that is not in the ledger of {config.market}")
    reason = "; ".join(judgement["reasons"])
    payload = {"step": str(step), "day": judgement["day"], "outcome": judgement["outcome"]}
    row = _append(settings, config, state, "judged", reason, payload | {"evidence": ref})
    entries = ledger.including(settings, entries, row)
    outcomes = rollout.past_outcomes(entries, state, judgement["day"])
    days = rollout.days_since(state.windows[-1].since, judgement["until"])
    move = rollout.next_move(rollout.with_holds(entries, state), outcomes, days)
    done = _do(settings, config, api, state, entries, move, reason, ref)
    refresh_views(settings, config, api, done)
    return move


def _do(
    settings: Settings, config: MarketConfig, api: MlflowClient, state: rollout.CurrentRollout,
    entries: list[ledger.Entry], move: rollout.Move, reason: str, ref: str,
) -> list[ledger.Entry]:  # fmt: skip
    """Make a move, and return the ledger after it."""
    payload = {"step": rollout.step_name(state), "evidence": ref}
    if move == "advance":
        return _advance(settings, config, api, state, entries, ACTOR, reason, ref)
    if move == "abort" and state.launched:
        row = roll_back(settings, config, api, actor=ACTOR, reason=reason, leaving=state.release)
    elif move == "abort":
        row = _append(settings, config, state, "aborted", reason, payload)
    elif move == "hold":
        row = _append(settings, config, state, "held", f"a person decides: {reason}", payload)
    elif move == "close":
        row = _append(settings, config, state, "closed", reason, {"evidence": ref})
    else:
        return entries
    return ledger.including(settings, entries, row)


@away.one_line
def advance_held(
    settings: Settings, config: MarketConfig, api: MlflowClient, *, actor: str, reason: str
) -> rollout.CurrentRollout:
    """Take a held rollout to its next step because a person says so; returns the state before."""
    entries = routing.ledger_to_add_to(settings, config.market)
    state = rollout.current_rollout(entries)
    ended = end_without_steps(settings, config, api, keep=state.release if state else None)
    if ended is not None:
        entries = ledger.including(settings, entries, ended)
        state = rollout.current_rollout(entries)
    if state is None or not (state.held or state.paused or state.passed):
        raise RefusedError(f"no rollout of {config.market} is held: its evidence decides")
    done = _advance(settings, config, api, state, entries, actor, reason, "")
    refresh_views(settings, config, api, done)
    return state


def _advance(
    settings: Settings, config: MarketConfig, api: MlflowClient, state: rollout.CurrentRollout,
    entries: list[ledger.Entry], actor: str, reason: str, ref: str,
) -> list[ledger.Entry]:  # fmt: skip
    """Take the next step; after the last one the release goes live. Returns the ledger then."""
    step = state.step + 1
    payload = {"step": str(step), "evidence": ref}
    if step < len(state.plan.steps):
        payload["weight"] = str(state.plan.steps[step].weight)
    if not state.passed:
        row = _append(settings, config, state, "advanced", reason, payload, actor)
        entries = ledger.including(settings, entries, row)
    launched = ledger.find(entries, "promoted", state.release)
    if step >= len(state.plan.steps) and launched is None:
        _promote(settings, config, api, state.release, entries)
        return ledger.verified(settings, config.market)
    return entries


def _append(
    settings: Settings, config: MarketConfig, state: rollout.CurrentRollout, action: ledger.Action,
    reason: str, payload: Mapping[str, str], actor: str = ACTOR,
) -> ledger.Entry:  # fmt: skip
    live = state.release if state.launched else state.control

    def check(rows: Sequence[ledger.Entry]) -> None:
        if action == "advanced" and actor == ACTOR:
            rollout.refuse_paused(rows)  # by a person, after the evidence was judged

    return ledger.append(
        settings, config.market, action, state.release, actor=actor, reason=reason,
        payload=payload, expected=ledger.Precondition(live, state.turn), check=check,
    )  # fmt: skip
