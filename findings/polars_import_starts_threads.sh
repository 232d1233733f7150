#!/usr/bin/env bash
# What: `import polars` alone, with no frame made, leaves the process with threads: its allocator's
# (jemalloc_bg_thd) and one that clears spilled files (polars-ooc-cleaner). With
# _RJEM_MALLOC_CONF=background_thread:false only the latter is left. A fork of such a process has
# one thread; 200 forks that sort a frame right away all end.
# Version: polars 2.1.0, Linux.
# Why it matters: a server that imports its libraries once and forks its workers (Celery's prefork,
# Airflow's LocalExecutor) takes "import only" for single-threaded, and from Python 3.12 on each
# os.fork() of it warns of deadlocks.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "polars==2.1.0"
cat >"$work/seen.py" <<'PY'
import os
import signal
import sys
from pathlib import Path


def threads():
    return sorted(p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm"))


assert len(threads()) == 1
import polars as pl  # noqa: E402

others = [name for name in threads() if name != threads()[-1] or not name.startswith("python")]
print("after the import:", ", ".join(others))
started = any(name.startswith("polars-ooc") for name in others)
assert started, "no thread of its own is left after the import now"
allocator = sum(name.startswith("jemalloc") for name in others)
assert bool(allocator) is (sys.argv[1] == "as it comes"), "the allocator's threads differ now"

FORKS, alone = 200, 0
for _ in range(FORKS):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        code = 0 if len(threads()) == 1 else 1
        assert pl.DataFrame({"x": [3, 1, 2]}).sort("x")["x"].to_list() == [1, 2, 3]
        os._exit(code)
    alone += os.waitpid(child, 0)[1] == 0
print(f"forks that had one thread, sorted a frame and ended: {alone} of {FORKS}")
assert alone == FORKS, "a fork hung, failed or had more threads"
PY
"$work/venv/bin/python" -W ignore "$work/seen.py" "as it comes"
_RJEM_MALLOC_CONF=background_thread:false "$work/venv/bin/python" -W ignore "$work/seen.py" off
