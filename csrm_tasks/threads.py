"""How many threads compute in a process: as many as a step is given, and no more than is granted.

Unless told otherwise OpenMP and BLAS take a thread for each CPU of the machine, however few of them
a container or a scheduler grants. How many threads a step is given (``CSRM_THREADS``) is never
changed here: work is cut by that number, so sums and with them results are.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

log = logging.getLogger("csrm")

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def set_default(env: MutableMapping[str, str] = os.environ) -> None:
    """Have libraries that are loaded from now on take no more threads than CPUs are granted.

    What the environment says already is left alone. Started processes inherit it.
    """
    env.setdefault("OMP_NUM_THREADS", str(granted_cpus()))


def granted_cpus() -> int:
    """Return how many CPUs this process may use at once: by affinity, and by its cgroup's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([affinity or 1, *map(math.ceil, _quotas())]))


def use_threads(threads: int) -> None:
    """Compute with ``threads`` threads in this process, whether or not torch is loaded yet."""
    granted = granted_cpus()
    if threads > granted:
        log.warning(
            "CSRM_THREADS is %d, but this process is granted %d CPUs (cpu.max, affinity): threads "
            "will wait for each other; lower it",
            threads, granted,
        )  # fmt: skip
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def groups(controller: str) -> Iterator[Path]:
    """Yield the cgroup of this process and those above it that ``controller`` (as ``cpu``) is in.

    In a container the own one is the root. Version 1 has a tree for each controller.
    """
    for line in _text(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        own = root / path.lstrip("/")
        yield from (p for p in (own, *own.parents) if p.is_relative_to(root))


def memory_limit() -> int | None:
    """Return the bytes of the tightest cgroup around this process; None where none sets a limit."""
    texts = (
        _text(group / name).strip()
        for group in groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    )
    # version 1 says "none" by a number near 2**63
    return min((n for t in texts if t.isdecimal() and (n := int(t)) < 2**60), default=None)


def _quotas() -> list[float]:
    """Return the CPUs that each cgroup around this process grants; one that sets none is left out.

    Version 2: ``cpu.max``; version 1: quota and period.
    """
    found = []
    for group in groups("cpu"):
        words = _text(group / "cpu.max").split() or [
            *_text(group / "cpu.cfs_quota_us").split(),
            *_text(group / "cpu.cfs_period_us").split(),
        ]
        if len(words) == 2 and words[0].isdecimal() and int(words[1]) > 0:
            found.append(int(words[0]) / int(words[1]))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
