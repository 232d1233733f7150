"""A year of AnalytiCup-sized input through the commands: import, three nights, one snapshot.

``csrm import cikm2025``, ``csrm ingest`` of each split's day and ``csrm snapshot`` of both tasks
are processes of their own, on SQLite, with two threads. ``seconds`` is their sum, ``peak_memory``
the greatest resident size of any of them; files are written before the clock starts. No peer: what
it is held to is five minutes and 3 GB.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks import analyticup
from benchmarks.harness import closing_line, table

DAYS = ("2025-01-06", "2025-01-13", "2025-01-20")
MORE = """\
tasks: [qc, qi]
evaluation_locales: [{locales}]
ingest: {{tolerance: 0.5, category_separator: ">"}}
snapshot: {{gold_raters: 1, gold_agree: 1}}
"""


@dataclass(frozen=True)
class Commands:
    """An installation in a folder of its own."""

    root: Path

    def run(self, *arguments: str) -> float:
        """Run ``csrm`` with ``arguments``; returns its seconds, and stops where it fails."""
        own = {"CSRM_HOME": self.root / "home", "CSRM_MARKETS": self.root / "markets"}
        env = os.environ | {name: str(path) for name, path in own.items()} | {"CSRM_THREADS": "2"}
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "csrm_tasks", *arguments],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            sys.exit(f"csrm {' '.join(arguments)}: {done.stderr[-3000:]}")
        return seconds


def main(quick: bool) -> None:
    """Print each command's seconds and the closing line."""
    with tempfile.TemporaryDirectory(prefix="csrm-bench-") as folder:
        root = Path(folder)
        data = root / "data"
        data.mkdir()
        rows = analyticup.write(data, 8_050 if quick else analyticup.ROWS)
        csrm = Commands(root)
        seconds = _measure(csrm, data)
        told = _told(csrm)
    print(f"{rows:,} rows ({told}), {sum(seconds.values()):.4g} s\n")
    print(table([{"command": f"csrm {c}", "s": s} for c, s in seconds.items()]) + "\n")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    whole = sum(seconds.values())
    figures = {"seconds": whole, "rows_per_second": rows / whole, "peak_memory": peak}
    print(closing_line("import_cikm", figures, ("polars", "pyarrow", "pandera", "SQLAlchemy")))


def _measure(csrm: Commands, data: Path) -> dict[str, float]:
    spoken, into = analyticup.LOCALES, ["--market", "cikm2025"]
    locales = [part for s in analyticup.SOURCES for part in ("--source", spoken[s])]
    locales += ["--target", spoken[analyticup.TARGET]]
    csrm.run("market", "new", "cikm2025", *locales)
    file = csrm.root / "markets" / "cikm2025.yaml"
    judged_in = ", ".join(spoken[s] for s in analyticup.JUDGED_IN)
    file.write_text(file.read_text(encoding="utf-8") + MORE.format(locales=judged_in), "utf-8")
    asked = ("cikm2025", "--data-dir", str(data), *into, *locales)
    seconds = {"import cikm2025": csrm.run("import", *asked)}
    for day in DAYS:
        seconds[f"ingest --day {day}"] = csrm.run("ingest", *into, "--day", day)
    seconds["snapshot"] = csrm.run("snapshot", *into, "--stage", "2", "--until", DAYS[-1])
    return seconds


def _told(csrm: Commands) -> str:
    """Return what became of the rows, by the import's own report and by the snapshot."""
    home = csrm.root / "home"
    report = json.loads((home / "imports" / "cikm2025" / "report.json").read_text("utf-8"))
    landed = sum(n for name, n in report["landed"].items() if "/catalogue-" not in name)
    out = {reason: sum(files.values()) for reason, files in report["left_out"].items()}
    (pairs,) = home.glob("artifacts/**/task_pairs.parquet")
    kept = "; ".join(f"{reason} {n:,}" for reason, n in out.items())
    return f"{landed:,} landed; {kept}; {pq.ParquetFile(pairs).metadata.num_rows:,} pairs of tasks"
