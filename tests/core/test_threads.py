"""Threads: how many are granted, how they wait, and what a step has spent."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from csrm_tasks import threads, tracking
from csrm_tasks.artifacts import ArtifactStore, json_digest
from csrm_tasks.settings import Settings
from csrm_tasks.steps import running
from csrm_tasks.steps.declaration import REGISTRY, Context, Metadata, step
from csrm_tasks.steps.running import run_step
from csrm_tasks.threads import granted_cpus, set_default, use_threads
from tests.llm_fixtures import make_market

MANY = set(range(64))


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 CPUs and a tree of cgroups, where this process is in a/b."""
    monkeypatch.setattr(threads, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: MANY, raising=False)
    (tmp_path / "membership").write_text("0::/a/b\n")
    (tmp_path / "cgroup" / "a" / "b").mkdir(parents=True)
    return tmp_path / "cgroup"


def test_all_cpus_are_granted_where_nothing_says_otherwise(cgroup: Path) -> None:
    assert granted_cpus() == 64
    (cgroup / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert granted_cpus() == 64
    (cgroup.parent / "membership").unlink()  # no Linux
    assert granted_cpus() == 64


@examples(max_examples=200)
@given(
    quotas=st.lists(st.none() | st.integers(1, 10**7), min_size=3, max_size=3),
    period=st.integers(1000, 10**6),
    cpus=st.integers(1, 64),
)
def test_the_tightest_group_or_the_affinity_decides(
    tmp_path_factory: pytest.TempPathFactory, quotas: list[int | None], period: int, cpus: int
) -> None:
    """Against the slow rule: CPUs are taken away while one fewer still covers every quota."""
    root = tmp_path_factory.mktemp("groups")
    (root / "a" / "b").mkdir(parents=True)
    for folder, quota in zip((root, root / "a", root / "a" / "b"), quotas, strict=True):
        (folder / "cpu.max").write_text(f"{'max' if quota is None else quota} {period}\n")
    (root / "membership").write_text("0::/a/b\n")
    expected = cpus
    while expected > 1 and any(q is not None and q <= (expected - 1) * period for q in quotas):
        expected -= 1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threads, "CGROUPS", root)
        patched.setattr(threads, "MEMBERSHIP", root / "membership")
        patched.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
        assert granted_cpus() == expected


def test_the_first_version_of_cgroups_has_quota_and_period_apart(cgroup: Path) -> None:
    (cgroup.parent / "membership").write_text("4:memory:/x\n2:cpu,cpuacct:/job\n0::/\n")
    place = cgroup / "cpu" / "job"
    place.mkdir(parents=True)
    (place / "cpu.cfs_quota_us").write_text("250000\n")
    (place / "cpu.cfs_period_us").write_text("100000\n")
    assert granted_cpus() == 3
    (place / "cpu.cfs_quota_us").write_text("-1\n")
    assert granted_cpus() == 64


def test_what_the_environment_says_is_left_alone(cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text("150000 100000\n")
    env: dict[str, str] = {}
    set_default(env)
    assert env == {"OMP_NUM_THREADS": "2"}
    own = {"OMP_NUM_THREADS": "7"}
    set_default(own)
    assert own == {"OMP_NUM_THREADS": "7"}


TRAINING = """
import hashlib, os, sys
from csrm_tasks.threads import use_threads
policy = os.environ["OMP_WAIT_POLICY"]
assert "torch" not in sys.modules
use_threads(2)
import torch
assert torch.get_num_threads() == 2
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(96, 96), torch.nn.GELU(), torch.nn.Linear(96, 96))
optimizer = torch.optim.AdamW(model.parameters())
x = torch.randn(700, 96)
for _ in range(20):
    optimizer.zero_grad()
    (model(x) - x).square().mean().backward()
    optimizer.step()
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print(policy, hashlib.sha256(weights).hexdigest())
"""


def test_waiting_asleep_changes_no_bit_and_is_set_before_torch_is_there() -> None:
    """torch's OpenMP runtime reads it once, when it is loaded."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    said = [
        subprocess.run(
            [sys.executable, "-c", TRAINING],
            env=env | more,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for more in ({}, {"OMP_WAIT_POLICY": "ACTIVE"})
    ]
    assert [policy for policy, _ in said] == ["PASSIVE", "ACTIVE"]
    assert said[0][1] == said[1][1]


def test_more_threads_than_are_granted_are_told_of_and_used(
    cgroup: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer would end in other bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    (cgroup / "cpu.max").write_text("100000 100000\n")
    try:
        use_threads(2)
        assert torch.get_num_threads() == 2
        assert "CSRM_THREADS is 2, but this process is granted 1 CPUs" in caplog.text
        caplog.clear()
        use_threads(1)
        assert torch.get_num_threads() == 1 and not caplog.text
    finally:
        torch.set_num_threads(before)


def test_a_step_says_what_it_spent_in_mlflow_and_beside_its_artifact(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its CPU time is its own and its children's: half a second of work each."""
    monkeypatch.setattr(running, "code_digest", lambda *of: "code")
    work = "import time\nwhile time.process_time() < 0.5: pass"

    @step("test_spends")
    def spends(ctx: Context) -> Metadata:
        started = time.process_time()
        while time.process_time() < started + 0.5:
            pass
        subprocess.run([sys.executable, "-c", work], check=True)
        tracking.log_run(ctx.settings, "tiny", ctx.ref, metrics={"loss": 1.0})
        return {}

    try:
        market = make_market(tmp_path)
        ref = run_step("test_spends", market, settings=settings)
    finally:
        del REGISTRY["test_spends"]
    manifest = ArtifactStore(settings.artifacts, settings.cache).manifest(ref) or {}
    spent = manifest["spent"]
    assert manifest["digest"] == json_digest({"files": [], "facts": {}})  # not of what it took
    assert min(spent["wall_seconds"], spent["cpu_seconds"]) > 0.9
    api = tracking.client(settings)
    (run,) = api.search_runs([tracking.experiment_id(api, "tiny", settings)])
    assert run.data.metrics["loss"] == 1.0
    for name, seconds in spent.items():  # what came behind the logging is in the manifest alone
        assert 0.9 < run.data.metrics[f"step_{name}"] <= seconds


def test_outside_of_a_step_a_run_says_nothing_of_it(settings: Settings) -> None:
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    run_id = tracking.log_run(settings, "tiny", "tiny/by_hand/0", metrics={"loss": 1.0})
    assert tracking.client(settings).get_run(run_id).data.metrics == {"loss": 1.0}
