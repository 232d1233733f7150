"""Rolling a registered release out: find, start, look, settle; and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Any

from csrm_tasks import clocks, tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.blobs import open_blobs, text_digest
from csrm_tasks.errors import DataError, RefusedError
from csrm_tasks.json_files import write_json
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import approval, ledger, rollout, rollout_moves, verdicts
from csrm_tasks.release import rollback as back
from csrm_tasks.settings import Settings
from csrm_tasks.steps.audit_files import answered, read_audits
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    from csrm_tasks.release.online.checks import Audit, Sums


def _head(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str | None:
    entries = ledger.history(settings, market.market)
    return entries[-1].hash if entries else None


@step(
    "rollout_state", external_inputs=_head, config=["release.approval", "schedule.timezone"],
)  # fmt: skip
def rollout_state(ctx: Context) -> Metadata:
    """Find what is being rolled out, and which registered release waits."""
    entries = ledger.verified(ctx.settings, ctx.market.market)
    policy = ctx.market.release.approval
    state, row = rollout.current_rollout(entries), rollout.next_candidate(entries, policy)
    if state is not None and not state.launched:
        row = None  # whatever waits, waits
    facts: Metadata = {"candidate": row.release_id if row else None, "approved": False}
    if row is not None:
        seal = row.payload["verdict"]
        facts["approved"] = approval.decided(entries, row.release_id, seal).allows(policy)
        facts |= {"verdict": seal, "reasons": row.reason}
    facts |= {"open": state.release if state else None}
    return facts | (_parts(ctx, state, entries) if state else {})


def _parts(ctx: Context, state: rollout.CurrentRollout, entries: list[ledger.Entry]) -> Metadata:
    """What both releases are made of, for their audits."""
    made = {}
    for release in (state.release, state.control):
        row = ledger.find(entries, "started", release) or ledger.find(entries, "promoted", release)
        if row is None:
            raise RefusedError(f"the ledger has no start or promotion of {release}")
        made[release] = ctx.store.open(row.payload["bundle"])
    bundle = made[state.release]
    return {
        "control": state.control,
        "step": rollout.step_name(state),
        "first_day": str(
            clocks.day_of(ledger.moment(state.windows[0].since), ctx.market.schedule.timezone)
        ),
        "audit_queries": state.plan.audit_queries,
        "audit_draw": state.plan.audit_draw,
        "bundle": bundle.ref,
        "control_bundle": made[state.control].ref,
        **{part: bundle.inputs.get(part) for part in ("snapshot", "llm", "rqa")},
    }


@step("rollout_start", inputs=["state"], side_effect=True)
def rollout_start(ctx: Context) -> Metadata:
    """Start the waiting release's first step; without steps it goes live at once.

    Verdict and approval are read again, whatever led here.
    """
    release = ctx.input("state").facts["candidate"]
    if release is None:
        raise RefusedError(f"no release of {ctx.market.market} waits")
    api = tracking.LaterClient(ctx.settings)
    row = rollout_moves.begin(ctx.settings, ctx.market, api, release)
    return {"release": release, "did": row.action, "seq": row.seq}


def _evidence(
    market: MarketConfig, settings: Settings, params: Mapping[str, Any]
) -> list[object] | None:
    """What a look depends on beside its day: published days, serving figures, the rollout."""
    from csrm_tasks.dataset.source import published_days
    from csrm_tasks.release.online.evidence import served_windows
    from csrm_tasks.release.online.span import Span
    from csrm_tasks.store import open_store, reading

    entries = ledger.history(settings, market.market)
    state = rollout.current_rollout(entries)
    if state is None:
        return None
    span = Span.of(state, params["day"], market.schedule.timezone)
    with reading(open_store(settings.db_url)) as connection:
        published = published_days(connection, market.market, params["day"])
    # What servers add after the day is over is no part of it: a look's digest stands still.
    served = served_windows(open_blobs(settings.routing), market.market, state, span)
    lines = (f"{at} {[w.model_dump_json() for w in pair]}" for at, pair in served)
    audited = [e.hash for e in entries if e.action == "audited"]
    seen = {d: v for d, v in published.items() if d >= span.first}
    return [state.turn, seen, text_digest(*lines), audited]


@step("rollout_evaluate", external_inputs=_evidence, config=["schedule.timezone"])
def rollout_evaluate(ctx: Context, *, day: str) -> Metadata:
    """Judge the release under way by everything up to a published day; sealed by digest."""
    from csrm_tasks.release.online.checks import evaluate_step
    from csrm_tasks.release.online.evidence import read

    entries = ledger.verified(ctx.settings, ctx.market.market)
    state = rollout.current_rollout(entries)
    if state is None:
        raise RefusedError(f"nothing of {ctx.market.market} is being rolled out")
    _require_published(ctx, day)
    evidence = read(ctx.settings, ctx.market, state, entries, day)
    until = clocks.ends(date.fromisoformat(day), ctx.market.schedule.timezone).isoformat()
    outcome, checks = evaluate_step(state.current, state.plan, evidence)
    reasons = [f"{c.name}: {c.text}" for c in checks if c.outcome == outcome]
    sealed = verdicts.seal({
        "market": ctx.market.market, "release": state.release, "control": state.control,
        "step": rollout.step_name(state), "turn": state.turn, "day": day, "until": until,
        "outcome": outcome, "reasons": reasons, "checks": [c.as_json() for c in checks],
        "teacher_estimate": _teacher(evidence.teacher),
        "helped_estimate": _helped(ctx, state, entries),
    })  # fmt: skip
    write_json(ctx.out / verdicts.FILE, sealed, sort_keys=False)
    return {k: sealed[k] for k in ("release", "step", "day", "outcome", "reasons", "digest")}


def _teacher(estimate: Audit | None) -> dict[str, Any] | None:
    """An LLM's estimate of the audits, marked as what it is; it decides nothing."""
    if estimate is None or not estimate.queries:
        return None
    return {
        "note": "graded by the release's own LLM, not by people; shown, never judged",
        "queries": estimate.queries,
        "EM@1": _mean(estimate.em_won - estimate.em_lost, estimate.em, estimate.queries),
        "Defect@5": _mean(
            estimate.defect_new - estimate.defect_gone, estimate.defect, estimate.queries
        ),
    }


def _mean(counted: int, by_strata: Sums | None, queries: int) -> float:
    return (counted if by_strata is None else by_strata.total) / queries


def _helped(
    ctx: Context, state: rollout.CurrentRollout, entries: list[ledger.Entry]
) -> dict[str, Any] | None:
    """What raters say of audits by strata with the towers' help: for one look, so it decides
    nothing.
    """
    if state.plan.audit_draw == "traffic":
        return None
    from csrm_tasks.release.online.stratified import helped

    found = helped(read_audits(ctx, answered(entries, state.release)), state.plan.alpha)
    note = "raters, helped by the towers; for one look, not for looking every day; never judged"
    each = {m: {k: v for k, v in asdict(e).items() if k != "error"} for m, e in found.items()}
    return {"note": note} | each if found else None


def _require_published(ctx: Context, day: str) -> None:
    from csrm_tasks.dataset.source import published_days
    from csrm_tasks.store import open_store, reading

    with reading(open_store(ctx.settings.db_url)) as connection:
        if day not in published_days(connection, ctx.market.market, day):
            raise DataError(f"{ctx.market.market} {day} is not published: run csrm_ingest for it")


@step("rollout_apply", inputs=["look"], side_effect=True)
def rollout_apply(ctx: Context) -> Metadata:
    """Record a look and do what it asks for: wait, advance, launch, hold, roll back; once."""
    look: Artifact = ctx.input("look")
    judgement = verdicts.read(look)
    api = tracking.LaterClient(ctx.settings)
    move = rollout_moves.apply_decision(ctx.settings, ctx.market, api, judgement, look.ref)
    return {"release": judgement["release"], "outcome": judgement["outcome"], "move": move}


@step("roll_back", side_effect=True)
def roll_back(ctx: Context, *, reason: str, actor: str, run: str, leaving: str = "") -> Metadata:
    """Go back: give up what is being rolled out, or make the release before live again.

    A task that runs again with its ``run`` goes back once; ``leaving`` empty: what is newest.
    """
    row = back.roll_back(
        ctx.settings, ctx.market, tracking.LaterClient(ctx.settings),
        actor=actor, reason=reason, leaving=leaving or None, run=run,
    )  # fmt: skip
    live = ledger.live(ledger.verified(ctx.settings, ctx.market.market))
    return {"did": row.action, "release": row.release_id, "live": live, "seq": row.seq}


@step("repair_views", side_effect=True)
def repair_views(ctx: Context, *, run: str) -> Metadata:
    """Bring routing and MLflow up to the ledger, where a command was killed or one was away."""
    from csrm_tasks.release.reconcile import reconcile

    api = tracking.LaterClient(ctx.settings)
    return {"run": run, "repaired": reconcile(ctx.settings, ctx.market, api)}
