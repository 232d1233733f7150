"""The report's part on query-category and query-item, a page and a card of it alone."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from csrm_tasks.evaluation.report import parts

Json = Mapping[str, Any]
TEMPLATE = Path(__file__).with_name("template.html")
TITLES = {"qc": "Query-category", "qi": "Query-item"}
GENERATED = "This market’s data are generated: the figures say nothing about real shoppers."


def tasks_part(summary: Json) -> str:
    """Return the part as HTML; ``summary``: of ``evaluate_tasks``."""
    body = [
        "<h2>Tasks: yes or no</h2>",
        '<p class="note">F1 of yes on gold, at the threshold that each model chose on one half of '
        "its dev and reported on the other. Intervals are of 95 %, by query.</p>",
    ]
    for task, one in summary["by_task"].items():
        body.append(_task(TITLES[task], one, summary["dev"], task))
    means = ", ".join(
        f"{escape(name)} {parts.number(value)}" for name, value in summary["mean_f1"].items()
    )
    return "".join(body) + (f"<p>Mean F1 of the tasks: {means}</p>" if means else "")


def _task(title: str, one: Json, dev: Json, task: str) -> str:
    rows = [
        [
            escape(name), f"{m['pairs']:,}", f"{m['queries']:,}", parts.estimate(m["f1"]),
            parts.number(m["precision"]), parts.number(m["recall"]),
            parts.number(dev[name][task]["threshold"]),
            parts.estimate(dev[name][task]["reported"]["f1"]),
        ]
        for name, m in one["models"].items()
    ]  # fmt: skip
    head = ["model", "gold pairs", "queries", "F1", "precision", "recall", "threshold", "F1 on dev"]
    caption = f"{title}, gold {one['digest'][:12]}"
    matrices = "".join(
        parts.matrix(f"{name}: {title}", m["confusion"], ["no", "yes"])
        for name, m in one["models"].items()
    )
    languages = [
        [escape(f"{name}, {locale}"), f"{of['pairs']:,}", parts.estimate(of["f1"])]
        for name, m in one["models"].items()
        for locale, of in (m["languages"] or dev[name][task]["languages"]).items()
    ]
    where = "gold" if any(m["languages"] for m in one["models"].values()) else "dev"
    by_language = parts.table(f"{title} by language, on {where}", ["", "pairs", "F1"], languages)
    return (
        parts.table(caption, head, rows)
        + (by_language if languages else "")
        + f'<div class="grid">{matrices}</div>'
    )


def page(summary: Json, verdict: Json | None = None) -> str:
    """Return a page of the tasks alone, for a market without relevance."""
    market = escape(str(summary["market"]))
    judged = ""
    if verdict is not None:
        reasons = "".join(f"<li>{escape(r)}</li>" for r in verdict["reasons"])
        judged = f"<p><strong>Gate: {escape(verdict['outcome'])}</strong></p><ul>{reasons}</ul>"
    made_up = f'<p class="chip open">{GENERATED}</p>' if summary["generated"] else ""
    snapshot = escape(str(summary["snapshot"]))
    head = f"<h1>Evaluation of {market}</h1>{made_up}<p>Snapshot <code>{snapshot}</code></p>"
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    body = head + judged + tasks_part(summary)
    return template.substitute(title=f"CSRM evaluation, {market}", body=body)


def card(summary: Json, verdict: Json) -> str:
    """Return the model card of an LLM that knows the tasks alone, as Markdown."""
    lines = [f"# {verdict['llm']}", ""]
    if summary["generated"]:
        lines += [f"**{GENERATED}**", ""]
    use = (
        "Whether a category (qc) or a product (qi) is right for a query, offline. There is nothing "
        "to serve: the towers are relevance's."
    )
    lines += ["## Use", "", use, "", "## Judged", ""]
    lines += [f"Gate: **{verdict['outcome']}**, `{verdict['digest']}`", ""]
    return "\n".join([*lines, *(f"- {r}" for r in verdict["reasons"]), *card_lines(summary), ""])


def card_lines(summary: Json) -> list[str]:
    """Return the tasks' table of a model card."""
    lines = ["", "F1 of yes on gold, by task, at thresholds that were chosen on dev.", ""]
    lines += ["| task | model | gold pairs | F1 | threshold |", "| --- | --- | --- | --- | --- |"]
    for task, one in summary["by_task"].items():
        for name, m in one["models"].items():
            f1, threshold = m["f1"], summary["dev"][name][task]["threshold"]
            shown = "–" if f1["value"] is None else (
                f"{f1['value']:.3f} [{f1['lo']:.3f}, {f1['hi']:.3f}]"
            )  # fmt: skip
            lines.append(f"| {task} | {name} | {m['pairs']:,} | {shown} | {threshold:.3f} |")
    return lines
