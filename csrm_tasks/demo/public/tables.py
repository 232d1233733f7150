"""The studies' figures as Markdown: by language, with intervals by query, in points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csrm_tasks.demo.public.categories import FIGURES, Retrieved
from csrm_tasks.demo.public.names import Names
from csrm_tasks.demo.public.published import published
from csrm_tasks.evaluation.paired import Interval
from csrm_tasks.markets import MarketConfig


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, ended by a blank line."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def points(x: Interval | Mapping[str, float | None]) -> str:
    """Return a share as points with its interval; – where it is undefined."""
    value, lo, hi = (x["value"], x["lo"], x["hi"]) if isinstance(x, Mapping) else (
        x.value, x.lo, x.hi
    )  # fmt: skip
    if value is None or lo is None or hi is None:
        return number(value)
    return f"{number(value)} [{100 * lo:.1f}, {100 * hi:.1f}]"


def number(value: float | None) -> str:
    """Return a share as points; – where it is undefined."""
    return "–" if value is None else f"{100 * value:.1f}"


def published_table(data: str, figures: Sequence[str]) -> str:
    """Return what others have published on this data, one row for each figure kept here."""
    rows = [
        [one.what, f"{100 * one.value:.2f}", one.of, one.source]
        for what in figures
        for one in published(data, what)
    ]
    if not rows:
        return "published: no public figure kept here\n"
    return "Published by others (none was measured here)\n\n" + table(
        ["figure", "points", "of", "source"], rows
    )


def head(names: Names, market: MarketConfig) -> str:
    """Say what is learnt and what is held out."""
    learnt = ", ".join((*market.source_locales, market.target_locale))
    ebr, llm = market.retrieval.ebr, market.llm
    counts = {s: names.of(s)["category"].n_unique() for s in ("train", "dev", "test")}
    return (
        f"{len(names.paths):,} categories; named in train {counts['train']:,}, dev "
        f"{counts['dev']:,}, test {counts['test']:,}\n"
        f"learnt: {learnt}; held out: {', '.join(names.held_out) or 'none'}\n"
        f"retriever: {ebr.encoder}, {ebr.steps} steps; LLM: {llm.base}, {llm.steps} steps\n"
    )


def retrieval(arms: Sequence[tuple[str, Mapping[str, Retrieved]]], held_out: Sequence[str]) -> str:
    """Return a row for each language, a column for each arm and figure."""
    shown = FIGURES[1:]
    header = ["language", "queries", *(f"{f}, {arm}" for arm, _ in arms for f in shown)]
    rows = []
    for locale in _ordered(arms[0][1], held_out):
        found = [figures[locale] for _, figures in arms]
        cells = [points(one.intervals()[f]) for one in found for f in shown]
        rows.append([_named(locale, held_out), f"{found[0].queries:,}", *cells])
    return "Category retrieval: a name in each language asks for the path in English\n\n" + table(
        header, rows
    )


def by_language(
    task: str, rungs: Sequence[tuple[str, Mapping[str, Any]]], held_out: Sequence[str] = ()
) -> str:
    """Return F1 of yes of one task: a row for each language, and all, a column for each rung."""
    all_of = [figures["by_task"][task] for _, figures in rungs]
    header = ["language", "pairs", *(name for name, _ in rungs)]
    rows = []
    for locale in _ordered(all_of[0]["languages"], held_out):
        own = [one["languages"][locale] for one in all_of]
        cells = [points(one["f1"]) for one in own]
        rows.append([_named(locale, held_out), f"{own[0]['pairs']:,}", *cells])
    rows.append(["all", f"{all_of[0]['pairs']:,}", *(points(one["f1"]) for one in all_of)])
    return f"F1 of yes, {task.upper()}\n\n" + table(header, rows)


def _ordered(locales: Mapping[str, Any], held_out: Sequence[str]) -> list[str]:
    return sorted(locales, key=lambda x: (x in held_out, x))


def _named(locale: str, held_out: Sequence[str]) -> str:
    return f"{locale}, held out" if locale in held_out else locale
