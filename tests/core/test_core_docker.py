"""Image and compose file, as far as a client without an engine can check them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from csrm_tasks.sections import Schedule
from csrm_tasks.serving.server import STOPPING
from tests.installs import project
from tests.object_store import credentials

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
BASE, CLUSTER, MONITORING = "compose.yaml", "compose.cluster.yaml", "compose.monitoring.yaml"
SECRETS = {
    BASE: {"POSTGRES_PASSWORD": "p", "AIRFLOW_FERNET_KEY": "f", "AIRFLOW_JWT_SECRET": "j"},
    CLUSTER: {"BROKER_PASSWORD": "b", "S3_SECRET_KEY": "s"},
    MONITORING: {"GRAFANA_PASSWORD": "g"},
}
ALL = SECRETS[BASE] | SECRETS[CLUSTER] | SECRETS[MONITORING] | {"CSRM_SERVING_TOKEN": "t"}


def compose(
    env: dict[str, str], *args: str, files: Sequence[str] = (BASE,)
) -> subprocess.CompletedProcess[str]:
    named = [word for file in files for word in ("-f", str(ROOT / "docker" / file))]
    return subprocess.run(
        [str(BIN / "docker-compose"), *named, *args], env={"PATH": "/usr/bin:/bin"} | env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@cache
def whole(*files: str) -> dict[str, Any]:
    """Return what compose makes of files, with the scoring service."""
    done = compose(ALL, "--profile", "serving", "config", files=files)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def test_dockerfile_lints_clean() -> None:
    done = subprocess.run(
        [str(BIN / "hadolint"), str(ROOT / "docker/Dockerfile")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_dockerfile_copies_only_what_exists() -> None:
    for line in (ROOT / "docker/Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source


def installed(target: str) -> set[str]:
    """Return the extras that a target of the Dockerfile installs."""
    text = (ROOT / "docker/Dockerfile").read_text().replace("\\\n", " ")
    stage = text.split(f" AS build-{target}\n", 1)[1].split("\nFROM ", 1)[0]
    return set(re.findall(r"--extra (\S+)", stage))


def test_each_image_installs_its_own_extras() -> None:
    assert installed("serving") == {"serve", "s3"}
    workers = {"celery", "kubernetes"}
    assert installed("airflow") == {"airflow", "data", "mlflow", "s3"} | workers
    assert installed("trainer") == installed("airflow") | {"train"}
    known = project()["optional-dependencies"].keys()
    assert installed("serving") | installed("trainer") <= known


def test_compose_renders_every_airflow_component() -> None:
    done = compose(SECRETS[BASE], "config")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == {
        "postgres", "init", "api-server", "scheduler", "dag-processor", "triggerer", "mlflow",
    }  # fmt: skip
    published = [p for s in services.values() for p in s.get("ports", [])]
    assert {p["host_ip"] for p in published} == {"127.0.0.1"}
    targets = {name: s["build"]["target"] for name, s in services.items() if "build" in s}
    assert targets.pop("scheduler") == "trainer"  # which runs the tasks
    assert set(targets.values()) == {"airflow"}


def test_compose_has_a_scoring_service_for_who_asks_for_it() -> None:
    done = compose(SECRETS[BASE] | {"CSRM_MARKET": "names"}, "--profile", "serving", "config")
    found = yaml.safe_load(done.stdout)["services"]["serving"]
    assert found["command"][:4] == ["csrm", "serve", "--market", "names"]
    assert found["build"]["target"] == "serving"
    assert set(found["environment"]) == {"CSRM_SERVING_TOKEN"}  # no password of others
    assert found["stop_grace_period"] == f"{2 * STOPPING}s"
    assert {p["host_ip"] for p in found["ports"]} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (name, [BASE, file] if file != BASE else [BASE])
        for file in SECRETS
        for name in SECRETS[file]
    ],
)
def test_compose_asks_for_every_secret(name: str, files: list[str]) -> None:
    done = compose({k: v for k, v in ALL.items() if k != name}, "config", files=files)
    assert done.returncode != 0
    assert f"set {name}" in done.stderr


def test_a_cluster_has_two_workers_that_its_scheduler_reaches() -> None:
    services = whole(BASE, CLUSTER)["services"]
    assert set(services) == set(whole(BASE)["services"]) | {"broker", "s3", "bucket", "worker"}
    worker = services["worker"]
    assert worker["deploy"]["replicas"] == 2
    assert worker["build"]["target"] == "trainer"
    assert services["scheduler"]["build"]["target"] == "airflow"
    assert "csrm-trainer" in worker["image"] and "csrm-airflow" in services["scheduler"]["image"]
    for name in ("init", "api-server", "scheduler", "dag-processor", "triggerer"):
        assert services[name]["environment"] == worker["environment"]
    env = worker["environment"]
    assert env["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert env["AIRFLOW__CELERY__BROKER_URL"] == "redis://:b@broker:6379/0"
    # A message's token outlives the longest training: else a second delivery ends the first.
    hours = Schedule.model_fields["training_hours"].default
    assert int(env["AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT"]) > hours * 3600
    assert services["broker"]["command"][-2:] == ["--requirepass", "b"]


def test_a_cluster_keeps_all_that_several_hosts_share_on_s3() -> None:
    services = whole(BASE, CLUSTER)["services"]
    keys = {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}
    places = {"CSRM_ARTIFACTS", "CSRM_LAKE", "CSRM_ROUTING"}
    serving = services["serving"]["environment"]
    assert set(serving) == keys | places | {"CSRM_SERVING_TOKEN"}  # no password of others
    assert {k: services["worker"]["environment"][k] for k in keys | places} == {
        k: serving[k] for k in keys | places
    }
    (bucket,) = {serving[place].split("/")[2] for place in places}
    assert services["bucket"]["command"][-1] == bucket
    assert f"--artifacts-destination=s3://{bucket}/mlartifacts" in services["mlflow"]["command"]
    server = services["s3"]
    assert serving["AWS_ENDPOINT_URL"] == "http://s3:8333" and "-s3.port=8333" in server["command"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert server["environment"][name] == serving[name]
    # Its other ports ask nobody for a signature: they are for its own container alone.
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} < set(server["command"])
    assert "ports" not in server


def test_the_bucket_is_made_once_and_only_on_purpose(
    seaweed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials(monkeypatch, seaweed)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    client = boto3.client("s3")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        client.put_object(Bucket="misspelt", Key="k", Body=b"1")
    (script,) = [v for v in whole(BASE, CLUSTER)["services"]["bucket"]["volumes"]]
    for _ in range(2):
        done = subprocess.run([sys.executable, script["source"], "made"], check=False)
        assert done.returncode == 0
    client.put_object(Bucket="made", Key="k", Body=b"1", IfNoneMatch="*")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    done = subprocess.run(
        [sys.executable, script["source"], "made"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "SignatureDoesNotMatch" in done.stderr


def test_monitoring_reads_the_service_with_its_token() -> None:
    found = whole(BASE, MONITORING)
    prometheus = found["services"]["prometheus"]
    assert found["secrets"]["serving_token"]["environment"] == "CSRM_SERVING_TOKEN"
    (secret,) = prometheus["secrets"]
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["authorization"]["credentials_file"] == secret["target"]
    (targets,) = prometheus["configs"]
    assert targets["target"].startswith("/etc/prometheus/targets/")
    (group,) = yaml.safe_load(found["configs"]["targets"]["content"])
    port = found["services"]["serving"]["ports"][0]["target"]
    assert group == {"targets": [f"serving:{port}"], "labels": {"market": "demo"}}
    folder = {Path(v["target"]).name: v["source"] for v in prometheus["volumes"]}
    assert set(config["rule_files"]) <= set(folder)


def test_nothing_is_open_to_others_or_of_no_version_or_lacks_its_files() -> None:
    services = whole(BASE, CLUSTER, MONITORING)["services"]
    published = [p for s in services.values() for p in s.get("ports", [])]
    assert {p["host_ip"] for p in published} == {"127.0.0.1"}
    own = re.compile(r"csrm-(airflow|trainer|serving):latest")
    for name, service in services.items():
        if not own.fullmatch(service["image"]):
            assert re.search(r":v?\d", service["image"]), (name, service["image"])
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert volume["read_only"] and Path(volume["source"]).exists()


# docker/helm


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker/helm/values.yaml").read_text())
    return found


def test_on_kubernetes_tasks_run_in_the_trainers_image_and_all_else_in_airflows() -> None:
    images = values()["images"]
    assert images["airflow"]["repository"] == "csrm-airflow"
    template = images["pod_template"]
    assert template["repository"] == "csrm-trainer"
    executor = values()["config"]["kubernetes_executor"]
    # KubernetesExecutor starts every task in this one, whatever the template says.
    assert executor["worker_container_repository"] == template["repository"]
    assert executor["worker_container_tag"] == template["tag"] == images["airflow"]["tag"]
    assert template["tag"] == project()["version"]


def test_on_kubernetes_nothing_is_asked_for_that_the_images_lack() -> None:
    found = values()
    airflow = metadata.version("apache-airflow")
    assert found["airflowVersion"] == airflow
    module, _, name = found["config"]["core"]["auth_manager"].rpartition(".")
    assert hasattr(import_module(module), name)
    for component in ("scheduler", "dagProcessor", "triggerer"):
        assert found[component]["logGroomerSidecar"] == {"enabled": False}  # runs /clean-logs
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    for key, variable in (("dags_folder", "DAGS_FOLDER"), ("plugins_folder", "PLUGINS_FOLDER")):
        assert f"AIRFLOW__CORE__{variable}={found['config']['core'][key]} " in dockerfile
    (mount,) = found["volumeMounts"]
    assert f"CSRM_HOME={mount['mountPath']}\n" in dockerfile


def test_on_kubernetes_no_secret_stands_in_the_values() -> None:
    text = (ROOT / "docker/helm/values.yaml").read_text()
    assert re.findall(r"(?i)^\s*(fernetKey|jwtSecret|apiSecretKey|pass\w*):", text, re.M) == []
    assert {e["name"] for e in values()["env"]} == {"CSRM_ARTIFACTS", "CSRM_LAKE", "CSRM_ROUTING"}
