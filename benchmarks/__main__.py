"""Run one benchmark by name, or all of them; ``benchmarks/RESULTS.md`` keeps what was seen."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import benchmarks
from benchmarks.harness import QUICK

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
HEAD = (
    "# Benchmark results\n\nWritten by `make bench`; each section by the command in it. Two shared "
    "cores: medians of alternating repeats, spread beside them; ratios are peer over ours, above 1 "
    "is better; of memory, bytes, latency, p99 and build time they are ours over the peer's where "
    "the target is an upper bound, below 1 is better.\n"
)


def names() -> list[str]:
    """Every benchmark: a module ``bench_NAME`` with ``main(quick: bool) -> None``."""
    found = (m.name for m in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(n.removeprefix("bench_") for n in found if n.startswith("bench_"))


def record(chosen: list[str]) -> None:
    """Run each benchmark in a process of its own and write down its section, the others kept."""
    sections = _sections(RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "")
    for name in chosen:
        command = [sys.executable, "-m", "benchmarks", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)
        print(done.stdout)
        if done.returncode != 0:
            sys.exit(f"benchmark {name} failed:\n{done.stderr}")
        sections[name] = f"`.venv/bin/python -m benchmarks {name}`\n\n{done.stdout.strip()}\n"
        kept = [f"## {n}\n\n{sections[n]}" for n in names() if n in sections]
        RESULTS.write_text("\n".join([HEAD, *kept]), encoding="utf-8")


def _sections(text: str) -> dict[str, str]:
    """Return the text of each ``## name`` of an earlier run."""
    parts = re.split(r"^## (\w+)\n\n", text, flags=re.MULTILINE)[1:]
    return {name: body.rstrip() + "\n" for name, body in zip(parts[::2], parts[1::2], strict=True)}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("name", nargs="?", choices=names(), help="without a name: all of them")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="ends within 60 s; may be smaller")
    how.add_argument("--record", action="store_true", help="write its section of RESULTS.md")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if given.name is None or given.record:
        record([given.name] if given.name else names())
    else:
        if given.quick:
            os.environ[QUICK] = "1"
        importlib.import_module(f"benchmarks.bench_{given.name}").main(given.quick)


if __name__ == "__main__":
    main()
