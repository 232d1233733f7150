"""Telling people about runs: what Airflow calls when one fails, is late, asks or has ended well.

A module of the plugin folder, as every component of Airflow can import from there: a task that
failed notes its error (worker), the run's failure is told once with the first of them
(dag-processor), a deadline that passed is told by the triggerer. What is said and how it is sent:
``csrm_tasks/notify``. Nothing here may fail or hold up a run: trouble is one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import AsyncCallback, BaseNotifier, Connection, DeadlineAlert, DeadlineReference
from airflow.sdk.configuration import conf

from csrm_tasks.errors import ConfigError, CsrmError
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.settings import Settings, load_settings

if TYPE_CHECKING:
    from airflow.sdk import DAG, Context

    from csrm_tasks.notify.messages import Cause, Message, Run
    from csrm_tasks.notify.sending import Target

log = logging.getLogger("csrm")
CAUSE = "csrm_cause"  # XCom of a task that failed: when, and its error
WEEKLY = ("csrm_retrain", "csrm_cold_start")
ENDED = ("success", "failed")
Build = Callable[[set[str]], "Message | None"]  # of what may not be said


def watched(market: MarketConfig, name: str) -> dict[str, Any]:
    """Return the arguments of a DAG that has somebody told, by its name without the market."""
    notify = market.notify
    if notify.connection is None:
        return {}
    given: dict[str, Any] = {}
    if "failed" in notify.events:
        given["on_failure_callback"] = partial(run_failed, market=market.market)
    if "no_promotion" in notify.events and name == "csrm_refresh":
        given["on_success_callback"] = partial(nothing_promoted, market=market.market)
    if "late" in notify.events and not _is_dags_test():
        hours = notify.week_hours if name in WEEKLY else notify.night_hours
        if name == "csrm_rollout" and market.release.approval == "manual":
            hours += market.rollout.approval_hours  # a person may take so long
        given["deadline"] = DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=timedelta(hours=hours),
            callback=AsyncCallback(
                "csrm_notify.run_late", {"market": market.market, "hours": hours}
            ),
            name="late",
        )
    return given


def _is_dags_test() -> bool:
    """Whether this process is ``airflow dags test``.

    In 3.3.2 it looks a deadline up by the alert itself where an id is asked for, and so ends a run
    that has one, and succeeds, with an error of the database. Nobody waits for a run of it.
    """
    return sys.argv[1:3] == ["dags", "test"]


def of_tasks(market: MarketConfig) -> dict[str, Any]:
    """Return the arguments of every task of a market that has somebody told."""
    wanted = market.notify.connection is not None and "failed" in market.notify.events
    return {"on_failure_callback": note_cause} if wanted else {}


def note_cause(context: Context) -> None:
    """Keep a failed task's error for the run's message; a killed one has none."""
    from csrm_tasks.notify.masking import one_line, secrets_of
    from csrm_tasks.notify.messages import ERROR

    error = context.get("exception")
    if error is None:
        return
    said = str(error) if _is_ours(error) else f"{type(error).__name__}: {error}"
    line = one_line(said, ERROR, secrets_of(os.environ))
    try:
        context["ti"].xcom_push(CAUSE, {"at": _now().isoformat(timespec="seconds"), "error": line})
    except Exception as e:  # noqa: BLE001
        log.warning("notify: the error could not be noted (%s)", type(e).__name__)


def run_failed(context: Context, market: str) -> None:
    """Tell once that a run failed."""

    def build(secrets: set[str]) -> Message:
        from csrm_tasks.notify.messages import advice, failed

        doc = context["dag"].doc_md or ""
        return failed(_run(context, market), [*causes(context)], advice(doc), secrets)

    _tell(market, build)


async def run_late(market: str, hours: int, context: Mapping[str, Any] | None = None) -> None:
    """Tell once that a run has not ended in time. One that failed is told of by its failure.

    Airflow keeps the deadline of a run that failed and calls when it passes.
    """
    facts = (context or {}).get("dag_run") or {}
    state, kind = str(facts.get("state")), str(facts.get("run_type"))
    if not facts or state in ENDED or kind == "backfill":
        return

    def build(secrets: set[str]) -> Message:
        from csrm_tasks.notify.messages import Run, late

        dag, run = str(facts["dag_id"]), str(facts["dag_run_id"])
        return late(Run(market, dag, run, link=link_to(dag, run)), hours, state, secrets)

    try:
        config = load_market(market, load_settings(market=market).markets)
        found = await Connection.async_get(config.notify.connection)
    except Exception as e:  # noqa: BLE001
        _unread(e)
        return
    await asyncio.to_thread(_tell, market, build, found)


def nothing_promoted(context: Context, market: str) -> None:
    """Tell where the live release is older than the market expects."""
    if str(getattr(context.get("dag_run"), "run_type", "")) == "backfill":
        return

    def build(secrets: set[str]) -> Message | None:
        from csrm_tasks.notify.messages import no_promotion
        from csrm_tasks.release import ledger

        settings = load_settings(market=market)
        limit = load_market(market, settings.markets).notify.no_promotion_days
        row = ledger.last_live_row(ledger.history(settings, market))
        days = 0 if row is None else (_now() - ledger.moment(row.at)).days
        if row is None or days < limit:
            return None
        return no_promotion(_run(context, market), row.release_id, days, limit, secrets)

    _tell(market, build)


class Asked(BaseNotifier):
    """Tells that a release waits for approval, when it is asked about."""

    def __init__(self, market: str) -> None:
        super().__init__()
        self.market = market

    def notify(self, context: Context) -> None:
        """Tell once for every release and run."""

        def build(secrets: set[str]) -> Message | None:
            from csrm_tasks.artifacts import ArtifactStore
            from csrm_tasks.notify.messages import approval

            settings = load_settings(market=self.market)
            state = context["ti"].xcom_pull(task_ids="find")
            facts = ArtifactStore(settings.artifacts, settings.cache).open(state).facts
            hours = load_market(self.market, settings.markets).rollout.approval_hours
            run, reasons = _run(context, self.market), str(facts.get("reasons", ""))
            return approval(run, str(facts["candidate"]), reasons, hours, secrets)

        _tell(self.market, build)


def asking(market: MarketConfig) -> list[BaseNotifier]:
    """Return who is told when a market's approvers are asked."""
    wanted = market.notify.connection is not None and "approval" in market.notify.events
    return [Asked(market.market)] if wanted else []


def causes(context: Context) -> Iterator[Cause]:
    """Yield the tasks of a run that failed, with what they noted."""
    from csrm_tasks.notify.messages import Cause

    ti = context.get("ti")
    if ti is None:  # the run was ended from outside, or the DAG is another by now
        return
    try:
        states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id])[ti.run_id]
        ended = [
            t for t, state in states.items() if str(getattr(state, "value", state)) == "failed"
        ]
        for task_id, index in (_instance(context["dag"], name) for name in sorted(ended)):
            noted = ti.xcom_pull(task_ids=task_id, key=CAUSE, map_indexes=index) or {}
            name = task_id if index < 0 else f"{task_id}[{index}]"
            yield Cause(name, str(noted.get("at", "")), str(noted.get("error", "")))
    except Exception as e:  # noqa: BLE001 better the last task that failed than no message
        log.warning("notify: what tasks noted cannot be read (%s)", type(e).__name__)
        yield Cause(ti.task_id)


def _instance(dag: DAG, name: str) -> tuple[str, int]:
    """Return task and map index of a name among the states: ``task_3`` of mapped ones."""
    head, _, index = name.rpartition("_")
    if dag.has_task(name) or not (index.isdecimal() and dag.has_task(head)):
        return name, -1
    return head, int(index)


def link_to(dag: str, run: str) -> str:
    """Return the address of a run in Airflow, where Airflow's own is set (``api.base_url``)."""
    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    return f"{base}/dags/{quote(dag)}/runs/{quote(run, safe='')}" if base else ""


def _run(context: Context, market: str) -> Run:
    from csrm_tasks.notify.messages import Run

    dag, run = context["dag"].dag_id, str(context["run_id"])
    attempt = int(getattr(context.get("dag_run"), "clear_number", 0) or 0)
    return Run(market, dag, run, attempt, link_to(dag, run))


def _tell(market: str, build: Build, connection: Connection | None = None) -> None:
    """Build a message and send it once; trouble of any kind is one line in the log."""
    from csrm_tasks.blobs import open_blobs
    from csrm_tasks.notify import once, sending
    from csrm_tasks.notify.masking import secrets_of

    try:
        settings = load_settings(market=market)
        target = _target(settings, market, connection)
        message = build(secrets_of(os.environ) | target.secrets)
        if message is not None:
            blobs, send = open_blobs(settings.routing), partial(sending.send, target)
            sending.within(sending.ALL, lambda: once.deliver(blobs, message, send))
    except Exception as e:  # noqa: BLE001
        _unread(e)


def _target(settings: Settings, market: str, connection: Connection | None) -> Target:
    """Return where the market's messages go; raises where its connection is missing or unfit."""
    from csrm_tasks.connections import address_of
    from csrm_tasks.notify import sending

    notify = load_market(market, settings.markets).notify
    found = connection or Connection.get(str(notify.connection))
    login, password = found.login or "", found.password or ""
    extra = {} if not found.extra else found.extra_dejson
    if found.conn_type in sending.MAIL:
        return sending.mail(found.host or "", found.port, login, password, extra, notify.to)
    where = address_of(found.conn_type, found.host, found.schema, found.port, login, password)
    return sending.webhook(where.url, where.login, where.password, extra)


def _is_ours(error: BaseException) -> bool:
    return isinstance(error, CsrmError) or type(error).__name__ == "AirflowFailException"


def _unread(error: Exception) -> None:
    """Say that nobody was told, without an error's own text, which may hold an address."""
    from csrm_tasks.notify.sending import NotSentError

    told = isinstance(error, (ConfigError, NotSentError))
    said = str(error) if told else type(error).__name__
    log.warning("notify: nobody was told: %s (csrm doctor looks at notify.connection)", said)


def _now() -> datetime:
    return datetime.now(UTC)
