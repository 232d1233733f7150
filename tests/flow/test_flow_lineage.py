"""Lineage as Airflow's OpenLineage provider emits it: edges from a landed day to a release."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.sections import WeekOfDays
from csrm_tasks.settings import Settings
from tests.weeks_fixtures import MARKET, ROOT, WEEK_1, installed, simulate, trained

pytest.importorskip("airflow.providers.openlineage")
pytestmark = [pytest.mark.airflow, pytest.mark.slow]
SUNDAY = WEEK_1[-1]
SECRET = "a-secret-of-this-installation"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[Event]]:
    """One night, and the week that it triggers, with events in a file."""
    folder = tmp_path_factory.mktemp("lineage")
    settings = installed(folder, WeekOfDays(at_least=1, wait_days=0))
    found = simulate(
        settings, folder / "airflow",
        [["deliver", SUNDAY, "right"], ["night", SUNDAY], ["tick"]],
        AIRFLOW__CORE__PLUGINS_FOLDER=str(ROOT.parent / "plugins"),
        AIRFLOW__OPENLINEAGE__NAMESPACE="shop",
        AIRFLOW__OPENLINEAGE__EXTRACTORS="csrm_lineage.StepExtractor",
        AIRFLOW__OPENLINEAGE__TRANSPORT=json.dumps(
            {"type": "file", "log_file_path": str(folder / "events.json"), "append": True}
        ),
        AIRFLOW_CONN_SHOP_LLM=f"http://:{SECRET}@llm.example/v1",
        CSRM_LLM_TOKEN=SECRET,
    )  # fmt: skip
    assert found[1] == "success" and len(found[2]) == 1
    text = Path(folder / "events.json").read_text(encoding="utf-8")
    assert SECRET not in text
    return settings, [json.loads(line) for line in text.splitlines()]


def ended(events: list[Event]) -> list[Event]:
    return [e for e in events if e["eventType"] == "COMPLETE"]


def test_every_task_that_ran_a_step_says_what_it_read_and_made(
    emitted: tuple[Settings, list[Event]],
) -> None:
    tasks = {e["job"]["name"].partition(".")[2]: e for e in ended(emitted[1])}
    made = {t: [d["name"] for d in e["outputs"]] for t, e in tasks.items() if e.get("outputs")}
    steps = ("land", "validate", "store", "aggregate", "publish_day", "snapshot", "bundle",
             "register")  # fmt: skip
    assert set(made) == set(steps)
    for task, names in made.items():
        assert names[0].startswith(f"{MARKET}/{task}/")
    assert {d["namespace"] for e in tasks.values() for d in e["outputs"]} == {"shop"}


def test_edges_lead_from_the_landed_day_to_the_release(
    emitted: tuple[Settings, list[Event]],
) -> None:
    settings, events = emitted
    after: dict[str, set[str]] = defaultdict(set)
    for event in ended(events):
        for read in event["inputs"]:
            after[read["name"]] |= {made["name"] for made in event["outputs"]}
    reached, left = set(), [f"{MARKET}/landed/{SUNDAY}"]
    while left:
        new = after[left.pop()] - reached
        reached |= new
        left += new
    (snapshot,) = trained(settings)
    store = ArtifactStore(settings.artifacts, settings.cache)
    (receipt,) = (m for _, m in store.published(f"{MARKET}/register"))
    release = f"{MARKET}/releases/{receipt['facts']['release']}"
    assert {f"{MARKET}/published/{SUNDAY}", snapshot, release} <= reached
