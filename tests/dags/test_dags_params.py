"""Parameters of a run by hand: bounds in the form and by command, and what a run makes of them."""

from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from csrm_tasks.bases.record import causal_bases
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.steps.asked import REUSABLE
from tests.dags.test_dags_integrity import MARKETS, ROOT, load, load_changed

pytestmark = pytest.mark.airflow
CHANGES = {"base", "force", "reuse", "reason", "dry_run", "release"}
CONTROLS = {"train_towers_hard", "train_towers_seen", "train_ebr_unclicked", "train_llm_rqa_cold"}
BASE = "csrm_tasks/demo/bases/shipped/llm"
REF = f"mini/train_ebr/{'0a' * 10}"
TRIGGER = """
import contextlib, io, json, sys
from airflow.utils.db import initdb
initdb()
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
from airflow.cli.cli_parser import get_parser
folder, runs = sys.argv[1], json.loads(sys.argv[2])
DagBundlesManager().sync_bundles_to_db()
bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags-folder")
sync_bag_to_db(bag, "dags-folder", None)
found = []
for n, (dag, conf) in enumerate(runs):
    given = ["dags", "trigger", dag, "--run-id", f"run-{n}", "--conf", json.dumps(conf)]
    args = get_parser().parse_args(given)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            args.func(args)
        found.append("")
    except Exception as e:
        found.append(str(e).splitlines()[0])
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
with create_session() as session:
    kept = sorted(run.run_id for run in session.query(DagRun))
print("TRIGGERED" + json.dumps([found, kept]))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    return load(MARKETS)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.syspath_prepend(str(ROOT / "dags"))
        names = ("csrm_params", "csrm_windows", "csrm_wiring", "csrm_replay")
        with pytest.MonkeyPatch.context() as markets:
            markets.setenv("CSRM_MARKETS", str(MARKETS))
            yield {name: importlib.import_module(name) for name in names}


def mini(**changes: Any) -> MarketConfig:
    market = load_market("mini", MARKETS)
    return market.model_copy(update={"llm": market.llm.model_copy(update=changes)})


def trainings(dag: dict[str, Any]) -> dict[str, str]:
    """Return task → step of what a run may take from an earlier one."""
    return {
        name: task["step"]
        for name, task in dag["tasks"].items()
        if task["step"] in REUSABLE and name not in CONTROLS
    }


def test_each_dag_has_its_parameters_and_every_one_is_explained(loaded: dict[str, Any]) -> None:
    has = {name.removesuffix("__mini"): set(d["params"]) for name, d in loaded["dags"].items()}
    assert has == {
        "csrm_cold_start": {"until"} | CHANGES, "csrm_retrain": {"week", "rounds"} | CHANGES,
        "csrm_ingest": {"day"}, "csrm_refresh": {"day"}, "csrm_rollout": {"day"},
        "csrm_replay": {"day", "reason", "apply"}, "csrm_rollback": {"reason", "leaving"},
        "csrm_drill": set(), "csrm_study": {"seeds", "first", "only"},
    }  # fmt: skip
    for dag in loaded["dags"].values():
        for name, shape in dag["shapes"].items():
            assert shape.get("type") and shape.get("title"), name


def test_the_form_starts_with_what_the_markets_file_says(loaded: dict[str, Any]) -> None:
    params = loaded["dags"]["csrm_retrain__mini"]["params"]
    normal = {"base": BASE, "rounds": 2, "force": False, "reuse": None, "reason": None}
    assert params == normal | {"week": None, "dry_run": False, "release": False}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A market with a stage 0 and all kinds of mapped tasks: shards, folds, runs of an ablation."""
    options = "augmentation: {translator: llm}\n  misspelt_share: 0.1\n  pretraining: {steps: 4}"
    asked = f"ablation: {{enabled: true}}\nfilter: {{action: remove}}\nllm:\n  {options}\n"
    return load_changed(tmp_path_factory.mktemp("full"), "llm:\n", asked)


@pytest.mark.parametrize("which", ["loaded", "full"])
def test_what_may_be_reused_are_the_trainings_of_the_dag(
    request: pytest.FixtureRequest, which: str
) -> None:
    found = request.getfixturevalue(which)
    for name in ("csrm_cold_start__mini", "csrm_retrain__mini"):
        dag = found["dags"][name]
        shapes = dag["shapes"]["reuse"]
        assert set(shapes["properties"]) == set(trainings(dag))
        assert ("pretrain_llm" in shapes["properties"]) == (which == "full")
        assert shapes["additionalProperties"] is False
        for task, step in trainings(dag).items():
            assert f"/{step}/" in shapes["properties"][task]["pattern"]
            assert dag["tasks"][task]["stage"] == task


def test_a_market_without_relevance_has_no_rounds_and_one_training(tmp_path: Path) -> None:
    found = load_changed(tmp_path, "seed: 0\n", "seed: 0\ntasks: [qc]\n")["dags"]
    dag = found["csrm_retrain__mini"]
    assert set(dag["params"]) == {"week"} | CHANGES
    assert set(dag["shapes"]["reuse"]["properties"]) == set(trainings(dag)) == {"train_llm"}
    assert dag["tasks"]["judge"]["params"] == {"asked": "{{ asked(params, dag_run) }}"}


def test_every_step_and_every_gate_is_told_what_its_run_asks_for(loaded: dict[str, Any]) -> None:
    for dag in loaded["dags"].values():
        for name, task in dag["tasks"].items():
            if task["step"] is not None:
                assert task["asked"] == "{{ asked(params, dag_run) }}", name
            if task["step"] == "gate":
                assert task["params"]["asked"] == task["asked"]


def test_every_mapped_task_is_called_by_what_it_does(full: dict[str, Any]) -> None:
    named = {
        task["step"]: task["named"]
        for dag in full["dags"].values()
        for task in dag["tasks"].values()
        if task["shards"]
    }
    seeds = None  # of a study: no step of the product
    assert set(named) == {"score_shard", "translate_shard", "filter_fold", "ablation_run", seeds}
    assert all(template for template in named.values())


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("rounds", [0, 1, 2], [3, -1, 1.5, "1", True, None]),
        ("base", [BASE], ["", "base:unknown", "/etc", None, 1]),
        ("force", [True, False], ["yes", 1, None]),
        ("release", [True, False], ["yes", 0, None]),
        ("reason", [None, "why", "x" * 500], ["no", "x" * 501, 1]),
        (
            "reuse",
            [None, {}, {"train_ebr": REF}],
            [
                {"train_llm_stage2": REF},  # of another step
                {"train_ebr": REF.replace("mini", "other")},
                {"train_ebr": REF[:-1]},
                {"train_ebr": f"{REF}#llm"},
                {"train_ebr": f"../{REF}"},
                {"train_ebr": None},
                {"build_rqa": REF},
                [REF],
                REF,
            ],
        ),
    ],
)
def test_bounds(
    modules: dict[str, ModuleType], name: str, good: list[object], bad: list[object]
) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    market: Any = modules["csrm_params"].retrain_params(mini())
    for value in good:
        assert copy.deepcopy(market[name]).resolve(value) == value
    for value in bad:
        with pytest.raises(ParamValidationError):
            copy.deepcopy(market[name]).resolve(value)


def test_a_base_is_the_markets_or_one_that_is_kept(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_BASES", str(tmp_path))
    about = {
        "origin": {"source": "folder:x", "revision": "r", "licence": "mit"}, "dtype": "F32",
        "parameters": 1, "vocabulary": 1, "digest": "d", "files": [], "trimmed": None,
    }  # fmt: skip
    for name, text in (
        ("qwen", json.dumps(about | {"kind": "causal"})),
        ("e5", json.dumps(about | {"kind": "encoder"})),
        ("torn", '{"kind": "cau'),
        ("Bad.Name", json.dumps(about | {"kind": "causal"})),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "base.json").write_text(text)
    assert causal_bases(tmp_path) == ["base:qwen"]
    found: Any = modules["csrm_params"]
    assert found.retrain_params(mini())["base"].schema["enum"] == [BASE, "base:qwen"]
    assert found.retrain_params(mini(base="base:qwen"))["base"].schema["enum"] == ["base:qwen"]
    # The live adapter that trainings start from is one of the market's base.
    warm = mini(warm_start="live")
    assert found.retrain_params(warm)["base"].schema["enum"] == [BASE]
    assert found.cold_start_params(warm)["base"].schema["enum"] == [BASE, "base:qwen"]


def test_a_run_that_cannot_be_is_refused_when_it_is_triggered_by_command(tmp_path: Path) -> None:
    """By what ``airflow dags trigger`` does; the form and REST go through the same check."""
    retrain, cold = "csrm_retrain__mini", "csrm_cold_start__mini"
    runs: list[tuple[str, dict[str, Any], str]] = [
        (retrain, {"rounds": 1, "reason": "a quick one"}, ""),
        (retrain, {"rounds": 3}, "param rounds: 3 is greater than the maximum of 2"),
        (retrain, {"rounds": "1"}, "param rounds: '1' is not of type 'integer'"),
        (retrain, {"base": "base:nobody"}, "param base: 'base:nobody' is not one of"),
        (retrain, {"reason": "no"}, "param reason: 'no' is too short"),
        (retrain, {"reuse": {"promote": REF}}, "param reuse: Additional properties are not"),
        (retrain, {"reuse": {"train_towers": REF}}, f"param reuse: '{REF}' does not match"),
        (retrain, {"week": "2026-W54"}, "param week: '2026-W54' does not match"),
        (cold, {"until": "2026-02-30"}, "param until: '2026-02-30' is not a 'date'"),
        (cold, {}, "param until: None is not of type 'string'|No value passed"),
        ("csrm_replay__mini", {"day": "2026-01-05", "reason": "Bad!"}, "param reason: 'Bad!'"),
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "CSRM"))} | {
        "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"), "PYTHONPATH": str(ROOT),
        "CSRM_HOME": str(tmp_path / "home"), "CSRM_MARKETS": str(MARKETS),
    }  # fmt: skip
    given = json.dumps([(dag, conf) for dag, conf, _ in runs])
    done = subprocess.run(
        [sys.executable, "-c", TRIGGER, str(ROOT / "dags"), given],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("TRIGGERED")]
    assert lines, done.stderr[-3000:]
    said, kept = json.loads(lines[0].removeprefix("TRIGGERED"))
    for line, (_, conf, wanted) in zip(said, runs, strict=True):
        assert bool(line) == bool(wanted), (conf, line)
        assert not wanted or any(part in line for part in wanted.split("|")), (conf, line)
    assert kept == ["run-0"]


def run_of(conf: dict[str, Any] | None = None) -> Any:
    return SimpleNamespace(run_type=SimpleNamespace(value="manual"), conf=conf, run_id="r1")


def rendered(dag: Any, template: str, conf: dict[str, Any]) -> Any:
    """Return what Airflow's own Jinja makes of a template, in a run by hand with ``conf``."""
    params = {name: dag.params.get_param(name).value for name in dag.params} | conf
    given = {"params": params, "dag_run": run_of(conf)}
    task = dag.tasks[0]
    return task.render_template(template, given, task.get_template_env(dag))


@pytest.fixture
def dag(modules: dict[str, ModuleType]) -> Any:
    """A retraining of the mini market with nothing in it but one task."""
    wiring: Any = modules["csrm_wiring"]
    params: Any = modules["csrm_params"].retrain_params(mini())
    return wiring.market_dag(
        "csrm_retrain", mini(), lambda m: wiring.tasks_of(m)("champion"), doc="", schedule=None,
        params=copy.deepcopy(params),
    )  # fmt: skip


CHANGED: list[dict[str, Any]] = [
    {"rounds": 1}, {"rounds": 0}, {"base": "base:x"}, {"force": True},
    {"reuse": {"train_ebr": REF}},
]  # fmt: skip


@pytest.mark.parametrize("conf", CHANGED)
def test_a_changed_run_releases_only_where_it_was_said(
    modules: dict[str, ModuleType], dag: Any, conf: dict[str, Any]
) -> None:
    asked, withheld = modules["csrm_wiring"].ASKED, "{{ withheld(params, dag_run) }}"
    why = {"reason": "to see"}
    told = json.loads(rendered(dag, asked, conf | why))
    assert told == conf | why | ({"force": "r1"} if "force" in conf else {})
    assert "none of the market's normal runs" in rendered(dag, withheld, conf | why)
    assert rendered(dag, withheld, conf | why | {"release": True}) == ""
    assert "'dry_run' is set" in rendered(dag, withheld, conf | why | {"dry_run": True})


def test_a_normal_run_is_told_of_nothing_and_may_release(
    modules: dict[str, ModuleType], dag: Any
) -> None:
    """What the form sends is all of its values."""
    form = {name: dag.params.get_param(name).value for name in dag.params}
    for conf in ({}, {"week": "2026-W02"}, form):
        assert rendered(dag, modules["csrm_wiring"].ASKED, conf) == ""
        assert rendered(dag, "{{ withheld(params, dag_run) }}", conf) == ""


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"rounds": 1}, r"parameter 'reason': .*\(1 rounds of self-distillation\); say why"),
        ({"round": 1}, "parameter 'round': this DAG has none of that name; did you mean 'rounds'"),
        ({"dry_run": True, "release": True}, "one forbids what the other allows"),
    ],
)
def test_what_no_bound_can_say_fails_every_task_at_once(
    modules: dict[str, ModuleType], dag: Any, conf: dict[str, Any], said: str
) -> None:
    from csrm_tasks.errors import ConfigError

    with pytest.raises(ConfigError, match=said):
        rendered(dag, modules["csrm_wiring"].ASKED, conf)


@pytest.mark.parametrize(
    ("rounds", "stops"), [(0, [True, True]), (1, [False, True]), (2, [False, False])]
)
def test_fewer_rounds_stop_the_later_ones(
    modules: dict[str, ModuleType], dag: Any, rounds: int, stops: list[bool]
) -> None:
    beyond: Any = modules["csrm_params"].beyond
    conf = {"rounds": rounds, "reason": "to see"}
    assert [rendered(dag, beyond(n), conf) for n in (1, 2)] == [str(one) for one in stops]
