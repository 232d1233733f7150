"""What the study has found, as rows of text: the Markdown table; the page shows them as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from csrm_tasks.demo.paper.effects import Effect, cells, effects
from csrm_tasks.demo.paper.measures import MEASURES, Measure
from csrm_tasks.demo.paper.plan import Cell
from csrm_tasks.demo.paper.results import PartResult
from csrm_tasks.demo.paper.stopping import LOOKS, SPENT
from csrm_tasks.evaluation.paired import Interval

CELL_HEAD = ("part", "what", "source", "paper", "here", "seeds")
CLAIM_HEAD = (
    "part", "claim", "verdict", "paper", "here", "by query", "by seed", "seeds", "source",
)  # fmt: skip
RULE = (
    "Seeds are looked at when there are "
    f"{', '.join(map(str, LOOKS[:-1]))} or {LOOKS[-1]} of them; intervals are so wide that all "
    f"looks together miss what is true in at most {SPENT[LOOKS[-1]]:.0%} of studies, for each claim"
)


def markdown(results: Sequence[PartResult], first: int, shared: bool) -> str:
    """Return claims with verdicts, then every cell, then what was not run."""
    lines = [
        f"{RULE}.",
        "",
        *_table(CLAIM_HEAD, [claim_row(e) for e in effects(results, first, shared)]),
        "",
        *_table(CELL_HEAD, [cell_row(c, by_seed) for c, by_seed in cells(results)]),
        "",
        *(f"- {line}" for line in [*notes(results), *times(results)]),
    ]
    return "\n".join(lines) + "\n"


def claim_row(effect: Effect) -> list[str]:
    """Return the cells of a claim's row (:data:`CLAIM_HEAD`)."""
    claim, what = effect.claim, MEASURES[effect.claim.measure]
    return [
        claim.part,
        f"{claim.title} (`{claim.arm}` − `{claim.control}`, {what.title})"
        if what.sign > 0
        else f"{claim.title} (`{claim.control}` − `{claim.arm}`, {what.title})",
        f"**{effect.verdict}**",
        claim.paper_step(),
        step(what, effect.by_seed.value),
        limits(what, effect.by_query) if what.by_query else "–",
        limits(what, effect.by_seed),
        f"{len(effect.seeds)}" if effect.look is None else f"{effect.look} of {len(effect.seeds)}",
        claim.source,
    ]


def cell_row(cell: Cell, by_seed: Mapping[int, float]) -> list[str]:
    """Return the cells of a figure's row (:data:`CELL_HEAD`)."""
    what = MEASURES[cell.measure]
    mean = sum(by_seed.values()) / len(by_seed)
    paper = "–" if cell.paper is None else level_of(what, cell.paper)
    title = f"{cell.title} (`{cell.arm}`, {what.title})"
    return [cell.part, title, cell.source, paper, level_of(what, mean), str(len(by_seed))]


def level_of(what: Measure, value: float) -> str:
    """Return a figure in the measure's unit: points of a hundred, or as it is."""
    if not isfinite(value):
        return "–"
    return f"{100 * value:.1f}" if what.points else f"{value:.3f}"


def step(what: Measure, value: float) -> str:
    """Return a difference in the measure's unit."""
    if not isfinite(value):
        return "–"
    return f"{100 * value:+.2f}" if what.points else f"{value:+.3f}"


def limits(what: Measure, x: Interval) -> str:
    """Return an interval in the measure's unit; a dash before the first look."""
    return "–" if not isfinite(x.lo) else f"[{step(what, x.lo)}, {step(what, x.hi)}]"


def notes(results: Sequence[PartResult]) -> list[str]:
    """Return what was not run or stopped, and in which seeds."""
    told: dict[tuple[str, str, str], list[int]] = {}
    for r in results:
        for arm, why in r.notes.items():
            told.setdefault((r.part, arm, why), []).append(r.seed)
    return [
        f"{part}, `{arm}`, seed {', '.join(map(str, sorted(seeds)))}: {why}"
        for (part, arm, why), seeds in told.items()
    ]


def times(results: Sequence[PartResult]) -> list[str]:
    """Return what each part took of the processors, of a seed in the mean."""
    parts: dict[str, list[float]] = {}
    for r in results:
        parts.setdefault(r.part, []).append(r.seconds)
    return [
        f"{part}: {sum(own) / len(own) / 60:.1f} CPU-minutes a seed, {len(own)} seeds"
        for part, own in parts.items()
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
