"""Asking a person, in Airflow's own way, whether a release may be rolled out.

The answer goes into the ledger; whoever starts the rollout reads it there again. What was last
decided counts (``csrm_tasks/release/approval.py``): nobody answering in time overrules no one.

In Airflow 3.3 a rejection skips only what comes directly after it unless told otherwise, so the
task that records the answer skips everything below it (``ignore_downstream_trigger_rules``).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import XComArg, get_current_context, task
from csrm_faults import refusals_fail
from csrm_limits import asking

from csrm_tasks.markets import MarketConfig

APPROVE, REJECT = "Approve", "Reject"


@task.branch
def whether_to_ask(state: str) -> str | None:
    """Nothing waits: nothing more; approved already, or by policy: start; else ask.

    While a launched release's hold-out is open nobody is asked: a run that waits for an answer
    holds up the runs that judge it. The release board and the command take a yes all the same.
    """
    facts = facts_of(state)
    if facts["candidate"] is None:
        return None
    if facts["approved"]:
        return "start"
    return "ask" if facts["open"] is None else None


@task.short_circuit(do_xcom_push=False)
def is_under_way(state: str, day: str) -> bool:
    """Whether on a day a release was being rolled out, or launched with its hold-out still open."""
    facts = facts_of(state)
    return facts["open"] is not None and day >= facts["first_day"]


@task.short_circuit(do_xcom_push=False)
def has_queries(audit: str) -> bool:
    """Whether there is anything left to audit."""
    return bool(facts_of(audit)["queries"])


def facts_of(ref: str) -> dict[str, Any]:
    """Return the facts of an artifact."""
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.settings import load_settings

    with refusals_fail():
        settings = load_settings(market=ref.split("/")[0])
        return dict(ArtifactStore(settings.artifacts, settings.cache).open(ref).facts)


def ask(market: MarketConfig, state: XComArg) -> HITLOperator:
    """Ask the market's approvers; no answer in time is a no."""
    policy = market.rollout
    return HITLOperator(
        task_id="ask",
        doc_md="Ask the market's approvers (`rollout.approvers`), under *Required Actions*; no "
        "answer within `rollout.approval_hours` is a no. The release board answers as well; what "
        "`csrm release approve` says counts when this is answered or has timed out.",
        subject=f"Roll out a new release of {market.market}?",
        body=(
            "{{ waiting(ti.xcom_pull('find')) }}\n\nThe release board has its report; a rejected "
            "release is not asked about again."
        ),
        options=[APPROVE, REJECT],
        defaults=REJECT,
        response_timeout=timedelta(hours=policy.approval_hours),
        notifiers=asking(market),
        assigned_users=[{"id": name, "name": name} for name in policy.approvers] or None,
    )


@task.short_circuit(ignore_downstream_trigger_rules=True, do_xcom_push=False)
def is_approved_by_a_person(state: str, answer: dict[str, Any]) -> bool:
    """Record the answer with the name of who gave it; what is not approved by now ends here."""
    return record(state, answer, get_current_context()["run_id"])


def _when(answer: dict[str, Any]) -> str:
    """Return when it was answered (ISO 8601), empty where nothing says so.

    A time comes out of an XCom as a time: Airflow's operator declares its own type in its output.
    """
    at = answer.get("responded_at")
    return at.isoformat() if isinstance(at, datetime) else str(at or "")


def record(state: str, answer: dict[str, Any], run: str) -> bool:
    """Write an answer into the ledger; a yes that nobody gave is none.

    A no that comes too late fails the task with the command that takes the release back.
    """
    from csrm_tasks.markets import load_market
    from csrm_tasks.release.rollout_moves import record_answer as write
    from csrm_tasks.settings import load_settings
    from csrm_tasks.tracking import LaterClient

    name = state.split("/")[0]
    settings = load_settings(market=name)
    market = load_market(name, settings.markets)
    user = answer.get("responded_by_user") or {}
    name = str(user.get("name") or user.get("id") or "")
    said = bool(name) and answer["chosen_options"] == [APPROVE]
    asked = facts_of(state)
    with refusals_fail():
        return write(
            settings, market, LaterClient(settings), asked["candidate"], approved=said, actor=name,
            run=run, verdict=asked["verdict"], said=_when(answer),
        )  # fmt: skip
