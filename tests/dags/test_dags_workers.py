"""Where tasks run, as Airflow reads it: executor, queue, pool, and pods by Kubernetes' schema."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import load_market, parse_market
from csrm_tasks.sections import Worker
from csrm_tasks.sections.workers import OF_PODS, step_names
from csrm_tasks.steps.classes import TRAINING
from csrm_tasks.steps.declaration import all_steps
from tests.dags.test_dags_integrity import MARKETS, ROOT

pytestmark = pytest.mark.airflow
KUBERNETES = "1.37"  # the schema's version
# What a pod is made of when Airflow starts it: the template, the task's own part, the override.
LOAD = """
import json, sys
from airflow.dag_processing.dagbag import BundleDagBag
folder = sys.argv[1]
bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags")
imported = "kubernetes" in sys.modules
def pod(dag, task, config):
    if "pod_override" not in config:
        return None
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
    from airflow.serialization.serialized_objects import BaseSerialization as B
    from kubernetes.client import ApiClient, models as k8s
    again = B.deserialize(json.loads(json.dumps(B.serialize(config))))  # to and from the database
    template = k8s.V1Pod(
        api_version="v1", kind="Pod", metadata=k8s.V1ObjectMeta(name="template"),
        spec=k8s.V1PodSpec(restart_policy="Never", containers=[
            k8s.V1Container(name="base", image="csrm/worker:1", env=[k8s.V1EnvVar("A", "b")])]),
    )
    made = PodGenerator.construct_pod(
        dag_id=dag, task_id=task, pod_id="pod", try_number=1, kube_image="csrm/worker:1",
        date=None, args=["run"], pod_override_object=PodGenerator.from_obj(again),
        base_worker_pod=template, namespace="csrm", scheduler_job_id="1",
    )
    return ApiClient().sanitize_for_serialization(made)
print("LOADED" + json.dumps({
    "errors": bag.import_errors, "imported": imported,
    "tasks": {f"{d.dag_id}.{t.task_id}": {
        "executor": t.executor, "queue": t.queue, "pool": t.pool,
        "step": ((t.partial_kwargs if t.is_mapped else vars(t)).get("op_kwargs") or {}).get("step"),
        "pod": pod(d.dag_id, t.task_id, t.executor_config),
    } for d in bag.dags.values() for t in d.tasks},
}))
"""
GPU = (
    "{executor: KubernetesExecutor, cpus: 4, memory_gb: 40.5, gpus: 2, pool: heavy, "
    'node_selector: {"example.com/gpu": "a100"}, image: "r.example:5000/csrm/gpu:1.2"}'
)
WORKERS = f"""
workers:
  default: {{executor: CeleryExecutor, queue: cpu, pool: light}}
  training: {GPU}
  score_shard: {{executor: CeleryExecutor, queue: scoring}}
  land: {{executor: LocalExecutor}}
  gate: {{}}
"""


def load(folder: Path, workers: str) -> dict[str, Any]:
    """Load the DAGs of the mini market with ``workers`` in its file, in a process of their own."""
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    (folder / "mini.yaml").write_text(text + workers, encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "CSRM"))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(ROOT / "dags")],
        env=kept | {
            "AIRFLOW_HOME": str(folder / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor,CeleryExecutor,KubernetesExecutor",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL", "CSRM_MARKETS": str(folder),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert lines, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("LOADED"))
    return found


def test_without_the_key_every_task_runs_as_airflows_configuration_says(tmp_path: Path) -> None:
    found = load(tmp_path, "")
    assert (found["errors"], found["imported"]) == ({}, False)
    assert len(found["tasks"]) > 60
    for task in found["tasks"].values():
        given = (task["executor"], task["queue"], task["pool"], task["pod"])
        assert given == (None, "default", "default_pool", None)


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")
    return load(tmp_path_factory.mktemp("market"), WORKERS)


def test_each_task_runs_where_the_narrowest_entry_says(placed: dict[str, Any]) -> None:
    assert placed["errors"] == {}
    seen = set()
    for task in placed["tasks"].values():
        given = (task["executor"], task["queue"], task["pool"])
        step = task["step"]
        if step == "score_shard":  # a training too, and mapped
            assert given == ("CeleryExecutor", "scoring", "default_pool")
        elif step in TRAINING:
            assert given == ("KubernetesExecutor", "default", "heavy")
        elif step == "land":
            assert given == ("LocalExecutor", "default", "default_pool")
        elif step == "gate":
            assert given == (None, "default", "default_pool")
        else:  # also of a task that runs no step
            assert given == ("CeleryExecutor", "cpu", "light")
        assert (task["pod"] is not None) == (task["executor"] == "KubernetesExecutor")
        seen.add(step)
    assert {"score_shard", "land", "gate", "train_llm", None} <= seen


def test_the_pods_that_airflow_would_start_are_valid_and_have_what_was_asked(
    placed: dict[str, Any],
) -> None:
    validate = schema()
    pods = {name: task["pod"] for name, task in placed["tasks"].items() if task["pod"]}
    assert len(pods) > 15
    for name, pod in pods.items():
        assert validate(pod, KUBERNETES, strict=True) == KUBERNETES
        [container] = pod["spec"]["containers"]
        assert container["resources"] == {
            "requests": {"cpu": "4000m", "memory": "40500M"},
            "limits": {"memory": "40500M", "nvidia.com/gpu": "2"},
        }
        assert container["image"] == "r.example:5000/csrm/gpu:1.2"
        assert container["args"] == ["run"] and {"name": "A", "value": "b"} in container["env"]
        assert pod["spec"]["nodeSelector"] == {"example.com/gpu": "a100"}
        assert pod["spec"]["restartPolicy"] == "Never"
        assert name == ".".join(pod["metadata"]["annotations"][k] for k in ("dag_id", "task_id"))


def test_without_kubernetes_client_a_dag_file_says_so_and_a_task_of_it_runs(
    csrm_workers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's task runner reads the file again, in an image that may be without the client."""
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    market, gpus = load_market("mini", MARKETS), Worker(gpus=1)
    with pytest.raises(ConfigError, match="market mini: workers ask for gpus of a pod, and the pa"):
        csrm_workers.arguments(market, gpus)
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "d")  # as the runner does
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", "t")
    assert csrm_workers.arguments(market, gpus) == {}


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ("{train_lm: {queue: gpu}}", "neither default, nor training, nor a step; did you mean tr"),
        ("{xyz: {queue: gpu}}", "nor a step; steps: ablate, "),
        (
            "{train_llm: {queu: gpu}}",
            "train_llm.queu: there is no such key; did you mean queue?",
        ),
        ("{train_llm: {gpus: 0}}", "workers.train_llm.gpus: Input should be greater than 0"),
        ("{train_llm: {gpus: 1.5}}", "workers.train_llm.gpus"),
        ("{train_llm: {gpus: true}}", "workers.train_llm.gpus"),
        ("{train_llm: {memory_gb: -1}}", "workers.train_llm.memory_gb"),
        ("{train_llm: {memory_gb: .nan}}", "workers.train_llm.memory_gb"),
        ("{train_llm: {memory_gb: .inf}}", "workers.train_llm.memory_gb"),
        ("{train_llm: {cpus: 1e9}}", "workers.train_llm.cpus"),
        ("{train_llm: {queue: 'a,b'}}", "workers.train_llm.queue: 'a,b' is no queue"),
        ("{train_llm: {executor: 'x y'}}", "'x y' is no executor"),
        ("{train_llm: {image: 'Csrm:1'}}", "'Csrm:1' is no image; give host/name:tag"),
        ("{train_llm: {image: 'csrm:1\\n'}}", "is no image"),
        ("{train_llm: {node_selector: {'a b': c}}}", "'a b' is no label of Kubernetes"),
        ("{train_llm: {node_selector: {gpu: true}}}", "workers.train_llm.node_selector.gpu"),
        ("{train_llm: {node_selector: {gpu: '-'}}}", "'-' is no label's value"),
        ("{train_llm: null}", "workers.train_llm"),
        ("[train_llm]", "workers"),
        (
            "{train_llm: {executor: CeleryExecutor, gpus: 1, image: a}}",
            "workers.train_llm: CeleryExecutor has no pods to give gpus, image; leave that out",
        ),
        (
            "{default: {executor: airflow.executors.local_executor.LocalExecutor, queue: cpu}}",
            "workers.default: LocalExecutor has no queues; leave out queue cpu",
        ),
        ("{default: {executor: KubernetesExecutor, queue: cpu}}", "KubernetesExecutor has no qu"),
    ],
)
def test_what_airflow_or_kubernetes_would_not_take_is_refused_in_one_line(
    tmp_path: Path, workers: str, said: str
) -> None:
    path = tmp_path / "mini.yaml"
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    path.write_text(f"{text}workers: {workers}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        parse_market(path)
    assert said in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value).rstrip("\n")


def test_the_names_of_steps_are_those_that_are_declared() -> None:
    assert step_names() == set(all_steps())
    assert step_names() & {"default", "training"} == set()


@cache
def schema() -> Any:
    """Return the validator by Kubernetes' own schema, its files read once."""
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    utils = importlib.import_module("kubernetes_validate.utils")
    utils.schema_contents = cache(utils.schema_contents)
    return utils.validate


@pytest.fixture(scope="module")
def csrm_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.syspath_prepend(str(ROOT / "dags"))
        yield importlib.import_module("csrm_workers")


texts = st.text("aZ09-_./:@ é\n", min_size=1, max_size=70)
names = st.from_regex(
    r"[a-z0-9]{1,5}([./-][a-z0-9]{1,5}){0,3}(:[A-Za-z0-9.]{1,9})?", fullmatch=True
)
asked = st.fixed_dictionaries({}, optional={
    "cpus": st.floats(allow_nan=True) | st.floats(0.001, 64), "gpus": st.integers(-1, 9),
    "memory_gb": st.floats(allow_nan=True) | st.floats(0.001, 2000), "image": texts | names,
    "node_selector": st.dictionaries(texts | names, texts | st.just(""), max_size=3),
})  # fmt: skip
QUANTITY = re.compile(r"([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)")  # of Kubernetes' API


@settings(max_examples=1000)
@given(asked)
def test_whatever_is_taken_renders_a_pod_that_kubernetes_takes(
    csrm_workers: ModuleType, keys: dict[str, Any]
) -> None:
    kubernetes = pytest.importorskip("kubernetes", reason="its extra is not installed")
    try:
        worker = Worker.model_validate(keys)
    except ValidationError:
        return
    pod = kubernetes.client.ApiClient().sanitize_for_serialization(csrm_workers.pod_of(worker))
    head = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    assert schema()(pod | head, KUBERNETES, strict=True) == KUBERNETES
    [container] = pod["spec"]["containers"]
    resources = container.get("resources", {})
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for quantity in (*limits.values(), *requests.values()):
        assert QUANTITY.fullmatch(quantity) and not quantity.startswith("0")
    # Nothing is lost, nothing added.
    said = {
        "cpus": "cpu" in requests, "memory_gb": "memory" in limits, "image": "image" in container,
        "gpus": csrm_workers.NVIDIA in limits, "node_selector": "nodeSelector" in pod["spec"],
    }  # fmt: skip
    assert tuple(name for name in OF_PODS if said[name]) == worker.of_pods
    assert limits.get("memory") == requests.get("memory")
