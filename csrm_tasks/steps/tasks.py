"""Judging the query-category and query-item tasks, beside relevance or alone (A40, A42, A46)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from csrm_tasks import tracking
from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.json_files import write_json
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import verdicts
from csrm_tasks.settings import Settings
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    from csrm_tasks.artifacts import Artifact

log = logging.getLogger("csrm")


def _last_passed(
    market: MarketConfig, settings: Settings, params: Mapping[str, Any]
) -> dict[str, str] | None:
    """The last verdict of the tasks alone that was a PASS, and its LLM."""
    store = ArtifactStore(settings.artifacts, settings.cache)
    for ref, manifest in reversed(store.published(f"{market.market}/gate_tasks")):
        if manifest["facts"]["verdict"] == "PASS":
            return {"gate": ref, "llm": manifest["facts"]["llm"]}
    return None


@step("passed_llm", external_inputs=_last_passed, side_effect=True)
def passed_llm(ctx: Context) -> Metadata:
    """Find the LLM that last passed the gate of the tasks alone (null: none has yet)."""
    return _last_passed(ctx.market, ctx.settings, {}) or {"gate": None, "llm": None}


@step("evaluate_tasks", inputs=["snapshot", "llm"], optional=["champion_llm"], config=["generated"])
def evaluate_tasks(ctx: Context) -> Metadata:
    """Judge an LLM, and the champion's, on the gold pairs of the snapshot's tasks.

    Each says yes by its own thresholds. A champion that has not learnt a task is not asked. Writes
    ``tasks.parquet`` (SAID), ``metrics.json`` and ``report.html``.
    """
    import torch

    from csrm_tasks.evaluation.report import tasks as report
    from csrm_tasks.evaluation.tasks import FILE, SAID, summarise_tasks
    from csrm_tasks.llm.task_data import load_task_pairs
    from csrm_tasks.records import write_table

    torch.set_num_threads(ctx.settings.threads)
    pairs = load_task_pairs(ctx.input("snapshot").path)
    tasks = pairs["task"].unique().sort().to_list()
    if not tasks:
        raise DataError(
            f"{ctx.input('snapshot').ref} holds no pairs of qc or qi; name them in the market's "
            "tasks and run snapshot again"
        )
    gold = pairs.filter(split="gold")
    models = {"champion": ctx.inputs.get("champion_llm"), "candidate": ctx.input("llm")}
    answers = [_answers(name, llm, gold) for name, llm in models.items() if llm is not None]
    said = pl.concat([pl.DataFrame(schema=SAID), *answers])
    write_table(said, SAID, ctx.out / FILE)
    summary = {
        "market": ctx.market.market, "snapshot": ctx.input("snapshot").ref,
        "generated": ctx.market.generated,
        "models": {name: None if llm is None else llm.ref for name, llm in models.items()},
        "dev": {n: _dev(llm) for n, llm in models.items() if llm is not None},
        **summarise_tasks(said, tasks),
    }  # fmt: skip
    write_json(ctx.out / "metrics.json", summary, sort_keys=False)
    (ctx.out / "report.html").write_text(report.page(summary), encoding="utf-8")
    found = {t: one["models"]["candidate"]["f1"]["value"] for t, one in summary["by_task"].items()
             if "candidate" in one["models"]}  # fmt: skip
    metrics = {f"{task}_f1": value for task, value in found.items() if value is not None}
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params={"llm": ctx.input("llm").ref, "tasks": ",".join(tasks)}, metrics=metrics,
        files=[ctx.out / "metrics.json", ctx.out / "report.html"],
    )  # fmt: skip
    return {"tasks": tasks, "gold_pairs": gold.height, "f1": found, "mean_f1": summary["mean_f1"]}


def _dev(llm: Artifact) -> dict[str, Any]:
    """What a model's own dev said: thresholds, and figures of the half that reports."""
    from csrm_tasks.llm.training.task_judge import FILE

    path = llm.path / FILE
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return said


def _answers(name: str, llm: Artifact, gold: pl.DataFrame) -> pl.DataFrame:
    """Return SAID of one model, of the tasks that it has learnt."""
    from csrm_tasks.evaluation.tasks import SAID
    from csrm_tasks.llm.prompt.prompts import TASK_SPACES
    from csrm_tasks.llm.scoring.scoring import RelevanceScorer
    from csrm_tasks.llm.task_data import TaskTexts

    scorer, dev = RelevanceScorer.load(llm.path), _dev(llm)
    parts = [pl.DataFrame(schema=SAID)]
    for (task,), own in gold.group_by("task", maintain_order=True):
        if task not in dev:
            log.warning("%s has not learnt task %s and is not judged in it", llm.ref, task)
            continue
        space = TASK_SPACES[str(task)]
        scored = scorer.score(space, TaskTexts(space.name), own)
        said = (pl.col("p1").cast(pl.Float64) >= dev[task]["threshold"]).cast(pl.Int8)
        named = scored.with_columns(pl.lit(name).alias("model"), said.alias("said"), p="p1")
        parts.append(named.select(pl.col(c).cast(t) for c, t in SAID.items()))
    return pl.concat(parts)


@step("gate_tasks", inputs=["evaluation"], config=["gate", "tasks"])
def gate_tasks(ctx: Context, *, asked: str = "") -> Metadata:
    """Decide whether an LLM of a market without relevance passes, by its tasks; seal the verdict.

    A market with relevance is judged by ``gate``, which reads the tasks as well. ``asked``: how the
    run differs from the market's normal one, and why.
    """
    from csrm_tasks.evaluation.report import tasks as report
    from csrm_tasks.evaluation.task_gate import decide_tasks
    from csrm_tasks.release.judge import task_evidence

    if "relevance" in ctx.market.tasks:
        raise ConfigError("gate_tasks judges markets without relevance; run gate for this one")
    evaluation = ctx.input("evaluation")
    policy = ctx.market.gate
    verdict = decide_tasks(task_evidence(evaluation, ctx.market.binary_tasks), policy)
    llm = evaluation.inputs["llm"]
    sealed = verdicts.seal({
        "llm": llm, "champion": evaluation.inputs.get("champion_llm"),
        "evaluation": evaluation.ref, "evaluation_digest": evaluation.digest,
        "policy": policy.model_dump(mode="json") if policy else None,
        **verdicts.marked(verdict.as_json(), asked),
    })  # fmt: skip
    write_json(ctx.out / verdicts.FILE, sealed, sort_keys=False)
    summary = json.loads(evaluation.file("metrics.json").read_text(encoding="utf-8"))
    (ctx.out / "report.html").write_text(report.page(summary, sealed), encoding="utf-8")
    (ctx.out / "model_card.md").write_text(report.card(summary, sealed), encoding="utf-8")
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        tags={"csrm.verdict": sealed["outcome"]}
        | {f"csrm.{k}": said for k, said in verdicts.mark(sealed).items()},
        files=sorted(ctx.out.iterdir()),
    )  # fmt: skip
    kept = ("llm", "champion", "digest", "reasons", "needed")
    return {"verdict": sealed["outcome"], **{k: sealed[k] for k in kept}} | verdicts.mark(sealed)
