"""The study as one self-contained HTML page, in the style of a run's report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from math import isfinite
from pathlib import Path
from statistics import fmean

import polars as pl

from csrm_tasks.demo.paper import table
from csrm_tasks.demo.paper.effects import Effect, cells, effects
from csrm_tasks.demo.paper.measures import MEASURES
from csrm_tasks.demo.paper.plan import CURVES, PARTS
from csrm_tasks.demo.paper.plots import Line, lines
from csrm_tasks.demo.paper.results import PartResult
from csrm_tasks.demo.paper.run import PaperStudy, study_of
from csrm_tasks.evaluation.report import parts
from csrm_tasks.evaluation.report.page import GENERATED, document

TITLES = {
    "ladder": "Paper 1, table 2: the ladder, and the transfer gap",
    "baselines": "Paper 1, table 2: what it is compared with",
    "titles": "Paper 1, section 5.2: retrieved titles",
    "distil": "Paper 1, table 3 and section 6.2: towers, and searches",
    "labels": "Paper 1, figure 3: few local labels",
    "curation": "Paper 2, table 2 and figure 2: curation",
}
TONE = {"holds": ("good", "✓"), "does not hold": ("bad", "✗"), "not decided": ("open", "?")}
BY_SHARE = {"sd": "self-distilled", "hard": "hard labels", "nc": "noise-corrected"}
RUNGS = ("sft", "mt", "mt_rqa", "labels", "rqa_star", "sd1", "sd2", "sd3")


def reported(
    market: str, first: int, seeds: Sequence[int], only: str | None = None, quick: bool = False
) -> Path:
    """Run a market's study on ``seeds``, writing the report after each part; returns its path.

    ``first`` is the study's first seed, ``only`` its parts as the command takes them. Raises
    :class:`ConfigError` for a market or a part that there is none of.
    """
    study = study_of(market, first, quick)
    for results in study.run(seeds, study.chosen(only)):
        write(study, results)
    return written(market, first, quick)


def written(market: str, first: int, quick: bool = False) -> Path:
    """Write the report of what a market's study has found so far; returns its path."""
    study = study_of(market, first, quick)
    return write(study, study.read())


def write(study: PaperStudy, results: Sequence[PartResult]) -> Path:
    """Write ``paper.md`` and ``paper.html`` into the study's home; returns the page's path."""
    shared = not study.generated
    text = table.markdown(results, study.first, shared)
    page = study.home / "paper.html"
    study.home.mkdir(parents=True, exist_ok=True)
    for path, content in (
        (study.home / "paper.md", text),
        (page, render(study.market.market, results, study.first, shared)),
    ):
        beside = path.with_name(f".{path.name}.{os.getpid()}")  # another process writes it, too
        beside.write_text(content, encoding="utf-8")
        beside.replace(path)
    return page


def render(market: str, results: Sequence[PartResult], first: int, shared: bool) -> str:
    """Return the page: verdicts in short, then each part's claims, figures and plots."""
    found = effects(results, first, shared)
    about = (
        "One market, trained by several seeds: what differs between them is training alone."
        if shared
        else GENERATED
    )
    body = [
        f"<h1>Both papers on {escape(market)}</h1>",
        f'<p class="chip open">{escape(about)}</p>',
        _cards(found),
        f'<p class="note">{escape(table.RULE)}. Positive is what was claimed.</p>',
        *(_part(name, results, found) for name in PARTS),
        _list("Not run, or stopped", table.notes(results)),
        _list("Time", table.times(results)),
    ]
    return document(f"CSRM study of both papers, {market}", "\n".join(body))


def _cards(found: Sequence[Effect]) -> str:
    inner = "".join(
        f'<div class="card"><div class="label">{verdict}</div><div class="figure">'
        f"{sum(e.verdict == verdict for e in found)}</div></div>"
        for verdict in TONE
    )
    return f'<div class="cards">{inner}</div>'


def _part(name: str, results: Sequence[PartResult], found: Sequence[Effect]) -> str:
    own = [e for e in found if e.claim.part == name]
    known = [(c, by_seed) for c, by_seed in cells(results) if c.part == name]
    if not known:
        return ""
    claims = [_claim(e) for e in own]
    figures = [_escaped(table.cell_row(c, by_seed)[1:]) for c, by_seed in known]
    return (
        f"<h2>{escape(TITLES[name])}</h2>"
        + parts.table("Claims", table.CLAIM_HEAD[1:], claims)
        + _forest(own)
        + parts.table("Figures, means over seeds", table.CELL_HEAD[1:], figures)
        + _plots(name, results)
    )


def _claim(effect: Effect) -> list[str]:
    """Return the row of a claim, as the table of text has it, with its verdict marked."""
    _, title, _, *rest = _escaped(table.claim_row(effect))
    return [title, _chip(effect.verdict), *rest]


def _escaped(row: Sequence[str]) -> list[str]:
    return [escape(text.replace("`", "")) for text in row]


def _chip(verdict: str) -> str:
    tone, sign = TONE[verdict]
    return f'<span class="chip {tone}"><span aria-hidden="true">{sign}</span> {verdict}</span>'


def _forest(own: Sequence[Effect]) -> str:
    """Draw effects by seed of the claims that were looked at; those of a plain figure have no
    common axis with shares.
    """
    rows = [
        (
            e.claim.title,
            {"value": e.by_seed.value, "lo": e.by_seed.lo, "hi": e.by_seed.hi,
             "verdict": e.verdict},
        )
        for e in own
        if MEASURES[e.claim.measure].points and isfinite(e.by_seed.lo)
    ]  # fmt: skip
    return parts.differences("Effects and their intervals by seed; grey: not decided", rows)


def _plots(name: str, results: Sequence[PartResult]) -> str:
    if name == "ladder":
        return _rungs(results)
    if name == "labels":
        return _by_share(results)
    return _thresholds(results) if name == "curation" else ""


def _rungs(results: Sequence[PartResult]) -> str:
    """Draw the ladder beside the paper's, each as points above its own first rung."""
    known = {c.arm: (c.paper, fmean(by.values())) for c, by in cells(results)
             if c.part == "ladder" and c.measure == "micro_f1"}  # fmt: skip
    if "sft" not in known:
        return ""
    rungs = [(i, known[arm]) for i, arm in enumerate(RUNGS) if arm in known]
    papers, start = known["sft"]
    here = [(float(i), 100 * (mean - start)) for i, (_, mean) in rungs]
    theirs = [(float(i), 100 * (p - (papers or 0.0))) for i, (p, _) in rungs if p is not None]
    legend = ", ".join(f"{i} {arm}" for i, arm in enumerate(RUNGS))
    return lines(
        "Points of micro-F1 above SFT", [Line("here", here), Line("paper 1", theirs)], legend
    )


def _by_share(results: Sequence[PartResult]) -> str:
    known = [
        (c.arm, fmean(by.values()))
        for c, by in cells(results)
        if c.part == "labels" and c.measure == "micro_f1"
    ]
    series = []
    for arm, name in BY_SHARE.items():
        points = [
            (float(a.removeprefix(f"{arm}_")), 100 * y) for a, y in known if a.startswith(f"{arm}_")
        ]
        series.append(Line(name, sorted(points)))
    return lines("Micro-F1 by labelled queries of the target", series, "% of them")


def _thresholds(results: Sequence[PartResult]) -> str:
    curves = [r.curves for r in results if not r.curves.is_empty()]
    if not curves:
        return ""
    mean = pl.concat(curves).group_by("arm", "measure", "x").agg(pl.col("y").mean()).sort("x")
    series = []
    for task, (arm, peak) in CURVES.items():
        own = mean.filter(arm=arm, measure=f"{task}_f1").select("x", "y")
        points = [(x, 100 * y) for x, y in own.iter_rows() if isfinite(y)]
        series.append(Line(f"{task} (paper’s peak {peak})", points))
    return lines("F1 of yes by threshold", series, "threshold")


def _list(title: str, items: Sequence[str]) -> str:
    inner = "".join(f"<li>{escape(one.replace('`', ''))}</li>" for one in items)
    return f'<h2>{title}</h2><ul class="note">{inner}</ul>' if inner else ""
