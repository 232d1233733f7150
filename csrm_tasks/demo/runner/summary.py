"""What a demo's run has come to, read back from MLflow and the ledger; nothing is remembered."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.demo.runner.home import Home
from csrm_tasks.release import ledger
from csrm_tasks.settings import Settings

TITLES = {
    "majority": "majority class",
    "tfidf": "TF-IDF + logistic regression",
    "champion": "LLM that was live{stage}",
    "rqa_cold": "LLM stage 2, RQA of the cold start",
    "stage2": "LLM stage 2, RQA*",
    "rqa_unclicked": "LLM chosen on dev, RQA* without clicks on gold queries",
    "final": "LLM chosen on dev",
    "teacher": "what teaches the towers: that LLM, or a stack with lexical evidence",
    "champion_towers": "towers that were live{stage}",
    "towers_hard": "towers, hard labels",
    "towers_seen": "towers, distilled on gold queries, too (control)",
    "cross_encoder": "cross-encoder, distilled",
    "towers": "towers, distilled",
    "champion_served": "what was live, in the order it answers in",
    "served": "those towers, the top re-ranked by the second stage if dev keeps it",
}
FIGURES = {"micro_f1": "micro-F1", "em_f1": "EM F1", "defect_f1": "defect F1"}
CLAIMS = (  # (a, b, measure): a is expected to be above b, or (towers) to come close
    ("final", "majority", "micro_f1"),
    ("final", "tfidf", "micro_f1"),
    ("stage2", "champion", "micro_f1"),
    ("stage2", "rqa_cold", "micro_f1"),
    ("final", "rqa_unclicked", "micro_f1"),
    ("rqa_unclicked", "rqa_cold", "micro_f1"),
    ("round1", "stage2", "micro_f1"),
    ("round2", "round1", "micro_f1"),
    ("final", "champion", "micro_f1"),
    ("teacher", "final", "micro_f1"),
    ("towers", "towers_hard", "em_f1"),
    ("towers", "towers_hard", "defect_f1"),
    ("towers", "final", "em_f1"),
    ("towers", "final", "defect_f1"),
    ("towers", "champion_towers", "em_f1"),
    ("towers", "champion_towers", "defect_f1"),
    ("towers_seen", "towers", "em_f1"),
    ("towers_seen", "towers", "defect_f1"),
)


def print_summary(console: Console, home: Home) -> None:
    """Print the newest evaluation's figures, the verdict, the live release, and where to look."""
    entries = ledger.verified(home.settings, home.market)
    evaluation = newest_evaluation(home)
    if evaluation:
        judged_against = ledger.find(entries, "promoted", str(evaluation["champion"]))
        titles = titles_of(evaluation, bundle_of(judged_against, home.settings))
        newest = next((e for e in reversed(entries) if e.action == "registered"), None)
        candidate = bundle_of(newest, home.settings)
        console.print(models_table(evaluation, titles))
        console.print(claims_table(evaluation, titles))
        for line in language_lines(evaluation):
            console.print(line, highlight=False, soft_wrap=True)
        for line in rqa_lines(evaluation, candidate.inputs["rqa"] if candidate else None):
            console.print(line, highlight=False, soft_wrap=True)
    for line in [*verdict_lines(home), *release_lines(entries)]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if evaluation:
        console.print(f"report    {evaluation['report']}", highlight=False, soft_wrap=True)
    console.print(
        f"Airflow   {home.url} and MLflow {home.mlflow_url} after: make ui MARKET={home.market}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def newest_file(home: Home, step: str, *names: str) -> list[Path]:
    """Return files that the newest finished MLflow run of ``step`` holds; [] without a run."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    api = tracking.client(home.settings)
    runs = api.search_runs(
        [tracking.experiment_id(api, home.market, home.settings)],
        f"tags.`csrm.step` = '{step}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    where = home.root / "summary" / step
    where.mkdir(parents=True, exist_ok=True)
    return [
        Path(api.download_artifacts(run.info.run_id, name, str(where)))
        for run in runs
        for name in names
    ]


def newest_evaluation(home: Home) -> dict[str, Any] | None:
    """Return the newest ``evaluate`` run's metrics.json, and its report's path, from MLflow."""
    files = newest_file(home, "evaluate", "metrics.json", "report.html")
    if not files:
        return None
    found: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))
    return found | {"report": str(files[1])}


def verdict_lines(home: Home) -> list[str]:
    """Say what the gate said of the newest candidate, promoted or not, and why."""
    files = newest_file(home, "gate", "verdict.json")
    if not files:
        return []
    verdict = json.loads(files[0].read_text(encoding="utf-8"))
    reasons = [f"          {reason}" for reason in verdict["reasons"]]
    return [f"gate      {verdict['outcome']} for {verdict['release']}", *reasons]


def bundle_of(entry: ledger.Entry | None, settings: Settings) -> Artifact | None:
    """Open the bundle that a ledger row is about."""
    if entry is None:
        return None
    return ArtifactStore(settings.artifacts, settings.cache).open(entry.payload["bundle"])


def titles_of(evaluation: Mapping[str, Any], live: Artifact | None) -> dict[str, str]:
    """Return model name → what it is called here; what was live is called by its stage."""
    stage = f" (stage {live.facts['stage']})" if live else ""
    names = [m["name"] for m in evaluation["models"]]
    return {n: TITLES.get(n, f"LLM {n}").format(stage=stage) for n in names}


def models_table(evaluation: Mapping[str, Any], titles: Mapping[str, str]) -> Table:
    """Return every model's figures on the gold set with their 95 % intervals."""
    gold = evaluation["gold"]
    table = Table(title=f"Gold set: {gold['pairs']} pairs, {gold['queries']} queries", box=None)
    table.add_column("model")
    for title in FIGURES.values():
        table.add_column(f"{title} [95 %]")
    for model in evaluation["models"]:
        figures = (figure(model["figures"].get(f)) for f in FIGURES)
        table.add_row(titles[model["name"]], *figures)
    return table


def claims_table(evaluation: Mapping[str, Any], titles: Mapping[str, str]) -> Table:
    """Return the paired differences that the demo is about; what is open is said to be open."""
    found = {(c["a"], c["b"], c["measure"]): c for c in evaluation["comparisons"]}
    table = Table(title="Differences, paired by query", box=None)
    for title in ("", "against", "in", "difference [95 %]", ""):
        table.add_column(title)
    for a, b, measure in CLAIMS:
        c = found.get((a, b, measure))
        if c is not None:
            difference = figure(c, signed=True)
            table.add_row(titles[a], titles[b], FIGURES[measure], difference, c["verdict"])
    return table


def figure(value: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """Format an interval in points; "" where it is undefined."""
    if value is None or value["value"] is None:
        return ""
    sign = "+" if signed else ""
    return f"{100 * value['value']:{sign}.1f} \\[{100 * value['lo']:.1f}, {100 * value['hi']:.1f}]"


def language_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """Say the chosen LLM's micro-F1 by language of gold, where it is in several (A36)."""
    lines = []
    for s in evaluation["slices"]:
        kind, _, locale = s["name"].partition(" ")
        found = s["figures"].get("final", {}).get("micro_f1")
        if kind == "language" and found is not None:
            lines.append(f"gold in {locale}: {s['pairs']} pairs, LLM micro-F1 {figure(found)}")
    for one in evaluation.get("leave_out", []):
        if "difference" in one:
            worth = figure(one["difference"], signed=True)
            lines.append(f"linear baseline without {one['locale']}, on its dev: {worth}")
    return lines


def rqa_lines(evaluation: Mapping[str, Any], candidate: str | None) -> list[str]:
    """Say how often retrieved titles were right (A26); ``candidate`` is the new release's RQA."""
    lines = []
    for ref, facts in evaluation["rqa"].items():
        found = {locale: _share_right(m) for locale, m in facts["locales"].items()}
        shares = [f"{locale} {share}" for locale, share in found.items() if share]
        which = "RQA*" if ref == candidate else "RQA of the live retriever"
        if facts.get("unclicked"):
            which = "RQA* without clicks on gold queries"
        lines.append(f"titles that are right, {which}: {', '.join(shares)}")
    return lines


def _share_right(measured: Mapping[str, Any]) -> str:
    """By judgements of titles where there are some, else by graded pairs."""
    if measured.get("judged_accuracy") is not None:
        bm25 = 100 * measured["judged_accuracy_bm25"]
        return f"{100 * measured['judged_accuracy']:.1f} % (judged; BM25 alone {bm25:.1f} %)"
    proxy = measured["rqa_accuracy"]
    return "" if proxy is None else f"{100 * proxy:.1f} % (of graded pairs)"


def release_lines(entries: Sequence[ledger.Entry]) -> list[str]:
    """Say what is live now, and what was before."""
    stack = ledger.live_stack(entries)
    lines = [f"live      {stack[-1] if stack else 'nothing'}"]
    if len(stack) > 1:
        lines.append(f"previous  {stack[-2]}")
    return lines
