"""The model card (Mitchell et al., 2019) of a release, from the same data as report and verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csrm_tasks.evaluation.report import second_stage
from csrm_tasks.evaluation.report.tasks import card_lines

Json = Mapping[str, Any]
FIGURES = {
    "micro_f1": "micro-F1",
    "em_f1": "EM F1",
    "defect_f1": "defect F1",
    "em_at_1": "EM@1",
    "defect_at_5": "Defect@5 (lower is better)",
}
SAID_OF = ("micro_f1", "em_f1")  # by slice: of the LLM, and of the towers
USE = (
    "Query-product relevance in {locale}: whether a product is an exact match, a substitute or "
    "irrelevant (LLM, offline), and an exact match or a defect (twin towers, online). Not for "
    "other languages or shops than it was judged on, and no measure of a product's quality."
)
GENERATED = "**This market’s data are generated: the figures say nothing about real shoppers.**"


def render(about: Json, verdict: Json, summary: Json | None) -> str:
    """Return the card as Markdown.

    ``about``: the bundle's facts and inputs (market, locale, stage, languages, parts). ``summary``:
    of the evaluation, None for a cold start, which has no gold set yet.
    """
    lines = [f"# {verdict['release']}", ""]
    if about["generated"]:
        lines += [GENERATED, ""]
    lines += ["## Use", "", USE.format(locale=about["locale"]), *_languages(about)]
    lines += ["", "## Made of", ""]
    lines += [f"- {name}: `{ref}`" for name, ref in sorted(about["parts"].items())]
    lines += ["", "## Judged", "", f"Gate: **{verdict['outcome']}**, `{verdict['digest']}`", ""]
    lines += [f"- {said}" for said in (*verdict["reasons"], *verdict.get("notes", ()))]
    lines += _figures(summary) if summary else _cold(about)
    return "\n".join([*lines, *_options(about.get("ablation")), ""])


def _options(ablation: Json | None) -> list[str]:
    """Say which options of the market's the LLM was trained with, by its run's ablation (A41)."""
    if ablation is None:
        return []
    lines = [
        "", "Options of the training that were tried on dev, which is used to choose more than "
        f"once: F1 of its tasks with all of them minus without the one, {ablation['steps']} steps, "
        f"{ablation['seeds']} seeds, "
        f"{ablation['dev_queries']:,} dev queries of {ablation['dev_locale']}.", "",
    ]  # fmt: skip
    for o in ablation["options"]:
        kept = "kept" if o["kept"] else "dropped"
        lines.append(f"- `{o['option']}` {kept}: {_estimate(o['delta'])}; {o['reason']}")
    return lines


def _languages(about: Json) -> list[str]:
    """Say which languages were learnt from and which were not (A36); nothing of an older bundle."""
    if "learnt_from" not in about:
        return []
    missing = [x for x in about["missing"] if x != about["locale"]]
    judged = f" Judged in {', '.join(missing)}, too: nothing was learnt of it." if missing else ""
    return ["", f"Learnt from labels in {', '.join(about['learnt_from'])}.{judged}"]


def _cold(about: Json) -> list[str]:
    value = about["source_dev_micro_f1"]
    shown = "not measured" if value is None else f"{value:.3f}"
    return [
        "", f"Micro-F1 on the source market's dev set: {shown}. It was not judged on gold of "
        f"{about['locale']}: how good it is there is not known.",
    ]  # fmt: skip


def _figures(summary: Json) -> list[str]:
    gold = summary["gold"]
    lines = [
        "", f"Gold set of {gold['pairs']:,} pairs and {gold['queries']:,} queries, never trained "
        f"on, `{gold['digest']}`. 95 % bootstrap intervals by query.", "",
        "| model | " + " | ".join(FIGURES.values()) + " |", "| --- |" + " --- |" * len(FIGURES),
    ]  # fmt: skip
    for model in summary["models"]:
        cells = [_estimate(model["figures"].get(f)) for f in FIGURES]
        lines.append(f"| {model['name']} | " + " | ".join(cells) + " |")
    tasks = card_lines(summary["tasks"]) if "tasks" in summary else []
    order = second_stage.card_lines(summary.get("second_stage"))
    return [*lines, *order, *_slices(summary), *tasks]


def _slices(summary: Json) -> list[str]:
    candidates = [pair[0] for pair in summary["rivals"]]
    if not candidates or not summary["slices"]:
        return []
    head = " | ".join(candidates)
    lines = ["", "By slice: micro-F1 of the LLM, EM F1 of the towers.", ""]
    lines += [f"| slice | pairs | {head} |", "| --- | --- |" + " --- |" * len(candidates)]
    for s in summary["slices"]:
        of = (next(s["figures"][c][f] for f in SAID_OF if f in s["figures"][c]) for c in candidates)
        cells = " | ".join(_estimate(figure) for figure in of)
        lines.append(f"| {s['name'].replace('_', ' ')} | {s['pairs']:,} | {cells} |")
    return lines


def _estimate(figure: Json | None) -> str:
    if figure is None or figure["value"] is None:
        return "–"
    return f"{figure['value']:.3f} [{figure['lo']:.3f}, {figure['hi']:.3f}]"
