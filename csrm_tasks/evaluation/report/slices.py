"""The report's part on slices: every model in each, and where the candidate gains or loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from csrm_tasks.evaluation.measures import MEASURES
from csrm_tasks.evaluation.report import parts

Json = Mapping[str, Any]
PLOTTED = {"llm": ("micro_f1",), "towers": ("em_f1", "defect_f1")}


def slices_part(summary: Json, titles: Mapping[str, str]) -> str:
    """Return the sections on ``summary["slices"]``; ``titles``: measure → what it is called."""
    slices = summary["slices"]
    if not slices:
        return ""
    kinds = {m["name"]: m["kind"] for m in summary["models"] if m["name"] != "majority"}
    made = "<h2>Slices</h2>" + _overview(slices, kinds)
    for candidate, champion in summary["rivals"]:
        made += _rivals(slices, candidate, champion, kinds[candidate], titles)
    return made


def _main(figures: Json) -> Json:
    """Return the figure that a model is known by: towers have no micro-F1."""
    figure: Json = figures["micro_f1"] if "micro_f1" in figures else figures["em_f1"]
    return figure


def _overview(slices: Sequence[Json], kinds: Mapping[str, str]) -> str:
    rows = [
        [
            *_named(s),
            *(parts.estimate(_main(s["figures"][name])) for name in kinds),
        ]
        for s in slices
    ]
    caption = "Micro-F1 of LLMs and baselines, EM F1 of towers"
    return parts.table(caption, ["slice", "pairs", *kinds], rows)


def _named(one: Json) -> list[str]:
    size = f"{one['pairs']:,}<small>{one['queries']:,} queries</small>"
    return [escape(one["name"].replace("_", " ")), size]


def _rivals(
    slices: Sequence[Json], candidate: str, champion: str, kind: str, titles: Mapping[str, str]
) -> str:
    differences = {
        s["name"]: {
            d["measure"]: d for d in s["differences"] if (d["a"], d["b"]) == (candidate, champion)
        }
        for s in slices
    }
    measures = [m for m in MEASURES if any(m in of for of in differences.values())]
    plots = [
        parts.differences(
            f"{titles[m]} by slice: {candidate} minus {champion}",
            [(name.replace("_", " "), of[m]) for name, of in differences.items() if m in of],
        )
        for m in PLOTTED[kind]
    ]
    rows = [
        [*_named(s), *(parts.chip(differences[s["name"]][m]) for m in measures)]
        for s in slices
        if differences[s["name"]]
    ]
    caption = (
        f"{candidate} minus {champion}, paired by query: ▲ better and ▼ worse over all slices "
        "together (Holm), ? not decided"
    )
    table = parts.table(caption, ["slice", "pairs", *(titles[m] for m in measures)], rows)
    everything = [
        [*_named(s), *(parts.estimate(s["figures"][candidate].get(m)) for m in measures)]
        for s in slices
    ]
    detail = parts.table("", ["slice", "pairs", *(titles[m] for m in measures)], everything)
    return (
        "".join(plots) + table
        + f"<details><summary>All figures of {escape(candidate)} by slice</summary>{detail}"
        "</details>"
    )  # fmt: skip
