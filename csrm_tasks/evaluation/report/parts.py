"""Pieces of the report as HTML strings: tables, forest plots, confusion matrices.

Every colour also says itself in words or signs, every chart has a text alternative, and every
value that comes from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from csrm_tasks.records import Grade

Json = Mapping[str, Any]
CHIP = {"better": ("good", "▲"), "worse": ("bad", "▼"), "not decided": ("open", "?")}
LABELS = [f"{int(g)} {g.name.lower()}" for g in Grade]


def number(value: float | None, signed: bool = False) -> str:
    """Format a share with three decimals; an undefined one is a dash."""
    if value is None:
        return "–"
    value = round(value, 3) + 0.0  # no minus before a zero
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("-", "−")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a scrollable table; cells are HTML already, the first of a row is its header."""
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{c}</td>" for c in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def estimate(figure: Json | None, signed: bool = False) -> str:
    """Return a value with its interval beneath; a dash where it was not measured."""
    if figure is None or figure["value"] is None:
        return "–"
    lo, hi = number(figure["lo"], signed), number(figure["hi"], signed)
    return f"{number(figure['value'], signed)}<small>[{lo}, {hi}]</small>"


def chip(comparison: Json) -> str:
    """Return a difference with what it decides: a colour, a sign, and a word for screen readers.

    A dash where it is undefined.
    """
    if comparison["value"] is None:
        return "–"
    tone, sign = CHIP[comparison["verdict"]]
    text = number(comparison["value"], signed=True)
    lo, hi = number(comparison["lo"], True), number(comparison["hi"], True)
    return (
        f'<span class="chip {tone}"><span role="img" aria-label="{comparison["verdict"]}">{sign}'
        f"</span> {text}</span><small>[{lo}, {hi}]</small>"
    )


def forest(title: str, models: Sequence[Json], figure: str) -> str:
    """Return an SVG of one figure of every model that has it, with 95 % intervals."""
    rows = [m for m in models if (m["figures"].get(figure) or {}).get("value") is not None]
    if not rows:
        return ""
    lows = [m["figures"][figure]["lo"] for m in rows]
    highs = [m["figures"][figure]["hi"] for m in rows]
    left, right = max(0.0, min(lows) - 0.03), min(1.0, max(highs) + 0.03)
    height, first = 30 * len(rows) + 34, 190

    def x(value: float) -> float:
        return float(first + (value - left) / (right - left) * (1000 - first - 90))

    marks = [_tick(x(v), v, height) for v in _ticks(left, right)]
    marks += [_row(m, m["figures"][figure], 20 + 30 * i, x) for i, m in enumerate(rows)]
    spoken = "; ".join(f"{m['name']} {number(m['figures'][figure]['value'])}" for m in rows)
    return _plot(title, height, spoken, marks)


def differences(title: str, rows: Sequence[tuple[str, Json]]) -> str:
    """Return an SVG of differences with 95 % intervals around a line at zero; name → comparison."""
    rows = [(name, d) for name, d in rows if d["value"] is not None]
    if not rows:
        return ""
    most = max(max(abs(d["lo"]), abs(d["hi"])) for _, d in rows) or 0.01
    height, first = 26 * len(rows) + 34, 260

    def x(value: float) -> float:
        return float(first + (value + most) / (2 * most) * (1000 - first - 90))

    marks = [_tick(x(v), v, height, signed=True) for v in (-most, 0.0, most)]
    for i, (name, d) in enumerate(rows):
        marks.append(_row({"name": name, "kind": d["verdict"]}, d, 18 + 26 * i, x, signed=True))
    spoken = "; ".join(f"{name} {number(d['value'], True)} {d['verdict']}" for name, d in rows)
    return _plot(title, height, spoken, marks)


def _plot(title: str, height: int, spoken: str, marks: Sequence[str]) -> str:
    return (
        f'<div class="card"><h3>{escape(title)}</h3>'
        f'<svg viewBox="0 0 1000 {height}" role="img" aria-label="{escape(title)}: '
        f'{escape(spoken)}">{"".join(marks)}</svg></div>'
    )


def _ticks(left: float, right: float) -> list[float]:
    step = next(s for s in (0.02, 0.05, 0.1, 0.2) if (right - left) / s <= 8)
    first = int(left / step) + 1
    return [i * step for i in range(first, int(right / step) + 1)]


def _tick(x: float, value: float, height: int, signed: bool = False) -> str:
    text = f"{value:+.2f}" if signed and value else f"{value:.2f}"
    return (
        f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 24}"/>'
        f'<text class="axis" x="{x:.1f}" y="{height - 6}" text-anchor="middle">{text}</text>'
    )


def _row(
    model: Json, figure: Json, y: int, x: Callable[[float], float], signed: bool = False
) -> str:
    """Draw one interval; grey: a baseline, the live release, or a difference not decided."""
    grey = model["kind"] in ("baseline", "not decided") or model["name"].startswith("champion")
    lo, hi, mid = x(figure["lo"]), x(figure["hi"]), x(figure["value"])
    return (
        f'<g class="row{" peer" if grey else ""}">'
        f'<text x="0" y="{y + 5}">{escape(model["name"])}</text>'
        f'<line class="whisker" x1="{lo:.1f}" x2="{hi:.1f}" y1="{y}" y2="{y}"/>'
        f'<circle class="dot" cx="{mid:.1f}" cy="{y}" r="5"/>'
        f'<text x="995" y="{y + 5}" text-anchor="end">{number(figure["value"], signed)}</text></g>'
    )


def matrix(title: str, confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Return a confusion matrix; a cell's shade is its share of its row (of the true grade)."""
    short = [name.split()[0] for name in labels]  # "2 exact" heads its column as "2"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in short)
    body = []
    for name, row in zip(labels, confusion, strict=True):
        total = sum(row) or 1
        cells = "".join(
            f'<td class="heat" style="--share:{n / total:.2f}"><span class="n">{n}</span>'
            f"<small>{n / total:.0%}</small></td>"
            for n in row
        )
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="matrix">'
        f"<caption><strong>{escape(title)}</strong> · judged ↓ said →</caption>"
        f'<thead><tr><th scope="col"><span class="soft">judged</span></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
