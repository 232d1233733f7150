"""Checkpoints of towers, retriever, cross-encoder: two are kept, a damaged one is passed over."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from csrm_tasks.errors import ArtifactError
from csrm_tasks.training import checkpoints
from csrm_tasks.training.checkpoints import Checkpoints


class Run:
    """A tiny training with AdamW moments and a tensor of its own."""

    def __init__(self, path: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.losses = torch.zeros(9)
        self.checkpoints = Checkpoints(path / "ebr.safetensors")
        found = self.checkpoints.restore(self.model, self.optimizer, {"losses": self.losses})
        self.step = found["step"] if found else 0

    def train(self, until: int) -> None:
        while self.step < until:
            torch.manual_seed(self.step)
            self.optimizer.zero_grad()
            loss = self.model(torch.randn(5, 3)).square().mean()
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.losses[self.step] = float(loss.detach())
            self.step += 1
            progress = {"step": self.step}
            self.checkpoints.save(self.model, self.optimizer, progress, {"losses": self.losses})

    def state(self) -> list[torch.Tensor]:
        return [self.losses, *(p.detach() for p in self.model.parameters())]


def assert_equal(one: Run, other: Run) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one.state(), other.state(), strict=True))


def test_resumes_exactly_and_keeps_two(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole")
    whole.train(9)
    Run(tmp_path / "cut").train(5)
    resumed = Run(tmp_path / "cut")
    assert resumed.step == 5
    resumed.train(9)
    assert_equal(resumed, whole)
    names = [p.name for p in resumed.checkpoints.paths()]
    assert names == ["ebr-9.safetensors", "ebr-8.safetensors"]


@pytest.mark.parametrize("cut", [0, 7, 100, -1])  # bytes that are left; the last but one
def test_a_damaged_one_is_passed_over_for_the_one_before(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Run(tmp_path / "whole")
    whole.train(9)
    Run(tmp_path / "cut").train(6)
    newest = tmp_path / "cut" / "ebr-6.safetensors"
    newest.write_bytes(newest.read_bytes()[:cut])
    with caplog.at_level(logging.WARNING, "csrm"):
        resumed = Run(tmp_path / "cut")
    assert resumed.step == 5
    assert "ebr-6.safetensors cannot be used" in caplog.text
    resumed.train(9)
    assert_equal(resumed, whole)


def test_without_a_usable_one_nothing_is_thrown_away(tmp_path: Path) -> None:
    Run(tmp_path).train(4)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"no checkpoint .*ebr-4.*delete this folder"):
        Run(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_full_disk_leaves_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.train(3)

    def full(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        run.train(4)
    assert Run(tmp_path).step == 3
