"""Which number format is chosen on a CPU (A13)."""

from __future__ import annotations

import pytest
import torch

from csrm_tasks.training import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("has_bf16", "width", "gain", "expected"),
    [
        (True, 512, 3.0, torch.bfloat16),
        (True, 512, 1.2, torch.float32),  # there, but not worth it
        (False, 512, 3.0, torch.float32),  # emulated
        (True, 128, 3.0, torch.float32),  # a tiny model is the same on every machine
    ],
)
def test_bf16_is_chosen_where_it_is_there_and_pays(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, width: int, gain: float, expected: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has_bf16)
    seconds = {torch.float32: gain, torch.bfloat16: 1.0}
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype, width: seconds[dtype])
    assert precision.choose_dtype(CPU, width) is expected
