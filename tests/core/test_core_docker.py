"""Image and compose file, as far as a client without an engine can check them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from csrm_tasks.serving.server import STOPPING
from tests.installs import project

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SECRETS = {"POSTGRES_PASSWORD": "p", "AIRFLOW_FERNET_KEY": "f", "AIRFLOW_JWT_SECRET": "j"}


def compose(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "docker-compose"), "-f", str(ROOT / "docker/compose.yaml"), *args]
    return subprocess.run(
        command, env={"PATH": "/usr/bin:/bin"} | env, capture_output=True, text=True, check=False
    )


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
    assert installed("airflow") == {"airflow", "data", "mlflow", "s3"}
    assert installed("trainer") == installed("airflow") | {"train"}
    known = project()["optional-dependencies"].keys()
    assert installed("serving") | installed("trainer") <= known


def test_compose_renders_every_airflow_component() -> None:
    done = compose(SECRETS, "config")
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
    done = compose(SECRETS | {"CSRM_MARKET": "names"}, "--profile", "serving", "config")
    found = yaml.safe_load(done.stdout)["services"]["serving"]
    assert found["command"][:4] == ["csrm", "serve", "--market", "names"]
    assert found["build"]["target"] == "serving"
    assert set(found["environment"]) == {"CSRM_SERVING_TOKEN"}  # no password of others
    assert found["stop_grace_period"] == f"{2 * STOPPING}s"
    assert {p["host_ip"] for p in found["ports"]} == {"127.0.0.1"}


def test_compose_asks_for_every_secret() -> None:
    for name in SECRETS:
        done = compose({k: v for k, v in SECRETS.items() if k != name}, "config")
        assert done.returncode != 0
        assert f"set {name}" in done.stderr
