"""Two processes train what one does, whole or sharded; one that dies ends it in one line (A5)."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import BloomConfig, BloomForCausalLM

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network import model as model_module
from csrm_tasks.llm.network.shard import shard_layers
from csrm_tasks.llm.training import worker
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.train import TrainingError
from csrm_tasks.markets import MarketConfig
from tests.llm_fixtures import make_base, make_given, make_market, run_as


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in fp64: Adam's first steps make a gradient's rounding as large as the gradient."""
    monkeypatch.setattr(model_module, "choose_dtype", lambda device, width: torch.float64)


@pytest.fixture
def market(tmp_path: Path) -> MarketConfig:
    # No dropout: each process draws masks of its own.
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear", "rslora": True}
    base = make_base(tmp_path / "base")
    return make_market(base, steps=6, evaluate_every=3, lora=lora, lr=1e-3, batch=9)


@pytest.fixture
def given(tmp_path: Path) -> FinetuneInputs:
    return make_given(tmp_path)


def adapter(folder: Path, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(
        folder / f"out-{name}" / "adapter" / "adapter_model.safetensors"
    )
    return found


# What the workers' interpreters start with: checkpoints after every step; the second process runs
# out of memory in its fourth pass, and kills itself when there is a checkpoint of the fourth step.
# Each notes how many of the decoder layers' weights it holds, and of how many.
SABOTAGE = """
import os
if os.environ.get("RANK"):
    import signal
    from pathlib import Path
    import torch
    from torch.distributed.tensor import DTensor
    from csrm_tasks.llm.network import model
    from csrm_tasks.llm.training import finetune
    from csrm_tasks.llm.training.mixture import Draw

    work, train, loss, count = Path({work!r}), finetune.train, Draw.loss, [0]

    def sabotaged(draw):
        frozen = [p for p in draw.task._model.causal.base_model.layers.parameters()
                  if not p.requires_grad]
        held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen)
        whole = sum(p.numel() for p in frozen)
        (work / f"held-{{os.environ['RANK']}}").write_text(f"{{held}} {{whole}}")
        if os.environ["RANK"] == "1":
            count[0] += 1
            if count[0] == 4 and not (work / "halved.json").exists():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if (work / "checkpoint-4").exists() and not (work / "killed").exists():
                (work / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return loss(draw)

    Draw.loss = sabotaged
    model.choose_dtype = lambda device, width: torch.float64  # as below
    finetune.train = lambda *a: train(*a[:-1], 0.0)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does_whatever_befalls_one_of_them(
    market: MarketConfig,
    given: FinetuneInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Batches of odd sizes: 6 relevance, 1 translation (one process has none) and 3 CVR samples.

    The base is sharded, through a checkpoint and a resume, until the second process is killed; they
    end with whole copies: a checkpoint does not say how it was made.
    """
    one = run_as("one", market, given, tmp_path)
    customized = tmp_path / "site" / "sitecustomize.py"
    customized.parent.mkdir()
    customized.write_text(SABOTAGE.format(work=str(tmp_path / "work-two")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(customized.parent), *sys.path]))
    kept = {"sharding": "full", "gradient_checkpointing": True}
    with pytest.raises(TrainingError, match="process 1 of 2 was ended by SIGKILL") as caught:
        run_as("two", market, given, tmp_path, processes=2, **kept)
    assert "\n" not in str(caught.value)
    assert "started again with half as many samples a pass" in caplog.text
    assert shares_held(tmp_path / "work-two") == [0.5, 0.5]
    two = run_as("two", market, given, tmp_path, processes=2)
    assert shares_held(tmp_path / "work-two") == [1.0, 1.0]

    assert (two.facts["micro_batch"], two.facts["halved_at"]) == (2, 1)
    assert one.curves.keys() == two.curves.keys()
    for curve, points in one.curves.items():
        assert np.allclose(points, two.curves[curve], rtol=1e-4, atol=1e-5), curve
    a, b = adapter(tmp_path, "one"), adapter(tmp_path, "two")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[k], b[k], rtol=1e-3, atol=2e-5) for k in a)
    for fact in ("steps", "best_step", "train_pairs", "dev_micro_f1"):
        assert one.facts[fact] == two.facts[fact]
    files = [sorted(p.name for p in (tmp_path / f"out-{n}").iterdir()) for n in ("one", "two")]
    assert files[0] == files[1]


def shares_held(work: Path) -> list[float]:
    """Return which share of the layers' weights each process had in its last pass."""
    held = [[int(n) for n in (work / f"held-{rank}").read_text().split()] for rank in (0, 1)]
    return [mine / whole for mine, whole in held]


CHILD = "from csrm_tasks.llm.training import worker; worker._die_with_parent(); print(1); input()"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    """A killed step must not leave workers that go on writing its checkpoints."""
    parent = psutil.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert parent.stdout.readline() == b"1\n"
        workers = parent.children()
    finally:
        parent.kill()  # its pipe to the child's input stays open here
    assert len(workers) == 1
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    parent.communicate()


def test_sharding_among_one_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"llm\n.*sharding is full, but processes is 1"):
        make_market(Path("base"), sharding="full")


def test_a_base_without_layers_is_refused() -> None:
    causal = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(ConfigError, match=r"llm\.sharding: model type 'bloom' is not built of lay"):
        shard_layers(causal, torch.device("cpu"))


def test_more_processes_than_gpus_are_refused(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"llm\.processes is 2, but this machine has 1 GPU"):
        run_as("a", market, given, tmp_path, processes=2)


def test_what_a_killed_attempt_left_is_not_in_the_next_ones_way(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a process whose output is not kept outlives an attempt that was killed."""
    found: list[list[Path]] = []

    def trained(market: object, given: object, out: Path, work: Path) -> None:
        found.append([*out.iterdir()])
        (out / "pretraining").mkdir()

    state = SimpleNamespace(
        is_main_process=False, process_index=1, destroy_process_group=lambda: None
    )
    monkeypatch.setattr(worker, "PartialState", lambda cpu: state)
    monkeypatch.setattr(worker, "_die_with_parent", lambda: None)
    monkeypatch.setattr(worker, "train_once", trained)
    job = {
        "threads": torch.get_num_threads(), "market": market.model_dump(mode="json"),
        "work": str(tmp_path / "work"), "out": str(tmp_path / "out"), "digests": "",
        "kind": "FinetuneInputs",
        "given": {"snapshot": str(given.snapshot), "rqa": None, "soft": None, "arm": "plain",
                  "round": 0},
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    log = logging.getLogger("csrm")
    level = log.level
    try:
        for _ in range(2):
            worker.main(tmp_path / "job.json")
    finally:
        log.setLevel(level)  # a worker speaks of errors alone
    assert found == [[], []]
