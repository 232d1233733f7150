"""The report's part on what people should judge next: unsure pairs (A60) and the label budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from csrm_tasks.evaluation.report import parts

Json = Mapping[str, Any]


def review_part(review: Json | None, budget: Sequence[Json] | None) -> str:
    """Return the section; nothing where the market has no review queue."""
    if review is None:
        return ""
    return f"<h2>To be judged next</h2>{_unsure(review)}{_budget(budget)}"


def _unsure(review: Json) -> str:
    """How well the sets of possible grades hold on dev, and what they leave open of the traffic."""
    rows = [
        [
            escape(label),
            f"{pairs:,}",
            parts.number(limit) if limit else "never ruled out",
            "–" if covered is None else f"{covered:.1%}",
        ]
        for label, pairs, limit, covered in zip(
            parts.LABELS, review["dev_pairs"], review["limits"], review["covered"], strict=True
        )
    ]
    caption = (
        f"Sets of possible grades on dev pairs with a consensus: each should hold its grade in "
        f"{1 - review['alpha']:.0%} of the pairs; held: on queries that no limit was fitted on"
    )
    head = ["grade", "dev pairs", "ruled out below", "held"]
    dev = "" if review["unsure_dev"] is None else f" (of dev’s pairs {review['unsure_dev']:.0%})"
    return (
        f'<p class="note">{escape(review["locale"])}: {review["unsure_shown"]:.0%} of what '
        f"shoppers were shown of {review['served']:,} unjudged pairs has no sure grade{dev}. The "
        f"{review['queue']:,} of which a judgement is worth most are on the week’s sheet "
        "(csrm data review-queue).</p>" + parts.table(caption, head, rows)
    )


def _budget(budget: Sequence[Json] | None) -> str:
    if not budget:
        return ""
    rows = [
        [
            escape(one["claim"]), f"{one['queries']:,}", f"{one['needed']:,}", f"{one['inside']:,}",
            f"× {one['width']:.2f}", "yes" if one["decided"] else "not by these alone",
        ]
        for one in budget
    ]  # fmt: skip
    caption = (
        "Claims that the gate left open, and what the queries of label_budget.csv do for each: "
        "drawn at random within a claim’s slice, the claim that needs fewest first"
    )
    head = ["claim", "judged queries", "needs about", "gets", "width then", "decided, by estimate"]
    return parts.table(caption, head, rows)
