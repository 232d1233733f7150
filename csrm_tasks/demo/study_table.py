"""The study's table, in Markdown; figures are points of micro-F1 on clean generated gold pairs."""

from __future__ import annotations

from collections.abc import Sequence

from csrm_tasks.demo.study import COMPARISONS, SeedResult, effects
from csrm_tasks.demo.study_effects import Effect, over_seeds, queries_needed, verdict
from csrm_tasks.evaluation.paired import Interval

TITLES = {
    "mt": "MT over source labels alone",
    "rqa": "RQA over none",
    "labels": "target labels over source labels alone",
    "rqa_star": "RQA* over RQA",
    "sd1": "self-distillation, round 1, over hard labels",
    "sd2": "self-distillation, round 2, over hard labels",
}
GAP = "transfer gap, without MT less with MT"


def table(results: Sequence[SeedResult]) -> str:
    """Return effects with intervals and verdicts, then every arm's micro-F1 by seed."""
    seeds = [r.seed for r in results]
    queries = sum(r.answers["sft"]["query_id"].n_unique() for r in results)
    found = effects(results)
    lines = [
        f"{len(seeds)} seeds, {queries:,} gold queries, generated data.",
        "",
        f"| step | effect | 95 % by query | 95 % by seed | verdict | {_names(seeds)} |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(seeds),
        *(_effect_row(e) for e in found),
        _gap_row(results),
        "",
        f"| micro-F1 | mean | {_names(seeds)} |",
        "| --- | --- |" + " --- |" * len(seeds),
        *(_arm_row(name, results) for name in results[0].answers),
        *(_note_row(name, results) for name in results[0].notes),
        "",
        "Gold queries that would show one point with 80 % power, training noise aside: "
        + ", ".join(f"{e.name} {queries_needed(e, queries):,}" for e in found) + ".",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _names(seeds: Sequence[int]) -> str:
    return " | ".join(f"seed {s}" for s in seeds)


def _effect_row(effect: Effect) -> str:
    own = (f"{100 * x.value:+.1f}" for x in effect.seeds)
    title = f"{TITLES[effect.name]} (`{effect.name}` − `{COMPARISONS[effect.name]}`)"
    figures = f"{100 * effect.by_query.value:+.2f} | {_points(effect.by_query)}"
    cells = (title, figures, _points(effect.by_seed), f"**{effect.verdict}**", *own)
    return f"| {' | '.join(cells)} |"


def _points(x: Interval) -> str:
    return f"[{100 * x.lo:+.2f}, {100 * x.hi:+.2f}]"


def _gap_row(results: Sequence[SeedResult]) -> str:
    """The gap has no queries to resample: seeds alone decide it."""
    own = [r.gaps["sft"] - r.gaps["mt"] for r in results]
    spread = over_seeds(own)
    limits = f"[{spread.lo:+.3f}, {spread.hi:+.3f}]"
    each = (f"{x:+.3f}" for x in own)
    cells = (GAP, f"{spread.value:+.3f}", "–", limits, f"**{verdict(spread)}**", *each)
    return f"| {' | '.join(cells)} |"


def _arm_row(name: str, results: Sequence[SeedResult]) -> str:
    own = [float((r.answers[name]["grade"] == r.answers[name]["said"]).mean()) for r in results]  # type: ignore[arg-type]
    return f"| `{name}` | {_percent(sum(own) / len(own))} | {' | '.join(map(_percent, own))} |"


def _note_row(name: str, results: Sequence[SeedResult]) -> str:
    own = [r.notes[name] for r in results]
    return f"| {name} | {_percent(sum(own) / len(own))} | {' | '.join(map(_percent, own))} |"


def _percent(x: float) -> str:
    return f"{100 * x:.1f}"
