"""Freed memory that glibc kept goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from csrm_tasks.training.heap import Heap

PAGE = 4096
BLOCKS, SIZE = 4096, 32 * 1024  # 128 MiB in pieces that come from the heap, not from mmap


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_holes_between_what_is_in_use_are_given_back() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("the C library is not glibc")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    held = [libc.malloc(SIZE) for _ in range(BLOCKS)]
    for block in held:
        ctypes.memset(block, 1, SIZE)
    for block in held[::2]:  # no neighbours: holes, which the heap's top cannot take in
        libc.free(block)
    before = resident()
    assert Heap(seconds=0).trim()
    assert before - resident() > BLOCKS * SIZE / 4
    for block in held[1::2]:
        libc.free(block)


def test_not_again_just_after() -> None:
    heap = Heap(seconds=3600)
    assert not heap.trim()
