"""One self-contained HTML page per run, made from ``metrics.json`` and, if known, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from csrm_tasks.evaluation.report import parts
from csrm_tasks.evaluation.report.ablation import ablation_part
from csrm_tasks.evaluation.report.data import data_part
from csrm_tasks.evaluation.report.languages import languages_part
from csrm_tasks.evaluation.report.review import review_part
from csrm_tasks.evaluation.report.rqa import accuracy_table, resolved_table
from csrm_tasks.evaluation.report.second_stage import second_stage_part
from csrm_tasks.evaluation.report.slices import slices_part
from csrm_tasks.evaluation.report.tasks import tasks_part
from csrm_tasks.evaluation.report.training import training_part

Json = Mapping[str, Any]
TEMPLATE = Path(__file__).with_name("template.html")
TONE = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "open"}
MEANING = {
    "PASS": "The candidate may replace the live release.",
    "FAIL": "The candidate is refused.",
    "INCONCLUSIVE": "The evidence does not decide; nothing is promoted.",
}
GENERATED = "This market’s data are generated: the figures say nothing about real shoppers."
TITLES = {
    "micro_f1": "Micro-F1",
    "macro_f1": "Macro-F1",
    "kappa": "κ (quadratic)",
    "ece": "ECE",
    "em_accuracy": "EM accuracy",
    "em_f1": "EM F1",
    "defect_accuracy": "Defect accuracy",
    "defect_f1": "Defect F1",
    "em_at_1": "EM@1",
    "defect_at_5": "Defect@5 ↓",
}
GRADED = ("micro_f1", "macro_f1", "kappa", "ece")
BINARY = ("em_accuracy", "em_f1", "defect_accuracy", "defect_f1", "em_at_1", "defect_at_5")


def render(summary: Json, verdict: Json | None = None) -> str:
    """Return the page. It loads nothing from anywhere and follows the reader's light or dark."""
    body = "\n".join(
        [
            _head(summary),
            _verdict(verdict),
            _cards(summary),
            _graded(summary),
            _binary(summary),
            second_stage_part(summary.get("second_stage")),
            _confusions(summary),
            tasks_part(summary["tasks"]) if "tasks" in summary else "",
            slices_part(summary, TITLES),
            languages_part(summary),
            training_part(summary),
            ablation_part(summary.get("ablation")),
            review_part(summary.get("review"), summary.get("budget")),
            _rqa(summary),
            data_part(summary["data"]),
            _method(summary),
        ]
    )
    return document(f"CSRM evaluation, {summary['market']}", body)


def document(title: str, body: str) -> str:
    """Return a page of this style: ``title`` is plain text, ``body`` HTML."""
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=body)


def _head(summary: Json) -> str:
    champion = summary["champion"] or "none"
    made_up = f'<p class="chip open">{GENERATED}</p>' if summary["generated"] else ""
    return (
        f"<h1>Evaluation of {escape(summary['market'])}</h1>"
        f'<p class="soft">Snapshot <code>{escape(summary["snapshot"])}</code> · '
        f"live release when judged: <code>{escape(champion)}</code></p>{made_up}"
    )


def _verdict(verdict: Json | None) -> str:
    if verdict is None:
        return ""
    outcome = verdict["outcome"]
    reasons = "".join(f"<li>{escape(r)}</li>" for r in verdict["reasons"])
    return (
        f'<section class="banner {TONE[outcome]}" aria-label="Gate verdict">'
        f"<strong>Gate: {outcome}.</strong> {MEANING[outcome]}<ul>{reasons}</ul></section>"
        + _notes(verdict.get("notes", ()))
        + _checks(verdict["checks"])
    )


def _notes(notes: Sequence[str]) -> str:
    """Return what a linear model is better at than the candidate; nothing is claimed of it."""
    items = "".join(f"<li>{escape(n)}</li>" for n in notes)
    return f'<ul class="note" aria-label="Better baselines">{items}</ul>' if items else ""


def _checks(checks: Sequence[Json]) -> str:
    rows = [
        [
            escape(c["name"]),
            f'<span class="chip {TONE[c["outcome"]]}">{c["outcome"]}</span>',
            f'<span class="text">{escape(c["reason"])}</span>',
        ]
        for c in checks
    ]
    table = parts.table("Every claim of the policy", ["check", "outcome", "why"], rows)
    return f"<details><summary>All {len(rows)} checks of the gate</summary>{table}</details>"


def _cards(summary: Json) -> str:
    gold, grades = summary["gold"], summary["grades"]
    shares = [n / max(sum(grades), 1) for n in grades]
    labels = zip(parts.LABELS, shares, strict=True)
    cards = [("gold pairs", f"{gold['pairs']:,}"), ("gold queries", f"{gold['queries']:,}")]
    cards += [(f"judged {label[2:]}", f"{share:.0%}") for label, share in labels]
    inner = "".join(
        f'<div class="card"><div class="label">{escape(k)}</div><div class="figure">{v}</div></div>'
        for k, v in cards
    )
    return f'<div class="cards">{inner}</div>'


def _graded(summary: Json) -> str:
    models = [m for m in summary["models"] if "micro_f1" in m["figures"]]
    return (
        "<h2>Three grades: exact, substitute, irrelevant</h2>"
        '<p class="note">Grey: baselines and the live release. Bars are 95 % intervals.</p>'
        + _unclicked(models)
        + _teacher(models)
        + parts.forest("Micro-F1 on the gold set", models, "micro_f1")
        + _figures("Higher is better, but for ECE", models, GRADED)
        + _differences(summary, "micro_f1", [m["name"] for m in models])
    )


def _unclicked(models: Sequence[Json]) -> str:
    names = ", ".join(escape(m["name"]) for m in models if m["kind"] == "control")
    if not names:
        return ""
    return (
        f'<p class="note">{names}: a control, the chosen LLM with titles of a retriever that was '
        "trained without what shoppers did with gold queries, and anew where the live one has read "
        "that. What it lacks is what those very shoppers told RQA*; a served release has that of "
        "queries they type, not of new ones.</p>"
    )


def _teacher(models: Sequence[Json]) -> str:
    names = ", ".join(escape(m["name"]) for m in models if m["kind"] == "teacher")
    if not names:
        return ""
    return (
        f'<p class="note">{names}: what teaches the towers, the LLM or, where dev keeps it, a '
        "stack of it and lexical evidence; it is not released.</p>"
    )


def _binary(summary: Json) -> str:
    models = summary["models"]
    own = [m for m in models if m["kind"] != "served"]  # it decides as the towers do
    names = [m["name"] for m in own if m["kind"] != "baseline"]
    return (
        "<h2>Two decisions: exact match, defect</h2>"
        '<p class="note">What the online towers decide, and the LLM’s most probable grade read '
        "the same way. EM@1 and Defect@5 rank the judged products of each query.</p>"
        + _taught(summary)
        + parts.forest("EM F1", own, "em_f1")
        + parts.forest("Defect F1", own, "defect_f1")
        + _figures("Higher is better, but for Defect@5", models, BINARY)
        + _differences(summary, "em_f1", names)
        + _differences(summary, "defect_f1", names)
    )


def _taught(summary: Json) -> str:
    """Say which models' towers were taught gold queries as traffic, and what that does."""
    total, lines = summary["gold"]["queries"], []
    for m in summary["models"]:
        n = m.get("seen_queries", 0)
        if n and m["kind"] == "control":
            lines.append(
                f"{m['name']} is a control: its towers were taught {n} of the {total} gold queries "
                "(no gold pair), which flatters it; it is never released"
            )
        elif n:
            lines.append(
                f"{m['name']}: towers that were taught {n} of the {total} gold queries as traffic "
                "before these were gold, which flatters its figures; the gate makes no allowance"
            )
    lines += [
        f"{TITLES[d['measure']]} over the {d['queries']} queries that are new to both: "
        f"{d['a']} minus {d['b']} {100 * d['value']:+.1f} points "
        f"[{100 * d['lo']:+.1f}, {100 * d['hi']:+.1f}], {d['verdict']}"
        for d in summary.get("new_to_both", ())
        if d["measure"] in ("em_f1", "defect_f1") and d["value"] is not None
    ]
    items = "".join(f"<li>{escape(line)}.</li>" for line in lines)
    return f'<ul class="note">{items}</ul>' if items else ""


def _figures(caption: str, models: list[Any], figures: tuple[str, ...]) -> str:
    rows = [
        [escape(m["name"]), *(parts.estimate(m["figures"].get(f)) for f in figures)] for m in models
    ]
    return parts.table(caption, ["model", *(TITLES[f] for f in figures)], rows)


def _differences(summary: Json, measure: str, names: list[str]) -> str:
    """Return the paired differences as a triangle: row minus column."""
    compared = {(c["a"], c["b"]): c for c in summary["comparisons"] if c["measure"] == measure}
    rows = [
        [
            escape(a),
            *(parts.chip(compared[a, b]) if (a, b) in compared else "" for b in names[:-1]),
        ]
        for a in names[1:]
    ]
    if not rows:
        return ""
    caption = (
        f"{TITLES[measure]}: row minus column, paired by query (▲ better, ▼ worse, ? not decided)"
    )
    return parts.table(caption, ["", *names[:-1]], rows)


def _confusions(summary: Json) -> str:
    matrices = [
        parts.matrix(m["name"], m["confusion"]["relevance"], parts.LABELS)
        for m in summary["models"]
        if "relevance" in m["confusion"] and m["name"] != "majority"
    ]
    for m in summary["models"]:
        if m["kind"] == "towers":
            matrices.append(parts.matrix(f"{m['name']}: EM", m["confusion"]["em"], ["no", "yes"]))
            matrices.append(
                parts.matrix(f"{m['name']}: defect", m["confusion"]["defect"], ["no", "yes"])
            )
    return f'<h2>Confusion matrices</h2><div class="grid">{"".join(matrices)}</div>'


def _rqa(summary: Json) -> str:
    if not summary["rqa"]:
        return ""
    rows = [
        [f"<code>{escape(ref)}</code>", f'<span class="text">{escape(_facts(facts))}</span>']
        for ref, facts in summary["rqa"].items()
    ]
    return (
        "<h2>Retrieved titles (RQA)</h2>"
        + accuracy_table(summary["rqa"])
        + resolved_table(summary.get("resolved"))
        + parts.table("Measured when the titles were retrieved", ["artifact", "facts"], rows)
    )


def _facts(facts: Json) -> str:
    """Return facts on one line; those of a locale are named with it."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if key == "locales" and isinstance(value, Mapping):
            flat |= {f"{locale} {k}": v for locale, of in value.items() for k, v in of.items()}
        else:
            flat[key] = value
    shown = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in flat.items()}
    return ", ".join(f"{k} {v}" for k, v in shown.items() if v is not None)


def _method(summary: Json) -> str:
    return (
        '<footer class="note"><p>Intervals are 95 % percentile bootstrap intervals over 2,000 '
        "resamples of queries, the same resamples for both sides of a difference. “Not decided” "
        "means that the interval holds zero; over slices, that Holm’s correction leaves it open. "
        "Elsewhere no correction for the number of comparisons is made. The gate passes a "
        "candidate only if every claim holds, which needs none."
        f"</p><p>Gold set <code>{escape(summary['gold']['digest'])}</code>: pairs that enough "
        "raters judged alike, never trained on.</p></footer>"
    )
