"""Alternating repeats, medians with spread, and the closing line of JSON."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

QUICK = "CSRM_BENCHMARKS_QUICK"  # set in the environment of a quick run, and of its processes


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant over all repeats."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """Least and greatest, for the table."""
        return f"{min(self.seconds):.4g}–{max(self.seconds):.4g}"


def alternate(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Run every contestant once to warm up, then ``repeats`` times in turn (A B A B …).

    A quick run shows that all run to their end, not how fast: it warms nothing up.
    """
    if not os.environ.get(QUICK):
        for run in contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(s)) for name, s in seconds.items()}


def ratio(peer: Timing, ours: Timing) -> float:
    """Median of the pairwise ratios peer / ours: robust when the machine's speed drifts."""
    return statistics.median(p / o for p, o in zip(peer.seconds, ours.seconds, strict=True))


def table(rows: list[dict[str, object]]) -> str:
    """Render rows (same keys) as a Markdown table."""
    heads = list(rows[0])
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def timing_rows(timings: Mapping[str, Timing], work: float, unit: str) -> list[dict[str, object]]:
    """Rows of a table: median seconds, spread, and ``work`` units per second."""
    return [
        {"contestant": k, "median s": t.median, "least–greatest s": t.spread, unit: work / t.median}
        for k, t in timings.items()
    ]


def closing_line(name: str, figures: Mapping[str, float], packages: tuple[str, ...]) -> str:
    """Return the one line of JSON that ends every benchmark."""
    return json.dumps(
        {
            "name": name,
            "figures": {k: round(float(v), 6) for k, v in figures.items()},
            "versions": {p: version(p) for p in packages},
        }
    )
