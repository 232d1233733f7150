"""The report's part on how the LLMs were trained: rounds, calibration, transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from csrm_tasks.evaluation.reliability import Curve, curve, plot
from csrm_tasks.evaluation.report import parts

Json = Mapping[str, Any]
CATEGORIES = 8  # with the most flips
CATEGORY_HEAD = ["category", "pairs", "flips", "share"]
TRANSFER = (
    ("transfer_gap", "gap, eq. (6)"),
    ("transfer_gap_median", "median"),
    ("transfer_gap_symmetric", "symmetric"),
    ("translation_accuracy", "translation found"),
)


def training_part(summary: Json) -> str:
    """Return the sections of ``summary["training"]``: model name → what is known of its training.

    Each has ``facts`` (of its artifact) and, where it learnt from soft labels, ``soft`` (facts of
    those) and ``changes`` (their ``changes.json``).
    """
    training = summary["training"]
    return _rounds(training) + _calibration(summary["models"], training) + _transfer(training)


def _rounds(training: Mapping[str, Json]) -> str:
    taught = {name: t for name, t in training.items() if t.get("soft")}
    if not taught:
        return ""
    rows = [[escape(name), *_round(t)] for name, t in taught.items()]
    caption = "What each round learnt from: its teacher’s soft labels beside the human ones"
    head = ["round", "soft labels", "agreement", "flipped labels"]
    made = parts.table(caption, head, rows)
    for name, t in taught.items():
        if t.get("changes"):
            made += _changes(name, t["changes"])
    return f"<h2>Self-distillation</h2>{made}"


def _round(t: Json) -> list[str]:
    soft = t["soft"]
    if soft.get("stopped"):
        return [f'<span class="text">none: {escape(soft["stopped"])}</span>', "–", "–"]
    how = "cross-fitted" if soft["cross_fitted"] else "in-sample"
    by_locale = soft["agreement_by_locale"].items()
    own = ", ".join(f"{escape(locale)} {share:.1%}" for locale, share in by_locale)
    flips = sum(
        sum(map(sum, f)) - sum(f[k][k] for k in range(3)) for f in t["changes"]["flips"].values()
    )
    fit = f"{how}<small>teacher’s fit {soft['train_fit']:.1%}</small>"
    return [fit, f"{soft['agreement']:.1%}<small>{own}</small>", f"{flips:,}"]


def _changes(name: str, changes: Json) -> str:
    matrices = [
        parts.matrix(f"{name}, {locale}: human ↓ soft →", flips, parts.LABELS)
        for locale, flips in changes["flips"].items()
    ]
    categories = [
        [escape(f"{c['locale']} {c['category'] or 'none'}"), f"{c['pairs']:,}",
         f"{c['flips']:,}", f"{c['flips'] / c['pairs']:.0%}"]
        for c in changes["categories"][:CATEGORIES]
    ]  # fmt: skip
    examples = [
        [f'<span class="text">{escape(e["query"])}</span>',
         f'<span class="text">{escape(e["title"])}</span>', parts.LABELS[e["human"]],
         " · ".join(f"{p:.1%}" for p in reversed(e["p"]))]
        for e in changes["examples"]
    ]  # fmt: skip
    return (
        f'<div class="grid">{"".join(matrices)}</div>'
        + parts.table(f"{name}: flips by category", CATEGORY_HEAD, categories)
        + parts.table(
            f"{name}: where the teacher is surest that the label is wrong",
            ["query", "title", "human", "exact · substitute · irrelevant"], examples,
        )
    )  # fmt: skip


def _calibration(models: Sequence[Json], training: Mapping[str, Json]) -> str:
    """Reliability on gold of each calibrated model, beside the same model before (A30, A49)."""
    by_source = {m["source"]: m for m in models if m.get("calibration")}
    plots, rows = [], []
    for model in models:
        facts = training.get(model["name"], {}).get("facts", {})
        if "temperature" not in facts:
            continue
        curves = {"after": curve(model["calibration"])}
        before = by_source.get(facts["chosen_ref"])
        if before is not None:
            curves["before"] = curve(before["calibration"])
        plots.append(_card(model["name"], curves))
        rows.append([  # a live release may be of the time before A49
            f"{escape(model['name'])}<small>{escape(facts.get('calibration', ''))}</small>",
            parts.number(facts["temperature"]), str(facts.get("consensus_pairs", "–")),
            *(parts.number(facts[f"ece_{when}"]) for when in ("before", "after")),
            parts.estimate(before["figures"]["ece"] if before else None),
            parts.estimate(model["figures"]["ece"]),
        ])  # fmt: skip
    if not rows:
        return ""
    caption = (
        "Temperature, fitted on dev through the raters’ confusion and kept where it helps on dev "
        "pairs with a consensus; the first ECE is on those, – where too few"
    )
    head = ["model", "temperature", "pairs", "dev ECE before", "after", "gold ECE before", "after"]
    return (
        "<h2>Calibration</h2>" + parts.table(caption, head, rows)
        + f'<div class="grid">{"".join(plots)}</div>'
    )  # fmt: skip


def _card(name: str, curves: Mapping[str, Curve]) -> str:
    title = f"{name}: reliability on gold (grey: before calibration)"
    return f'<div class="card"><h3>{escape(title)}</h3>{plot(title, curves)}</div>'


def _transfer(training: Mapping[str, Json]) -> str:
    known = {name: t["facts"] for name, t in training.items() if "transfer_gap" in t["facts"]}
    if not known:
        return ""
    rows = [
        [escape(name), f"{f['transfer_pairs']:,}", *(parts.number(f[key]) for key, _ in TRANSFER)]
        for name, f in known.items()
    ]
    caption = (
        "One pair in two languages, RQA off, held-out translations: distance of the hidden states "
        "over their spread (lower is better), and how often a pair’s nearest neighbour in the "
        "other language is itself"
    )
    head = ["model", "pairs", *(title for _, title in TRANSFER)]
    return "<h2>Transfer between the languages</h2>" + parts.table(caption, head, rows)
