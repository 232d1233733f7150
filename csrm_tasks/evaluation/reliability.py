"""Reliability plot: how often a model is right, by how sure it is (Guo et al. 2017), as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

SIZE, EDGE = 400, 46  # side, and the margin for axes
STYLE = (
    "<style>svg{background:#fff}text{font:13px system-ui,sans-serif;fill:#1d2327}"
    ".rule{stroke:#dcdfdd}.whisker{stroke:#0b5d7a;stroke-width:2.5}.dot{fill:#0b5d7a}"
    ".peer .dot{fill:#5b666e}.peer .whisker{stroke:#5b666e}</style>"
)
Curve = Sequence[tuple[float, float]]


def curve(bins: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return (mean confidence, share right) of the bins (count, confidence, hits) that hold any."""
    return [(confidence / n, hits / n) for n, confidence, hits in bins if n]


def plot(title: str, curves: Mapping[str, Curve], style: str = "") -> str:
    """Return an SVG: confidence to the right, share right upwards; calibrated is diagonal.

    ``curves``: after and, in grey, before. A page brings its own style; a file needs
    :data:`STYLE`.
    """
    (x0, y0), (x1, y1) = _at(0, 0), _at(1, 1)
    marks = [style, f'<line class="rule" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>']
    for tick in (0.0, 0.5, 1.0):
        (x, _), (_, y) = _at(tick, 0), _at(0, tick)
        marks.append(f'<text class="axis" x="{x}" y="{y0 + 18}" text-anchor="middle">{tick}</text>')
        marks.append(f'<text class="axis" x="{x0 - 8}" y="{y + 4}" text-anchor="end">{tick}</text>')
    for when in sorted(curves, reverse=True):  # before, then after on top
        dots = [_at(*point) for point in curves[when]]
        lines = [
            f'<line class="whisker" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>'
            for (a, b), (c, d) in pairwise(dots)
        ]
        lines += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in dots]
        marks.append(f'<g class="row{" peer" if when == "before" else ""}">{"".join(lines)}</g>')
    spoken = "; ".join(
        f"{when}: " + ", ".join(f"{y:.2f} right at {x:.2f}" for x, y in points)
        for when, points in sorted(curves.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" role="img" '
        f'aria-label="{escape(title)}; {escape(spoken)}">{"".join(marks)}</svg>'
    )


def _at(x: float, y: float) -> tuple[float, float]:
    span = SIZE - 2 * EDGE
    return EDGE + x * span, SIZE - EDGE - y * span
