"""Which number format pays on this machine: found out by trying, and recorded (A13)."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

log = logging.getLogger("csrm")

WORTH_IT = 1.5  # bf16 must be so many times faster on this model's own shape
NARROW = 256  # below this width a CPU spends its time elsewhere: fp32, the same on every machine


def choose_device() -> torch.device:
    """Return CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(device: torch.device, width: int) -> torch.dtype:
    """Return bf16 or fp32 for a model of hidden size ``width`` on ``device``.

    On a CPU without AVX512_BF16 or AMX bf16 is emulated and far slower; with it both are timed on
    one (2048, width) by (width, 4 width) product.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if width < NARROW or not _cpu_has_bf16():
        return torch.float32
    gain = _product_seconds(torch.float32, width) / _product_seconds(torch.bfloat16, width)
    log.info("bf16 is %.1f times as fast as fp32 at width %d", gain, width)
    return torch.bfloat16 if gain >= WORTH_IT else torch.float32


def cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Put a module's weights into ``dtype``, in place; its buffers stay as they were made.

    That is what ``from_pretrained(dtype=…)`` makes, and ``module.to(dtype)`` does not: rotary
    frequencies are a buffer, and a rounded one turns a token at position p by p times the rounding.
    """
    for weight in module.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)


def _cpu_has_bf16() -> bool:
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def product_rate(dtype: torch.dtype, width: int) -> float:
    """Return the FLOP/s that a CPU reaches on the product by which formats are chosen."""
    return 2 * 2048 * width * 4 * width / _product_seconds(dtype, width)


def _product_seconds(dtype: torch.dtype, width: int) -> float:
    a = torch.ones(2048, width, dtype=dtype)
    b = torch.ones(width, 4 * width, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return best
