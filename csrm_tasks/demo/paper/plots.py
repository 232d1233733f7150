"""Plots of the study as inline SVG: lines over a number, in the style of the run's report.

Every plot has a text alternative, and lines differ by dash and label as well as by shade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1000, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 190, 14, 34  # margins; labels stand at the right
DASHES = ("", "7 5", "2 4", "12 4 2 4")


@dataclass(frozen=True)
class Line:
    """A named series; ``points`` are (x, y), in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Frame:
    """How values become places."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )


def lines(title: str, series: Sequence[Line], x_title: str) -> str:
    """Return a card with the lines of ``series``; nothing where none has a point."""
    known = [s for s in series if s.points]
    if not known:
        return ""
    frame = _frame_of(known)
    marks = [_axis(frame, at) for at in sorted({x for s in known for x, _ in s.points})]
    marks += [_level(frame, at) for at in (frame.y[0], sum(frame.y) / 2, frame.y[1])]
    heights = _apart([frame.at(*s.points[-1])[1] for s in known])
    for i, (one, height) in enumerate(zip(known, heights, strict=True)):
        marks.append(_line(frame, one, DASHES[i % len(DASHES)], i > 0, height))
    spoken = "; ".join(
        f"{s.name}: " + ", ".join(f"{y:.1f} at {x:g}" for x, y in s.points) for s in known
    )
    return (
        f'<div class="card"><h3>{escape(title)}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(title)}: {escape(spoken)}">{"".join(marks)}'
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 2}" '
        f'text-anchor="middle">{escape(x_title)}</text></svg></div>'
    )


def _frame_of(series: Sequence[Line]) -> _Frame:
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    room = 0.08 * (max(ys) - min(ys)) or 1.0
    return _Frame((min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1.0),
                  (min(ys) - room, max(ys) + room))  # fmt: skip


def _apart(heights: Sequence[float], least: float = 16.0) -> list[float]:
    """Move labels down until none covers the one above it."""
    placed = dict.fromkeys(range(len(heights)), 0.0)
    above = -least
    for i in sorted(placed, key=lambda i: heights[i]):
        above = placed[i] = max(heights[i], above + least)
    return list(placed.values())


def _line(frame: _Frame, one: Line, dash: str, grey: bool, height: float) -> str:
    places = [frame.at(x, y) for x, y in one.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places)
    return (
        f'<g class="{"peer" if grey else "own"}"><polyline class="whisker" fill="none" '
        f'style="fill:none" stroke-dasharray="{dash}" points="{path}"/>{dots}'
        f'<text x="{WIDTH - RIGHT + 12}" y="{height + 4:.1f}">{escape(one.name)}</text></g>'
    )


def _axis(frame: _Frame, value: float) -> str:
    x, _ = frame.at(value, frame.y[0])
    return (
        f'<text class="axis" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
        f"{value:g}</text>"
    )


def _level(frame: _Frame, value: float) -> str:
    _, y = frame.at(frame.x[0], value)
    return (
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>'
    )
