"""Large tensors come from one heap (llm.heap)."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MAPPED = """
import ctypes
from csrm_tasks.llm.heap import keep_one_heap

class Mallinfo2(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in ("arena", "ordblks", "smblks", "hblks", "hblkhd",
                "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
{before}
start = mallinfo2().hblks
block = bytearray(64 << 20)
print(mallinfo2().hblks - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallinfo2 is glibc's")
@pytest.mark.parametrize(("before", "mapped"), [("", 1), ("assert keep_one_heap()", 0)])
def test_a_large_block_is_mapped_by_itself_only_without_it(before: str, mapped: int) -> None:
    code = MAPPED.format(before=before)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == mapped
