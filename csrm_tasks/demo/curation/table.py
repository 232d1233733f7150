"""The table of the study of curation, in Markdown; figures are points of F1 or of a share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, isnan

import polars as pl

from csrm_tasks.demo.curation.effects import F1, HARD_PRECISION, TASKS, Effect, Measure, f1_of
from csrm_tasks.demo.curation.run import PRECISION, SeedResult, effects, filter_precision
from csrm_tasks.evaluation.paired import Interval

ARMS = (
    "base", "translated", "negatives", "filtered", "weighed", "again", "best", "merged", "kept",
)  # fmt: skip


def table(results: Sequence[SeedResult]) -> str:
    """Return claims with intervals and verdicts, then arms and decisions by seed."""
    head = [f"seed {r.seed}" for r in results]
    claims = [
        _claim(f"{c.title} (`{c.arm}` − `{c.control}`, {c.measure.name})", e, len(results), "+.2f")
        for c, e in effects(results)
    ]
    found = filter_precision(results)
    if found is not None:
        claims.insert(4, _claim(f"{PRECISION} (share)", found, len(results), ".1f"))
    lines = [
        *_head("claim", "measured", "95 % by query", "95 % by seed", "verdict", *head),
        *claims,
        "",
        *_head("", "mean", *head),
        *(row for arm in ARMS for row in _arm(arm, results)),
        *_row_of("wrong labels removed, % of all", [_percent(r.recall) for r in results]),
        *_row_of("labels removed", [_height(r.flagged) for r in results]),
        "",
        *_head("ablation on dev", *head),
        *_ablation(results),
    ]
    return "\n".join(lines) + "\n"


def _claim(title: str, effect: Effect, seeds: int, form: str) -> str:
    own = _filled(["–" if isnan(x) else f"{100 * x:{form}}" for x in effect.seeds], seeds)
    limits = (_limits(x, form) for x in (effect.by_query, effect.by_seed))
    value = f"{100 * effect.by_query.value:{form}}"
    return _row(title, value, *limits, f"**{effect.verdict}**", *own)


def _limits(x: Interval, form: str) -> str:
    if not isfinite(x.lo):
        return "–"  # one seed has no interval by seed
    return f"[{100 * x.lo:{form}}, {100 * x.hi:{form}}]"


def _arm(arm: str, results: Sequence[SeedResult]) -> list[str]:
    """Mean F1, its parts by task and language, and the precision on hard ones."""
    if not any(arm in r.answers for r in results):
        return []
    measures = (F1, *map(f1_of, TASKS), HARD_PRECISION)
    parts: list[tuple[str, Measure, pl.Expr]] = [(m.name, m, pl.lit(True)) for m in measures]
    locales = sorted({x for r in results if arm in r.answers for x in r.answers[arm]["locale"]})
    parts += [(f"{F1.name} {x}", F1, pl.col("locale") == x) for x in locales]
    return [
        line
        for name, measure, rows in parts
        for line in _row_of(f"`{arm}`, {name}", [_value(r, arm, measure, rows) for r in results])
    ]


def _value(result: SeedResult, arm: str, measure: Measure, rows: pl.Expr) -> float | None:
    if arm not in result.answers:
        return None
    counts = measure.counts(result.answers[arm].filter(rows)).sum(0)
    return 100 * float(measure.figure(counts))


def _row_of(name: str, values: Sequence[float | None]) -> list[str]:
    known = [v for v in values if v is not None]
    if not known:
        return []
    cells = ["–" if v is None else f"{v:.1f}" for v in values]
    return [_row(name, f"{sum(known) / len(known):.1f}", *cells)]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _height(frame: pl.DataFrame | None) -> float | None:
    return None if frame is None else float(frame.height)


def _ablation(results: Sequence[SeedResult]) -> list[str]:
    """Of each option whether dev keeps it, and by how many points dev is better with it."""
    names = dict.fromkeys(one["option"] for r in results for one in r.options)

    def cell(result: SeedResult, name: str) -> str:
        told = next((one for one in result.options if one["option"] == name), None)
        if told is None:
            return "–"
        points: Mapping[str, float] = told["delta"]
        limits = f"[{100 * points['lo']:+.1f}, {100 * points['hi']:+.1f}]"
        kept = "kept" if told["kept"] else "dropped"
        return f"{kept}, {100 * points['value']:+.1f} {limits}"

    return [_row(f"`{name}`", *(cell(r, name) for r in results)) for name in names]


def _head(*cells: str) -> list[str]:
    return [_row(*cells), _row(*("---" for _ in cells))]


def _filled(cells: Sequence[str], n: int) -> list[str]:
    """Seeds are worked through in order, so those without a figure are the last."""
    return [*cells, *["–"] * (n - len(cells))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
