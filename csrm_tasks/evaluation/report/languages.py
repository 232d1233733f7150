"""The report's part on languages: dev by language, and each source language left out."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from csrm_tasks.evaluation.report import parts

Json = Mapping[str, Any]
FEW = 2  # languages of dev that the figures of a training name anyway


def languages_part(summary: Json) -> str:
    """Return the sections on ``summary["training"]`` by language and ``summary["leave_out"]``.

    Either is absent where there is nothing to tell: in a market of one source, or without the
    control. Gold by language is among the slices.
    """
    made = _dev(summary["training"]) + _left_out(summary)
    return f"<h2>Languages</h2>{made}" if made else ""


def _dev(training: Mapping[str, Json]) -> str:
    known = {name: t["facts"].get("dev_micro_f1_by_locale", {}) for name, t in training.items()}
    locales = sorted({locale for figures in known.values() for locale in figures})
    if len(locales) <= FEW:
        return ""
    rows = [
        [escape(name), *(parts.number(figures.get(locale)) for locale in locales)]
        for name, figures in known.items()
        if figures
    ]
    caption = "Micro-F1 of LLMs on the dev pairs of each language that they learnt from"
    return parts.table(caption, ["model", *locales], rows)


def _left_out(summary: Json) -> str:
    found = summary.get("leave_out") or []  # an evaluation from before has none
    if not found:
        return ""
    rows = [
        [
            escape(one["locale"]),
            f"{one['pairs']:,}<small>{one['queries']:,} queries</small>",
            f"{one['train_pairs']:,}",
            *_figures(one),
        ]
        for one in found
    ]
    caption = (
        "The linear baseline without a source language, and with it, on that language’s dev pairs: "
        "micro-F1, and the difference paired by query"
    )
    head = ["left out", "dev pairs", "train pairs of the others", "without", "with", "difference"]
    return parts.table(caption, head, rows)


def _figures(one: Json) -> list[str]:
    if "reason" in one:
        return [f'<span class="text">{escape(one["reason"])}</span>', "–", "–"]
    return [
        parts.estimate(one["without"]), parts.estimate(one["with"]), parts.chip(one["difference"])
    ]  # fmt: skip
