"""Where glibc keeps a training's tensors."""

from __future__ import annotations

import ctypes
import platform

TOP_PAD, MMAP_MAX = -2, -4  # mallopt's names for them (malloc.h)
AHEAD = 256 << 20  # bytes asked of the kernel at a time


def keep_one_heap() -> bool:
    """Make this process take large tensors from one heap; returns whether it could (glibc).

    By default glibc maps large blocks one by one until it has seen one freed, and keeps the others
    in a heap that then has holes no block fits: a training step of 400 MB of tensors held 690 MB
    (``benchmarks/bench_llm_step.py``). In one heap it holds 415 MB, and takes no longer.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TOP_PAD, AHEAD))
