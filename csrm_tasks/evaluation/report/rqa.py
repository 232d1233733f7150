"""The part of the report about retrieved titles: how often they are right, what they resolve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from csrm_tasks.evaluation.report import parts

Json = Mapping[str, Any]
HEAD = [
    "artifact",
    "locale",
    "BM25 alone",
    "these titles",
    "judged",
    "proxy",
    "proxy, dev and gold",
]


def accuracy_table(rqa: Json) -> str:
    """Return RQA accuracy (A26) by people's judgements, beside BM25 alone and the proxy."""
    rows = list(_rows(rqa))
    caption = "Share of titles that are right: by people (two columns), and graded 1 or 2 (proxy)"
    return parts.table(caption, HEAD, rows) if rows else ""


def _rows(rqa: Json) -> Iterator[list[str]]:
    for ref, facts in rqa.items():
        for locale, measured in facts.get("locales", {}).items():
            yield [
                f"<code>{escape(ref)}</code>",
                escape(locale),
                parts.number(measured.get("judged_accuracy_bm25")),
                parts.number(measured.get("judged_accuracy")),
                str(measured.get("judged_titles", 0)),
                parts.number(measured.get("rqa_accuracy")),
                parts.number(measured.get("rqa_accuracy_dev_gold")),
            ]


def resolved_table(resolved: Json | None) -> str:
    """Return the queries that retrieved titles changed most, both ways, with their titles."""
    if not resolved:
        return ""
    rows = [
        [
            escape(case["query"]),
            f'<span class="text">{escape(" / ".join(case["titles"]) or "none")}</span>',
            f"{case['alone']} of {case['pairs']}",
            f"{case['with']} of {case['pairs']}",
        ]
        for case in resolved["cases"]
    ]
    caption = (
        f"Pairs right of gold queries: the chosen LLM without titles {resolved['alone']}, with "
        f"{resolved['with']}, of {resolved['pairs']}; the queries that gained and lost most"
    )
    return parts.table(caption, ["query", "titles", "right without", "right with"], rows)
