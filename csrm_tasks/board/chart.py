"""Coordinates of a small chart with intervals; the template draws them as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csrm_tasks.board.trend import Judged

WIDTH, HEIGHT = 320, 140  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 24  # margins


@dataclass(frozen=True)
class Point:
    """One release."""

    x: float
    y: float
    lo: float  # lower end of its interval, as a height
    hi: float
    text: str  # for who points at it


@dataclass(frozen=True)
class Chart:
    """One figure over time."""

    title: str
    points: tuple[Point, ...]
    ticks: tuple[tuple[float, str], ...]  # height, label
    first: str  # day of the first point
    last: str

    @property
    def line(self) -> str:
        """The points as SVG wants them."""
        return " ".join(f"{p.x:.1f},{p.y:.1f}" for p in self.points)


def chart(title: str, figure: str, judged: Sequence[Judged]) -> Chart | None:
    """Lay out one figure of the releases that have it; None where none has."""
    rows = [(j, j.figures[figure]) for j in judged if figure in j.figures]
    if not rows:
        return None
    ends = [(e.lo if e.lo is not None else e.value, e.hi if e.hi is not None else e.value)
            for _, e in rows]  # fmt: skip
    low, high = min(lo for lo, _ in ends), max(hi for _, hi in ends)
    pad = max((high - low) * 0.1, 0.005)
    low, high = low - pad, high + pad
    first, last = rows[0][0].at.timestamp(), rows[-1][0].at.timestamp()

    def height(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def across(at: float) -> float:
        span = WIDTH - LEFT - RIGHT
        return LEFT + (span / 2 if last == first else (at - first) / (last - first) * span)

    points = tuple(
        Point(
            across(j.at.timestamp()), height(e.value), height(lo), height(hi),
            f"{j.release}, {j.at:%Y-%m-%d}: {100 * e.value:.1f} % [{100 * lo:.1f}, {100 * hi:.1f}]",
        )
        for (j, e), (lo, hi) in zip(rows, ends, strict=True)
    )  # fmt: skip
    middle = (low + high) / 2
    ticks = tuple((height(v), f"{100 * v:.1f}") for v in (low + pad, middle, high - pad))
    return Chart(title, points, ticks, f"{rows[0][0].at:%m-%d}", f"{rows[-1][0].at:%m-%d}")
