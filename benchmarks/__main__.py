"""Run one benchmark by name, or all of them and rewrite ``benchmarks/RESULTS.md``."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import benchmarks

HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """Every benchmark: a module ``bench_NAME`` with ``main(quick: bool) -> None``."""
    found = (m.name for m in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(n.removeprefix("bench_") for n in found if n.startswith("bench_"))


def run_all() -> None:
    """Run every benchmark in a process of its own and write their tables down."""
    parts = [
        "# Benchmark results\n\nWritten by `make bench`; each section by the command in it. Two "
        "shared cores: medians of alternating repeats, spread beside them; ratios are peer over "
        "ours, above 1 is better.\n"
    ]
    for name in names():
        command = [sys.executable, "-m", "benchmarks", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)
        print(done.stdout)
        if done.returncode != 0:
            sys.exit(f"benchmark {name} failed:\n{done.stderr}")
        parts.append(f"## {name}\n\n`.venv/bin/python -m benchmarks {name}`\n\n{done.stdout}")
    (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("name", nargs="?", choices=names(), help="without a name: all of them")
    parser.add_argument("--quick", action="store_true", help="ends within 60 s; may be smaller")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if given.name is None:
        run_all()
    else:
        importlib.import_module(f"benchmarks.bench_{given.name}").main(given.quick)


if __name__ == "__main__":
    main()
