"""Alert rules and dashboard: each query parses, and selects what a real service shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from csrm_tasks.sections import Serving
from csrm_tasks.serving.alarms import Kind
from csrm_tasks.serving.app import Service
from csrm_tasks.settings import load_settings
from tests.serving_fixtures import document, release, route, serving

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "docker/prometheus"
DASHBOARDS = sorted((ROOT / "docker/grafana/dashboards").glob("*.json"))
# What Prometheus itself adds: a series of each target, and of each alert that fires
OWN = {"up": {"job", "instance", "market"}, "ALERTS": {"alertname", "alertstate"}}
TARGET = {"job": "csrm-serving", "instance": "serving:8090", "market": "demo"}
SECONDS = {"$__rate_interval": "1m"}  # variables of Grafana
VALUES = {"$market": "demo"}

Series = tuple[str, Mapping[str, str]]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [p for path in DASHBOARDS for p in json.loads(path.read_text())["panels"]]


@cache
def queries() -> dict[str, str]:
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


def selectors(query: str) -> list[promql.VectorSelector]:
    for name, value in (SECONDS | VALUES).items():
        query = query.replace(name, value)
    found: list[promql.VectorSelector] = []

    def look(node: object) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append(node)

    promql.walk(promql.parse(query), look)
    return found


def selects(selector: promql.VectorSelector, series: Series) -> bool:
    """Whether a selector takes a series; as Prometheus does, by whole values."""
    name, labels = series
    if selector.name != name:
        return False
    for matcher in selector.matchers.matchers:
        value = labels.get(matcher.name, "")
        if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual):
            hit = value == matcher.value
        else:
            hit = re.fullmatch(matcher.value, value) is not None
        if hit != (matcher.op in (promql.MatchOp.Equal, promql.MatchOp.Re)):
            return False
    return True


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> list[Series]:
    """What a service shows that was asked before it was ready, and has every kind of alarm."""
    settings = load_settings({"CSRM_HOME": str(tmp_path_factory.mktemp("scraped"))})
    old, new = release(settings, "a"), release(settings, "b")
    asked = {"query": "1", "products": ["p0", "p1", "fresh"], "session_id": "s1"}
    with serving(settings) as (client, service):
        assert client.post("/rank", json=asked).status_code == 503
        found = document(old, next=new[0], shadow=True, bundles=dict([old, new]), seq=2)
        route(settings, found)
        service.follower.poll()
        for _ in range(2):
            assert client.post("/rank", json=asked).status_code == 200
        assert client.post("/score", json=asked | {"products": ["p0"]}).status_code == 200
        fail(service, old[0])
        with pytest.raises(RuntimeError, match="lost"):
            client.post("/rank", json=asked)
        for kind in get_args(Kind):
            service.alarms.raise_(kind, OSError("gone"))
        text = client.get("/metrics").text
    families = text_string_to_metric_families(text)
    return [(s.name, s.labels | TARGET) for family in families for s in family.samples]


def fail(service: Service, name: str) -> None:
    async def lost(*_: object) -> None:
        raise RuntimeError("lost")

    state = service.follower.state
    assert state is not None
    object.__setattr__(state.releases[name], "score", lost)


@pytest.mark.parametrize("name", queries())
def test_a_query_selects_series_that_the_service_shows(name: str, scraped: list[Series]) -> None:
    found = selectors(queries()[name])
    assert found
    for selector in found:
        if selector.name in OWN:
            assert {m.name for m in selector.matchers.matchers} <= OWN[selector.name]
        else:
            assert any(selects(selector, series) for series in scraped), str(selector)


@pytest.mark.parametrize(
    ("query", "taken"),
    [
        ('csrm_answers_total{outcome="failed", arm=~"stable|next"}', True),
        ('csrm_answers_total{outcome="broken"}', False),
        ('csrm_answers_total{arm=~"stab"}', False),
        ('csrm_answers_total{outcome!~"failed|answered"}', False),
        ("csrm_answers", False),
        ('rate(csrm_requests_total{status=~"5.."}[5m])', True),
        ('rate(csrm_requests_total{status!~".*"}[5m])', False),
    ],
)
def test_a_selector_of_what_no_service_shows_is_noticed(
    query: str, taken: bool, scraped: list[Series]
) -> None:
    (selector,) = selectors(query)
    assert any(selects(selector, series) for series in scraped) is taken


def test_every_metric_of_the_service_is_in_an_alert_or_on_the_dashboard(
    scraped: list[Series],
) -> None:
    shown = {re.sub(r"_(created|sum|count|bucket)$", "", name) for name, _ in scraped}
    shown = {name for name in shown if f"{name}_total" not in shown}  # of its _created
    used = {s.name for query in queries().values() for s in selectors(query)}
    assert shown == {re.sub(r"_(sum|count|bucket)$", "", str(u)) for u in used} - OWN.keys()


def test_every_kind_of_alarm_has_an_alert() -> None:
    asked = {
        m.value
        for rule in rules()
        for s in selectors(rule["expr"])
        if s.name == "csrm_alarm"
        for m in s.matchers.matchers
        if m.name == "kind"
    }
    assert asked == set(get_args(Kind))


def test_every_alert_says_what_to_do_where_it_leads() -> None:
    text = (ROOT / "docs/OPERATIONS.md").read_text()
    headings = re.findall(r"^### (Csrm\w+)$", text, re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/OPERATIONS.md#{rule['alert'].lower()}"
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["for"]


def test_the_bound_of_slow_answers_is_the_default_of_the_market_file() -> None:
    (rule,) = [r for r in rules() if r["alert"] == "CsrmServingSlow"]
    bound = promql.parse(rule["expr"]).rhs
    assert isinstance(bound, promql.NumberLiteral)
    assert bound.val == Serving().p99_ms / 1000


def test_the_rules_have_a_test_of_each() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    raised = {a["alertname"] for t in tests for a in t["alert_rule_test"] if a["exp_alerts"]}
    alarms = {r["alert"] for r in rules() if r["alert"].startswith("CsrmAlarm")}
    assert raised == {r["alert"] for r in rules()} - alarms | {"CsrmAlarmRouting"}


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool comes with Prometheus, not as a wheel")
@pytest.mark.parametrize("what", ["check rules rules.yml", "test rules rules_test.yml"])
def test_promtool_agrees(what: str) -> None:
    command = [str(PROMTOOL), *what.split()]
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def names_of(query: Mapping[str, Any]) -> Iterator[str]:
    yield from re.findall(r"\$(\w+)", json.dumps(query))


def test_the_dashboard_asks_the_provisioned_source_and_its_own_variables() -> None:
    folder = ROOT / "docker/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        own = {v["name"] for v in board["templating"]["list"]} | {"__rate_interval", "__all"}
        assert set(names_of(board)) <= own
        asked = [board["templating"]["list"][0], *board["panels"]]
        asked += [t for p in board["panels"] for t in p["targets"]]
        assert {a["datasource"]["uid"] for a in asked} == {source["uid"]}
        ids = [p["id"] for p in board["panels"]]
        assert len(set(ids)) == len(ids)
        for panel in board["panels"]:
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
