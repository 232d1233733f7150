"""The study's table, in Markdown; figures are points of micro-F1 on clean generated gold pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from csrm_tasks.demo.study.effects import Effect, over_seeds, queries_needed
from csrm_tasks.demo.study.run import SeedResult, effects
from csrm_tasks.demo.study.verdict import verdict
from csrm_tasks.evaluation.paired import Interval

TITLES = {
    ("mt", "sft"): "MT over source labels alone",
    ("labels", "sft"): "target labels over source labels alone",
    ("rqa", "labels"): "RQA over none",
    ("rqa_star", "rqa"): "RQA* over RQA",
    ("sd", "hard"): "self-distillation over hard labels, 20 % of them wrong",
    ("sd_short", "hard_short"): "… both stopped early",
    ("sd", "hard_short"): "… over hard labels stopped early",
}
GAP = "transfer gap: without MT, less with MT (no points; `sft` − `mt`)"


def table(results: Sequence[SeedResult]) -> str:
    """Return effects with intervals and verdicts, then every arm by seed; what is missing is –."""
    found = effects(results)
    seeds = " | ".join(f"seed {r.seed}" for r in results)
    line = " --- |" * len(results)
    lines = [
        f"| step | effect | 95 % by query | 95 % by seed | verdict | {seeds} |",
        "| --- | --- | --- | --- | --- |" + line,
        *(_effect_row(e, len(results)) for e in found),
        *_gap_row(results),
        "",
        f"| | mean | {seeds} |",
        "| --- | --- |" + line,
        *_rows("micro-F1", [_micro(r) for r in results], 100.0),
        *_rows("fit of own train labels", [r.fits for r in results], 100.0),
        *_rows("transfer gap", [r.gaps for r in results], 1.0),
        "",
        *(_power(e, results) for e in found),
    ]
    return "\n".join(lines) + "\n"


def _effect_row(effect: Effect, seeds: int) -> str:
    own = [f"{100 * x.value:+.1f}" for x in effect.seeds]
    title = f"{TITLES[effect.arm, effect.control]} (`{effect.arm}` − `{effect.control}`)"
    points = f"{100 * effect.by_query.value:+.2f}"
    limits = (_limits(x, 100.0, 2) for x in (effect.by_query, effect.by_seed))
    return _row(title, points, *limits, f"**{effect.verdict}**", *_filled(own, seeds))


def _gap_row(results: Sequence[SeedResult]) -> list[str]:
    """The gap has no queries to resample: seeds alone decide it."""
    own = [r.gaps["sft"] - r.gaps["mt"] for r in results if {"sft", "mt"} <= set(r.gaps)]
    if not own:
        return []
    spread = over_seeds(own)
    each = _filled([f"{x:+.3f}" for x in own], len(results))
    limits, said = _limits(spread, 1.0, 3), verdict("gain", spread)
    return [_row(GAP, f"{spread.value:+.3f}", "–", limits, f"**{said}**", *each)]


def _limits(x: Interval, unit: float, digits: int) -> str:
    if not isfinite(x.lo):
        return "–"  # one seed has no interval by seed
    return f"[{unit * x.lo:+.{digits}f}, {unit * x.hi:+.{digits}f}]"


def _micro(result: SeedResult) -> dict[str, float]:
    """Micro-F1, which is accuracy where every pair has one label (A42)."""
    right = {name: t["grade"] == t["said"] for name, t in result.answers.items()}
    return {name: float(r.sum()) / len(r) for name, r in right.items()}


def _rows(what: str, by_seed: Sequence[Mapping[str, float]], unit: float) -> list[str]:
    digits = 1 if unit > 1 else 3
    lines = []
    for arm in by_seed[0]:
        own = [unit * values[arm] for values in by_seed if arm in values]
        each = [f"{x:.{digits}f}" for x in own]
        mean = f"{sum(own) / len(own):.{digits}f}"
        lines.append(_row(f"{what}, `{arm}`", mean, *_filled(each, len(by_seed))))
    return lines


def _power(effect: Effect, results: Sequence[SeedResult]) -> str:
    """How many gold queries would decide a point; the noise of training is not in."""
    used = [r.answers[effect.arm]["query_id"].n_unique() for r in results[: len(effect.seeds)]]
    needed = queries_needed(effect, sum(used))
    return (
        f"- `{effect.arm}` − `{effect.control}`: {sum(used):,} gold queries; "
        f"{needed:,} would show one point."
    )


def _filled(cells: Sequence[str], n: int) -> list[str]:
    """Seeds are worked through in order, so those without a figure are the last."""
    return [*cells, *["–"] * (n - len(cells))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
