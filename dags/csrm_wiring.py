"""What the DAG files share: one task per step, windows from parameters, one DAG per market.

A task renders its inputs (references that came through XCom), runs one step of ``csrm_tasks`` and
returns the reference of what it made. How often it is tried again: :mod:`csrm_faults`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from airflow.sdk import DAG, Connection, CronDataIntervalTimetable, Param, XComArg, task
from airflow.sdk.exceptions import AirflowSkipException
from csrm_assets import PUBLISHING, announce, days_of, note_made, on_days
from csrm_faults import refusals_fail
from csrm_limits import every_task, examined, limits_of, owner_links, watched
from csrm_pages import explain
from csrm_windows import asked, day_of, kind_of, week_end, withheld
from csrm_workers import place

from csrm_tasks.connections import address_of
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.sections import WeekOfDays
from csrm_tasks.settings import load_settings
from csrm_tasks.steps.asked import REUSABLE
from csrm_tasks.steps.classes import RELEASING

log = logging.getLogger("csrm")
ASKED = "{{ asked(params, dag_run) }}"  # what every step is told of its run
START = datetime(2025, 1, 1)  # no run before; past windows are run by hand or by backfill

DATE: dict[str, Any] = {"format": "date", "pattern": r"^20\d{2}-\d{2}-\d{2}$"}  # a real one
DAY = Param(
    None,
    type=["null", "string"],
    title="Day",
    description="Day that the run is for, YYYY-MM-DD; empty: the market's day on which the "
    "interval starts.",
    **DATE,
)
UNTIL = Param(
    type="string",
    title="Until",
    description="Last day of the snapshot, YYYY-MM-DD.",
    **DATE,
)
WEEK = Param(
    None,
    type=["null", "string"],
    pattern=r"^20\d{2}-W(0[1-9]|[1-4]\d|5[0-3])$",
    title="Week",
    description="ISO week to train up to, YYYY-Www; empty: the week of the run's data interval.",
)
DRY_RUN = Param(
    False,
    type="boolean",
    title="Dry run",
    description="Train and judge only: nothing is registered or promoted.",
)


def markets() -> list[MarketConfig]:
    """Return the markets of this installation that can have DAGs."""
    return examined()[0]


def releasing() -> list[MarketConfig]:
    """Return the markets that release something: those that learn relevance (docs/TASKS.md)."""
    return [market for market in markets() if "relevance" in market.tasks]


def market_dag(
    name: str,
    market: MarketConfig,
    build: Callable[[MarketConfig], None],
    *,
    doc: str | None,
    schedule: str | WeekOfDays | None,
    params: Mapping[str, Param],
) -> DAG:
    """Return the DAG ``{name}__{market}`` with the tasks that ``build`` wires.

    A cron schedule, by the clocks of the market's time zone, gives each run the interval that has
    just ended as its window; one by days the week whose days they are.
    """
    zone = market.schedule.timezone
    if isinstance(schedule, str):
        timetable: Any = CronDataIntervalTimetable(schedule, timezone=zone)
    else:
        timetable = on_days(market, schedule) if schedule else None
    with DAG(
        dag_id=f"{name}__{market.market}",
        doc_md=doc,
        schedule=timetable,
        start_date=START,
        catchup=False,
        max_active_runs=1,
        params=dict(params),
        default_args=every_task(market),
        owner_links=owner_links(market),
        **watched(market, name),
        user_defined_macros={
            "asked": partial(asked, market=market, known=frozenset(params)),
            "withheld": partial(withheld, market=market),
            "kind_of": kind_of,
            "waiting": waiting,
            "day_of": partial(day_of, zone=zone),
            "week_end": partial(week_end, zone=zone, by_days=isinstance(schedule, WeekOfDays)),
        },
        tags=["csrm", market.market],
    ) as dag:
        build(market)
    explain(dag)
    place(dag, market)
    return dag


def waiting(state: str) -> str:
    """Return which release waits, and why the gate let it pass: what a person is asked about."""
    from csrm_approval import facts_of  # brings Airflow's operator, which one DAG of all needs

    facts = facts_of(state)
    return f"`{facts['candidate']}`. The gate let it pass: {facts.get('reasons', '')}"


@task
def run(
    step: str, market: str, inputs: dict[str, Any], options: dict[str, Any], connection: str = "",
    withheld: str = "", asked: str = "", stage: str = "", same: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """The body of every task: run one step and return the reference of its artifact.

    ``options`` are the step's parameters (Airflow maps no argument that is called params), ``same``
    those that mapped tasks share, in which templates are rendered. A step that asks an endpoint
    finds address and token of ``connection`` in its environment. ``withheld`` says why this run
    releases nothing, if so: the task and what is after it are skipped. ``asked``: what the run asks
    for otherwise than the market's file, of which ``stage`` takes its part.
    """
    from csrm_tasks.steps import run_step
    from csrm_tasks.steps.asked import from_text

    if withheld:
        raise AirflowSkipException(f"{step} is skipped: {withheld}")
    with refusals_fail(step):
        if connection:
            os.environ |= endpoint_of(Connection.get(connection))
        given = {k: reference(v) for k, v in inputs.items()}
        told = replace(from_text(asked), task=stage)
        made = run_step(step, market, given, (same or {}) | options, asked=told)
        if step == PUBLISHING:
            announce(market, options["day"])
    note_made(made)
    return made


def tasks_of(market: MarketConfig) -> Callable[..., XComArg]:
    """Return ``task(step, task_id, **given)``, which adds one task of this market to the DAG.

    What earlier tasks returned (and :func:`fact`, and lists of them) are the step's inputs;
    plain values are its parameters. The task is called as its step unless ``task_id`` says else.
    ``rule`` is its trigger rule, ``connection`` that of an endpoint it asks.
    """

    def add(step: str, task_id: str = "", /, **given: object) -> XComArg:
        about = {"connection": given.pop("connection")} if "connection" in given else {}
        if step in RELEASING:
            about["withheld"] = "{{ withheld(params, dag_run) }}"
        rule = given.pop("rule", "all_success")
        params = {k: v for k, v in given.items() if isinstance(v, (str, int, float))}
        inputs = {k: v for k, v in given.items() if k not in params}
        name = task_id or step
        about |= {"stage": name} if step in REUSABLE else {}
        more = {"outlets": [days_of(market.market)]} if step == PUBLISHING else {}
        more |= limits_of(market, step)
        one = run.override(task_id=name, trigger_rule=rule, **more)
        of = {"step": step, "market": market.market, "asked": ASKED}
        return one(**of, inputs=inputs, options=params, **about)

    return add


def peers_of(
    market: MarketConfig, task: Callable[..., XComArg], snap: XComArg, rqa: XComArg
) -> dict[str, XComArg]:
    """Return the gold scores of what the paper compares with, where the market asks for it."""
    controls = market.controls
    found = {}
    if controls.encoder:
        found["encoder"] = task("baseline_encoder", snapshot=snap, encoder=controls.encoder)
    if controls.prompt:
        given: dict[str, Any] = {"snapshot": snap, "rqa": rqa, "model": controls.prompt}
        if controls.prompt_connection:
            given |= {"remote": True, "connection": controls.prompt_connection}
        found["prompt"] = task("baseline_prompt", **given)
    return found


def controls_of(
    market: MarketConfig, task: Callable[..., XComArg], snap: XComArg, llm: XComArg
) -> dict[str, XComArg]:
    """Return the control arms that an evaluation tells beside the models, as the market asks."""
    found = {}
    if market.controls.rqa_off:
        found["alone"] = task("score_pairs", "score_alone", split="gold", snapshot=snap, llm=llm)
    if market.controls.leave_out:
        found["leave_out"] = task("leave_out", snapshot=snap)
        llm >> found["leave_out"]  # nothing waits for it: beside the towers, not in front of them
    return found


def pretrained_of(
    market: MarketConfig, task: Callable[..., XComArg], **given: object
) -> dict[str, XComArg]:
    """Return stage 0 as an input of every training of the LLM, where the market has one.

    ``given``: its snapshot and, in a retraining, the live LLM, whose stage 0 it goes on with.
    """
    if not market.llm.pretraining.steps:
        return {}
    return {"pretrained": task("pretrain_llm", **given)}


def negatives_of(
    market: MarketConfig, task: Callable[..., XComArg], step: str = "mine_negatives", /,
    **given: object,
) -> dict[str, XComArg]:  # fmt: skip
    """Return negatives of train queries as an input of trainings, where the market adds some."""
    if not market.llm.negatives.per_query:
        return {}
    return {"negatives": task(step, **given)}


def tasks_judged_of(
    market: MarketConfig, task: Callable[..., XComArg], **given: object
) -> dict[str, XComArg]:
    """Return the judgement of the tasks besides relevance as an input of the gate, where there are
    any. ``given``: the snapshot, the LLM and the champion's.
    """
    return {"task_evaluation": task("evaluate_tasks", **given)} if market.binary_tasks else {}


def endpoint_of(connection: Connection) -> dict[str, str]:
    """Return the environment of a step that asks an endpoint: its base URL and its token.

    Where the connection has no path it is ``/v1``. Airflow keeps the password out of logs. Raises
    :class:`ConfigError` where there is no host.
    """
    c = connection
    found = address_of(c.conn_type, c.host, c.schema, c.port, c.login, c.password, "v1")
    return {"CSRM_LLM_URL": found.url, "CSRM_LLM_TOKEN": found.password}


def fact(of: XComArg, name: str) -> dict[str, Any]:
    """Return an input that is a reference held in the facts of ``of`` (the live release's LLM)."""
    return {"of": of, "fact": name}


def reference(value: object) -> object:
    """Turn a rendered input into what ``run_step`` takes: a reference, a list of them, or None."""
    if isinstance(value, Mapping):
        return f"{value['of']}#{value['fact']}"
    if isinstance(value, Sequence) and not isinstance(value, str):  # a list, or of mapped tasks
        return [reference(v) for v in value]
    return value


@task.short_circuit(do_xcom_push=False)
def is_approved(gate: str) -> bool:
    """Whether a registered release may go live: verdict PASS and, where a market asks, approval.

    Otherwise nothing after it runs and the run ends well: a verdict is data, not an error. Once
    somebody has approved (``csrm release approve``), clear this task. Where a market rolls out by
    steps, ``csrm_rollout`` goes on from here.
    """
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.release import guard, ledger

    with refusals_fail():
        settings = load_settings(market=gate.split("/")[0])
        verdict = ArtifactStore(settings.artifacts, settings.cache).open(gate).facts
        market = load_market(gate.split("/")[0], settings.markets)
        why_not = guard.why_not_now(market, ledger.verified(settings, market.market), verdict)
    if why_not:
        log.warning(why_not)
    return not why_not


@task.short_circuit(do_xcom_push=False)
def is_applied(replayed: str) -> bool:
    """Whether a replay stored what it found good; after a dry run nothing else runs."""
    from csrm_tasks.artifacts import ArtifactStore

    with refusals_fail():
        settings = load_settings(market=replayed.split("/")[0])
        facts = ArtifactStore(settings.artifacts, settings.cache).open(replayed).facts
        return bool(facts["applied"])
