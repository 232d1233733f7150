"""What the DAG files share: one task per step, windows from parameters, one DAG per market.

A task renders its inputs (references that came through XCom), runs one step of ``csrm_tasks`` and
returns the reference of what it made. A :class:`csrm_tasks.errors.CsrmError` is final (a retry
would meet the same bad file); anything else is retried, and a store that does not answer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import DAG, Connection, CronDataIntervalTimetable, Param, XComArg, task
from airflow.sdk.exceptions import AirflowFailException
from csrm_windows import day_of, week_end

from csrm_tasks.errors import AwayError, ConfigError, CsrmError
from csrm_tasks.markets import MarketConfig, load_market, load_markets
from csrm_tasks.settings import load_settings
from csrm_tasks.steps.docs import task_doc

log = logging.getLogger("csrm")
START = datetime(2025, 1, 1)  # no run before; past windows are run by hand or by backfill
WEB = ("http", "https")
RETRIES = {"retries": 2, "retry_delay": timedelta(seconds=10)}

DAY = Param(
    None,
    type=["null", "string"],
    pattern=r"^\d{4}-\d{2}-\d{2}$",
    description="Day to ingest, YYYY-MM-DD; empty: the market's day on which the interval starts.",
)
UNTIL = Param(
    type="string",
    pattern=r"^\d{4}-\d{2}-\d{2}$",
    description="Last day of the snapshot, YYYY-MM-DD.",
)
WEEK = Param(
    None,
    type=["null", "string"],
    pattern=r"^\d{4}-W(0[1-9]|[1-4]\d|5[0-3])$",
    description="ISO week to train up to, YYYY-Www; empty: the week of the run's data interval.",
)


def markets() -> list[MarketConfig]:
    """Return every market of this installation."""
    return load_markets(load_settings().markets)


def releasing() -> list[MarketConfig]:
    """Return the markets that release something: those that learn relevance (docs/TASKS.md)."""
    return [market for market in markets() if "relevance" in market.tasks]


def market_dag(
    name: str,
    market: MarketConfig,
    build: Callable[[MarketConfig], None],
    *,
    doc: str | None,
    schedule: str | None,
    params: Mapping[str, Param],
) -> DAG:
    """Return the DAG ``{name}__{market}`` with the tasks that ``build`` wires.

    A cron schedule, by the clocks of the market's time zone, gives each run the interval that has
    just ended as its window.
    """
    zone = market.schedule.timezone
    with DAG(
        dag_id=f"{name}__{market.market}",
        doc_md=doc,
        schedule=CronDataIntervalTimetable(schedule, timezone=zone) if schedule else None,
        start_date=START,
        catchup=False,
        max_active_runs=1,
        params=dict(params),
        default_args=RETRIES,
        user_defined_macros={
            "day_of": partial(day_of, zone=zone),
            "week_end": partial(week_end, zone=zone),
        },
        tags=["csrm", market.market],
    ) as dag:
        build(market)
    explain(dag)
    return dag


def explain(dag: DAG) -> None:
    """Have each task's page say what its step does, reads and makes, and what to do if it fails.

    Tasks that run no step have the docstring of their function, as Airflow sets it.
    """
    for one in dag.tasks:
        given = (one.partial_kwargs if one.is_mapped else vars(one)).get("op_kwargs") or {}
        if "step" not in given:
            continue
        doc = task_doc(given["step"], given["inputs"])
        if one.is_mapped:
            one.partial_kwargs["doc_md"] = doc
        else:
            one.doc_md = doc


@task
def run(
    step: str, market: str, inputs: dict[str, Any], options: dict[str, Any], connection: str = ""
) -> str:
    """The body of every task: run one step and return the reference of its artifact.

    ``options`` are the step's parameters (Airflow maps no argument that is called params). A step
    that asks an endpoint finds address and token of ``connection`` in its environment.
    """
    from csrm_tasks.steps import run_step

    with refusals_fail():
        if connection:
            os.environ |= endpoint_of(Connection.get(connection))
        return run_step(step, market, {k: reference(v) for k, v in inputs.items()}, options)


@contextmanager
def refusals_fail() -> Iterator[None]:
    """Let what is wrong or refused fail the task at once, in words: a retry would meet the same."""
    try:
        yield
    except AwayError:
        raise  # what did not answer may answer soon
    except CsrmError as e:
        raise AirflowFailException(str(e)) from e
    except Exception as e:
        from csrm_tasks.release import away, denied

        who = denied.by(e)
        if who is None:
            raise
        raise AirflowFailException(away.trouble(who, e)) from e


def tasks_of(market: MarketConfig) -> Callable[..., XComArg]:
    """Return ``task(step, task_id, **given)``, which adds one task of this market to the DAG.

    What earlier tasks returned (and :func:`fact`, and lists of them) are the step's inputs;
    plain values are its parameters. The task is called as its step unless ``task_id`` says else.
    ``rule`` is its trigger rule, ``connection`` that of an endpoint it asks.
    """

    def add(step: str, task_id: str = "", /, **given: object) -> XComArg:
        about = {"connection": given.pop("connection")} if "connection" in given else {}
        rule = given.pop("rule", "all_success")
        params = {k: v for k, v in given.items() if isinstance(v, (str, int, float))}
        inputs = {k: v for k, v in given.items() if k not in params}
        one = run.override(task_id=task_id or step, trigger_rule=rule)
        return one(step=step, market=market.market, inputs=inputs, options=params, **about)

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
    market: MarketConfig, task: Callable[..., XComArg], **given: object
) -> dict[str, XComArg]:
    """Return negatives of train queries as an input of trainings, where the market adds some."""
    if not market.llm.negatives.per_query:
        return {}
    return {"negatives": task("mine_negatives", **given)}


def tasks_judged_of(
    market: MarketConfig, task: Callable[..., XComArg], **given: object
) -> dict[str, XComArg]:
    """Return the judgement of the tasks besides relevance as an input of the gate, where there are
    any. ``given``: the snapshot, the LLM and the champion's.
    """
    return {"task_evaluation": task("evaluate_tasks", **given)} if market.binary_tasks else {}


def endpoint_of(connection: Connection) -> dict[str, str]:
    """Return the environment of a step that asks an endpoint: its base URL and its token.

    As a URI the connection is the base URL with the token as password (``https://:token@host/v1``):
    Airflow then holds the scheme as its type and the path as its schema. As fields its host is a
    whole URL, or a host name with schema (http or https), type and port as Airflow's HTTP hook
    reads them. Where nothing says so, it is https and ``/v1``. Airflow keeps the password out of
    logs. Raises :class:`ConfigError` where there is no host.
    """
    host, schema = (connection.host or "").strip(), (connection.schema or "").strip("/ ")
    if not host:
        raise ConfigError("the connection has no host: give it as https://:token@host/v1")
    scheme = schema if schema in WEB else connection.conn_type
    path = "" if schema in WEB else schema
    if "://" in host:
        found = urlsplit(host)
        scheme, host, path = found.scheme, found.netloc, found.path.strip("/") or path
    elif ":" in host:
        host = f"[{host}]"  # an address of IPv6
    if connection.port and urlsplit(f"//{host}").port is None:
        host = f"{host}:{connection.port}"
    url = f"{scheme if scheme in WEB else 'https'}://{host}/{path or 'v1'}"
    return {"CSRM_LLM_URL": url, "CSRM_LLM_TOKEN": connection.password or ""}


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
