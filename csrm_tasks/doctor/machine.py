"""This machine: room on its disks, memory, what its cgroup grants, how threads wait, its clock."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from csrm_tasks.base_models import weights_bytes
from csrm_tasks.blobs import local_folder
from csrm_tasks.doctor.findings import Asked, Finding, Said, explained
from csrm_tasks.errors import CsrmError
from csrm_tasks.markets import load_market
from csrm_tasks.settings import PROJECT_ROOT, Settings, bases_folder
from csrm_tasks.threads import granted_cpus, memory_limit

say = Said("machine")
GB = 1024**3
# A night needs megabytes, a week of a small market a gigabyte or two.
DISK_FAULT, DISK_WARNED = 1 * GB, 10 * GB
INODES = 10_000
FILES = 1024  # open at once: shards, Parquet files, connections
LEAST_MEMORY = 2 * GB  # what a step of the smallest market takes, with its libraries
COPIES = 4  # of a base's weights in a training: itself twice while it is loaded, and what it keeps

Room = Callable[[Path], tuple[int, int]]  # bytes and files that a folder may still take
ALONE = 10_000  # turns of a waiting thread that pay where a machine does nothing else


def room_of(folder: Path) -> tuple[int, int]:
    """Return free bytes and free file entries of a folder's file system, for this user."""
    entries = os.statvfs(folder)
    # some file systems have no fixed number of entries and say 0 of 0
    free = entries.f_favail if entries.f_files else INODES
    return shutil.disk_usage(folder).free, free


def machine(asked: Asked) -> Iterator[Finding]:
    """Check this machine for what runs on it."""
    yield from disks(asked.settings)
    yield from memory(asked)
    yield from threads(asked.settings, os.environ)
    yield from clock()


def disks(settings: Settings, room: Room = room_of) -> Iterator[Finding]:
    """Yield how much each file system that we write to may still take."""
    places: dict[int, tuple[Path, list[str]]] = {}
    for name, folder in _written(settings).items():
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        places.setdefault(place.stat().st_dev, (place, []))[1].append(name)
    for place, names in places.values():
        free, entries = room(place)
        said = f"{place} ({', '.join(names)}): {free / GB:,.1f} GB free"
        cure = "free some space, or set the variable to a folder on another disk"
        if free < DISK_FAULT or entries < INODES:
            yield say.fault(said if free < DISK_FAULT else f"{said}, no file entries left", cure)
        elif free < DISK_WARNED:
            yield say.warning(said, f"{cure}; csrm release prune frees old weeks")
        else:
            yield say.ok(said)


def _written(settings: Settings) -> dict[str, Path]:
    found = {"CSRM_HOME": settings.home, "CSRM_BASES": bases_folder()}
    found["TMPDIR"] = Path(tempfile.gettempdir())
    for name in ("artifacts", "lake", "routing"):
        folder = local_folder(str(getattr(settings, name)))
        if folder is not None:
            found[f"CSRM_{name.upper()}"] = folder
    return found


def memory(asked: Asked) -> Iterator[Finding]:
    """Yield how much memory this process may use, and whether the markets' LLMs fit in it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    granted = total if limit is None else min(total, limit)
    by = "of this machine" if limit is None or limit >= total else "granted by the cgroup"
    said = f"memory: {granted / GB:,.1f} GB {by}"
    if granted < LEAST_MEMORY:
        yield say.fault(f"{said}; a step needs {LEAST_MEMORY / GB:.0f}", "grant more memory")
    else:
        yield say.ok(said)
    for market in asked.markets:
        try:
            base = load_market(market, asked.settings.markets).llm.base
            needed = COPIES * weights_bytes(base)
        except (CsrmError, ModuleNotFoundError):
            continue  # of that the check of bases tells
        if needed > granted:
            yield say.warning(
                f"market {market}: training {base} takes some {needed / GB:,.0f} GB, and "
                f"{granted / GB:,.1f} are granted",
                "train on a larger machine or a GPU, or csrm base trim it; csrm llm-cost has more",
            )
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < FILES:
        yield say.warning(f"only {files} files may be open at once", f"ulimit -n {FILES}")


def threads(settings: Settings, env: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether as many threads compute as are granted, and whether they sleep while waiting.

    Waiting threads that spin cost a shared machine four times the CPU.
    """
    granted = granted_cpus()
    if settings.threads > granted:
        yield say.warning(
            f"CSRM_THREADS is {settings.threads}, and {granted} CPUs are granted (affinity, "
            "cgroup): threads wait for each other",
            f"CSRM_THREADS={granted}, before the first training: it is part of what results are",
        )
    else:
        yield say.ok(f"threads: CSRM_THREADS {settings.threads} of {granted} CPUs granted")
    given = env.get("OMP_NUM_THREADS", "").split(",")[0]
    if given.isdecimal() and int(given) > granted:
        yield say.warning(
            f"OMP_NUM_THREADS is {given}, and {granted} CPUs are granted",
            "take it out of the environment: it is then set to what is granted",
        )
    policy, spins = env.get("OMP_WAIT_POLICY", ""), env.get("GOMP_SPINCOUNT", "0")
    if policy.lower() == "passive" and spins.isdecimal() and 0 < int(spins) <= ALONE:
        yield say.ok(
            f"waiting threads spin for {spins} turns, then sleep (GOMP_SPINCOUNT): for a machine "
            "that nobody else computes on"
        )
    elif policy.lower() != "passive" or spins != "0":
        which = f"OMP_WAIT_POLICY={policy}" if spins == "0" else f"GOMP_SPINCOUNT={spins}"
        yield say.warning(
            f"{which}: OpenMP's threads spin while they wait, which costs a machine that is "
            "shared up to four times the CPU",
            "take it out of the environment of tasks: they then wait asleep (PASSIVE)",
        )
    else:
        yield say.ok("waiting threads sleep (OMP_WAIT_POLICY=PASSIVE, set for every task)")


def clock(now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Yield whether this machine's clock is behind what was installed on it.

    How far it is from those of the store, the object store and MLflow, their checks say.
    """
    behind = (PROJECT_ROOT / "csrm_tasks" / "__init__.py").stat().st_mtime - now()
    if behind > 60:
        yield say.fault(
            f"this machine's clock is {behind / 3600:,.1f} hours behind the installed files",
            "let it follow a time server (chrony, systemd-timesyncd)",
        )
    else:
        yield say.ok(f"clock: {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now()))} UTC")


def in_words(error: BaseException, asked: Asked) -> tuple[str, str]:
    """Return what an error of this check means, and the cure."""
    del asked
    return explained(error, "this machine")
