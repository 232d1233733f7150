"""The second stage in report and model card: what dev and gold say of its order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from csrm_tasks.evaluation.report import parts

Json = Mapping[str, Any]
WORDS = {"ordered": "pairs in the right order", "em_at_1": "EM@1"}


def second_stage_part(found: Json | None) -> str:
    """Return the section of ``summary["second_stage"]``: nothing where the market has none."""
    if found is None:
        return ""
    told = "".join(f"<li>{escape(line)}.</li>" for line in decisions(found))
    rows = [
        [
            escape(one["name"]), WORDS[measure],
            *(parts.estimate(figure[side]) for side in ("towers", "served", "difference")),
        ]
        for one in found["gold"]
        for measure, figure in one["figures"].items()
    ]  # fmt: skip
    head = ["answers", "figure", "towers alone", "as served", "difference"]
    return (
        "<h2>Second stage: the order of a search’s top</h2>"
        f'<ul class="note" aria-label="Kept on dev">{told}</ul>'
        '<p class="note">Pairs in the right order: of two judged products of a search with '
        "different grades, how often the better one stands first. All of the top is re-ranked "
        "here, as far as the budget allows in service. Decisions are the towers’.</p>"
        + parts.table("On the gold set, paired by query", head, rows)
    )


def decisions(found: Json) -> Iterator[str]:
    """Say what dev decided on each second stage, a line each."""
    for name, facts in found["dev"].items():
        kept = f"re-ranks the first {facts['top']} products" if facts["kept"] else "not kept on dev"
        yield f"{name}: {kept}: {facts['reason']}"


def card_lines(found: Json | None) -> list[str]:
    """Return the lines of a model card."""
    if found is None:
        return []
    lines = ["", "Second stage, on dev, which has fitted it (by folds of queries):", ""]
    lines += [f"- {line}" for line in decisions(found)]
    lines += ["", "On gold, paired by query, towers alone → as served:", ""]
    for one in found["gold"]:
        for measure, figure in one["figures"].items():
            a, b, d = (figure[side] for side in ("towers", "served", "difference"))
            lines.append(
                f"- {one['name']}, {WORDS[measure]}: {_value(a)} → {_value(b)}, "
                f"{_value(d, '+')} [{_value(d, '+', 'lo')}, {_value(d, '+', 'hi')}]"
            )
    return lines


def _value(figure: Json, sign: str = "", key: str = "value") -> str:
    return "–" if figure[key] is None else f"{figure[key]:{sign}.3f}"
