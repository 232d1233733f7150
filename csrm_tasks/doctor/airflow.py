"""Airflow: login, its components, DAG files without an error, each market's DAGs, its version.

``CSRM_AIRFLOW_URL`` says where, and as whom: ``http://user:password@host:8080``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit

from csrm_tasks.airflow_api import AirflowApi
from csrm_tasks.doctor.findings import Asked, Finding, Said, address, explained
from csrm_tasks.errors import ConfigError, CsrmError
from csrm_tasks.markets import load_market

say = Said("airflow")
VARIABLE = "CSRM_AIRFLOW_URL"
FORM = "http://user:password@host:8080"
SECONDS = 10.0
SCHEDULED = ("ingest", "retrain", "refresh", "rollout")
DAGS = ("csrm_ingest", "csrm_replay", "csrm_retrain")
RELEASING = ("csrm_cold_start", "csrm_drill", "csrm_refresh", "csrm_rollback", "csrm_rollout")
# What is at a standstill without the component
NEEDED = {
    "scheduler": "no task starts",
    "dag_processor": "no DAG file is read",
    "triggerer": "nobody is asked for an approval",
}


def airflow(asked: Asked) -> Iterator[Finding]:
    """Check the Airflow of ``CSRM_AIRFLOW_URL``."""
    given = os.environ.get(VARIABLE, "")
    if not given:
        yield say.skipped(f"{VARIABLE} is not set; {FORM} has it looked at")
        return
    where, api = _api(given)
    components = api.components()
    yield say.ok(f"{where} answers")
    for name, stands_still in NEEDED.items():
        if components.get(name) != "healthy":
            level = say.warning if name == "triggerer" else say.fault
            command = name.replace("_", "-")
            said = f"the {command} does not run: {stands_still}"
            yield level(said, f"start it (airflow {command}), or see its log")
    yield from _version(api)
    yield from _files(api)
    for market in asked.markets:
        yield from _market(api, asked, market)


def _api(given: str) -> tuple[str, AirflowApi]:
    head, _, rest = given.rpartition("@")
    scheme, _, login = head.partition("://")
    if scheme not in ("http", "https") or not login or not urlsplit(f"//{rest}").hostname:
        raise ConfigError(f"{VARIABLE} is no address with a login; use {FORM}")
    user, _, password = login.partition(":")
    url = f"{scheme}://{rest.rstrip('/')}"
    api = AirflowApi(url, unquote(user), unquote(password), tries=1, timeout=SECONDS)
    return address(url), api


def _version(api: AirflowApi) -> Iterator[Finding]:
    """Yield whether the server's version is the one that is installed here."""
    theirs = str(api.request("GET", "/version")["version"])
    try:
        ours = version("apache-airflow-core")
    except PackageNotFoundError:
        yield say.ok(f"it lets us in; Airflow {theirs} (none is installed here)")
        return
    if theirs != ours:
        yield say.warning(
            f"the server is Airflow {theirs}, the one installed here {ours}",
            "install one version on every machine (locks/)",
        )
    else:
        yield say.ok(f"it lets us in; Airflow {theirs}, as here")


def _files(api: AirflowApi) -> Iterator[Finding]:
    errors = api.request("GET", "/importErrors")["import_errors"]
    for one in errors:
        yield say.fault(
            f"{one['filename']} cannot be loaded by the dag-processor",
            "airflow dags list-import-errors says why; its extras must be installed there",
        )
    if not errors:
        yield say.ok("DAG files are loaded without an error")


def _market(api: AirflowApi, asked: Asked, market: str) -> Iterator[Finding]:
    """Yield which of a market's DAGs are not there, or do not run by themselves."""
    try:
        config = load_market(market, asked.settings.markets)
    except CsrmError:
        return  # of that the check of bases tells
    names = (*DAGS, *RELEASING) if "relevance" in config.tasks else DAGS  # docs/TASKS.md
    found = {name: api.request("GET", f"/dags/{name}__{market}", none_for=404) for name in names}
    lost = [name for name, dag in found.items() if dag is None]
    if lost:
        yield say.fault(
            f"market {market}: {', '.join(lost)} are not there",
            "let the dag-processor read dags/, with this market's file in its CSRM_MARKETS",
        )
    scheduled = {f"csrm_{n}" for n in SCHEDULED if getattr(config.schedule, n) is not None}
    paused = sorted(n for n in scheduled if (dag := found.get(n)) and dag["is_paused"])
    if paused:
        yield say.warning(
            f"market {market}: {', '.join(paused)} are paused and do not run by their schedule",
            "unpause them in Airflow when the market is meant to run",
        )
    if not lost and not paused:
        yield say.ok(f"market {market}: its {len(names)} DAGs are there")
    for key, name in (
        ("controls.prompt_connection", config.controls.prompt_connection),
        ("notify.connection", config.notify.connection),
    ):
        yield from _connection(api, key, name, market)
    pools = {"schedule.training_pool": config.schedule.training_pool}
    pools |= {f"workers.{name}.pool": worker.pool for name, worker in config.workers.items()}
    for key, name in pools.items():
        yield from _pool(api, key, name, market)


def _connection(api: AirflowApi, key: str, name: str | None, market: str) -> Iterator[Finding]:
    if name and not _has(api, "connections", name):
        yield say.warning(
            f"market {market}: Airflow shows no connection {name!r} ({key})",
            "add it, unless a secrets backend or the workers' environment has it",
        )


def _pool(api: AirflowApi, key: str, name: str | None, market: str) -> Iterator[Finding]:
    if name and not _has(api, "pools", name):
        yield say.fault(
            f"market {market}: Airflow has no pool {name!r} ({key}), so that none of the tasks in "
            "it ever starts",
            f"airflow pools set {name} 1 'tasks at once'",
        )


def _has(api: AirflowApi, kind: str, name: str) -> bool:
    return api.request("GET", f"/{kind}/{quote(name, safe='')}", none_for=404) is not None


def in_words(error: BaseException, asked: Asked) -> tuple[str, str]:
    """Return what an error of this check means, and the cure."""
    del asked
    where = f"Airflow {address(os.environ.get(VARIABLE, ''))}"
    cause = error.__cause__ if isinstance(error, CsrmError) else error
    if isinstance(cause, HTTPError):
        if cause.code in (401, 403):
            return (
                f"{where} does not let us in, or not look at that ({cause.code})",
                f"correct user and password in {VARIABLE}, or give the user a role that may read",
            )
        return f"{where} answers {cause.code}", f"see whether {VARIABLE} leads to Airflow's API"
    if isinstance(cause, URLError) and isinstance(cause.reason, Exception):
        cause = cause.reason
    return explained(error if cause is None else cause, where)
