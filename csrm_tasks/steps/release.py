"""From trained parts to a live release: bundle, gate, register, promote."""

from __future__ import annotations

import json
from typing import Any

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ConfigError
from csrm_tasks.json_files import write_json
from csrm_tasks.release import judge, ledger, verdicts
from csrm_tasks.release import promote as promotion
from csrm_tasks.release.bundle.manifest import (
    SECOND_STAGE,
    assemble,
    kept_second_stage,
    release_id,
)
from csrm_tasks.release.views import few_retries
from csrm_tasks.steps.declaration import Context, Metadata, step

MODEL_CARD = "model_card.md"

# what a release says of its LLM, beside the adapter's reference and digest (A14)
CARD = ("base", "base_digest", "pretraining", "label_ids", "prompt_version", "temperature")


@step(
    "bundle",
    inputs=["snapshot", "llm", "ebr", "index", "rqa", "export", "embeddings"],
    optional=["llm_export", "second_stage"],
    config=["tasks"],
)
def bundle(ctx: Context) -> Metadata:
    """Put together what is released as one thing; parts that do not fit together are refused.

    So is a market without relevance, which has nothing to serve: :class:`ConfigError`.
    """
    if "relevance" not in ctx.market.tasks:
        raise ConfigError(
            f"market {ctx.market.market} learns {', '.join(ctx.market.tasks)} and no relevance: "
            "there is nothing to serve, so nothing to bundle; its LLM is judged by gate_tasks"
        )
    from csrm_tasks.llm.network.identity import read_card
    from csrm_tasks.towers.serving.texts import TEXT_VERSION

    llm = ctx.input("llm")
    card = read_card(llm.path)
    stage = _stage(ctx, ctx.input("snapshot"))
    about: dict[str, Any] = {
        "market": ctx.market.market,
        "locale": ctx.market.target_locale,
        "stage": stage,
        "learnt_from": [*ctx.market.learnt_locales(stage)],
        "missing": [*ctx.market.missing_locales(stage)],
        "source_dev_micro_f1": _fact(ctx, llm, "source_dev_micro_f1"),
        "dev_micro_f1": _fact(ctx, llm, "dev_micro_f1"),
        "llm": {name: getattr(card, name) for name in CARD},
        "text_version": TEXT_VERSION,
    }
    if kept_second_stage(ctx.inputs):
        about["second_stage"] = {"top": ctx.input(SECOND_STAGE).facts["top"]}
    assemble(ctx.inputs, ctx.out, about)
    return about


def _stage(ctx: Context, snapshot: Artifact) -> int:
    """Return the stage that the snapshot was made for, from its step's parameters."""
    manifest = ctx.store.manifest(snapshot.ref) or {}
    return int(manifest["about"]["params"]["stage"])


def _fact(ctx: Context, llm: Artifact, name: str) -> float | None:
    facts = [ctx.store.open(ref).facts for ref in judge.same_weights(ctx.store, llm.ref)]
    return next((f[name] for f in facts if f.get(name) is not None), None)


@step(
    "gate",
    inputs=["bundle", "champion", "servability"],
    optional=["evaluation", "task_evaluation", "ablation", "review"],
    config=["gate", "generated", "tasks"],
)
@few_retries()
def gate(ctx: Context, *, stage: int, asked: str = "") -> Metadata:
    """Decide whether the bundle may replace the live release; the verdict is sealed by digest.

    ``stage``: 1 a cold start (floor on source dev), 2 against the champion on the gold set.
    ``ablation``: what dev kept of the market's options (A41), for the model card; ``review``: pairs
    of the traffic, from which the label budget is drawn where the gate leaves claims open.
    ``asked``: how the run differs from the market's normal one, and why; verdict, report and ledger
    say it.
    """
    evaluation, tasks = (ctx.inputs.get(n) for n in ("evaluation", "task_evaluation"))
    beside = [task for task in ctx.market.tasks if task != "relevance"]
    if stage == 2 and beside and tasks is None:
        raise ConfigError(
            f"gate: the market learns {', '.join(beside)}, so it needs input "
            "'task_evaluation' (of evaluate_tasks)"
        )
    sides = judge.Sides(
        ctx.input("bundle"), ctx.input("champion"), ctx.input("servability"), evaluation, tasks
    )
    sealed = judge.verdict(ctx.store, sides, stage, ctx.market.gate, asked)
    write_json(ctx.out / verdicts.FILE, sealed, sort_keys=False)
    _pages(ctx, evaluation, tasks, sealed)
    # Every verdict is on record, not only the one that leads to a registration.
    tracking.log_run(
        ctx.settings,
        ctx.market.market,
        ctx.ref,
        tags={"csrm.release": sealed["release"], "csrm.verdict": sealed["outcome"]}
        | {f"csrm.{k}": said for k, said in verdicts.mark(sealed).items()},
        files=sorted(ctx.out.iterdir()),
    )
    kept = ("release", "champion", "digest", "reasons", "needed")
    return {"verdict": sealed["outcome"], **{k: sealed[k] for k in kept}} | verdicts.mark(sealed)


def _pages(
    ctx: Context, evaluation: Artifact | None, tasks: Artifact | None, verdict: dict[str, Any]
) -> None:
    """Write the evaluation's report once more, now with the verdict, and the model card."""
    from csrm_tasks.evaluation.report import model_card
    from csrm_tasks.evaluation.report import page as report

    summary = None
    if evaluation:
        summary = _metrics(evaluation)
        if tasks:
            summary["tasks"] = _metrics(tasks)
        summary["budget"] = _budget(ctx, verdict["needed"])
        (ctx.out / "report.html").write_text(report.render(summary, verdict), encoding="utf-8")
    bundle = ctx.input("bundle")
    about = {**bundle.facts, "parts": bundle.inputs, "generated": ctx.market.generated}
    about["ablation"] = ctx.inputs["ablation"].facts if "ablation" in ctx.inputs else None
    card = model_card.render(about, verdict, summary)
    (ctx.out / MODEL_CARD).write_text(card, encoding="utf-8")


def _budget(ctx: Context, needed: dict[str, int]) -> list[dict[str, Any]] | None:
    """Where judgements decide what the gate left open soonest; None where nothing is."""
    review = ctx.inputs.get("review")
    # A task of its own is decided by its own labels, not by grades
    needed = {n: k for n, k in needed.items() if n.partition(" ")[0] not in ctx.market.binary_tasks}
    if review is None or not needed:
        return None
    from csrm_tasks.steps.review import label_budget

    return label_budget(ctx, review, ctx.store.open(review.inputs["snapshot"]), needed)


def _metrics(evaluation: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(evaluation.file("metrics.json").read_text(encoding="utf-8"))
    return found


@step("register", inputs=["bundle", "gate"], side_effect=True)
@few_retries()
def register(ctx: Context) -> Metadata:
    """Record the release in MLflow as one model version and in the ledger as registered."""
    from csrm_tasks.release import registration
    from csrm_tasks.release.reconcile import reconcile

    candidate = ctx.input("bundle")
    verdict = verdicts.read(ctx.input("gate"))
    release = release_id(candidate)
    outcome = verdict["outcome"]
    api = tracking.client(ctx.settings)
    pages = [ctx.input("gate").path / name for name in ("report.html", MODEL_CARD)]
    figures = {k: v for k, v in candidate.facts.items() if k.endswith("micro_f1") and v is not None}
    run_id = tracking.log_run(
        ctx.settings,
        ctx.market.market,
        ctx.ref,
        params={"release": release, "bundle": candidate.ref, "verdict": outcome},
        metrics=figures,
        tags={"csrm.release": release, "csrm.verdict": outcome},
        files=[p for p in pages if p.exists()],
    )
    payload = {
        "bundle": candidate.ref,
        "digest": candidate.digest,
        "verdict": verdict["digest"],
        "gate": ctx.input("gate").ref,
        "outcome": outcome,
    }
    if verdict["evaluation"]:
        payload["evaluation"] = verdict["evaluation"]
    payload |= verdicts.mark(verdict)
    version = registration.ensure(
        api, ctx.market.model_name, run_id, candidate, registration.version_tags(payload),
        ctx.work / "model",
    )  # fmt: skip
    if verdict["evaluation"]:
        evaluation = ctx.store.open(verdict["evaluation"])
        registration.log_figures(api, run_id, candidate, evaluation)
    card = (ctx.input("gate").path / MODEL_CARD).read_text(encoding="utf-8")
    api.update_model_version(ctx.market.model_name, version, description=card)
    row = ledger.append(
        ctx.settings,
        ctx.market.market,
        "registered",
        release,
        actor="csrm register",
        reason="; ".join(verdict["reasons"]),
        payload=payload,
    )
    reconcile(ctx.settings, ctx.market, api)
    return {"release": release, "version": version, "run": run_id, "seq": row.seq}


@step("promote", inputs=["bundle", "gate", "register"], side_effect=True)
def promote(ctx: Context) -> Metadata:
    """Make the registered release live, if verdict and approval allow it; exactly once."""
    row = promotion.promote(
        ctx.settings,
        ctx.market,
        ctx.input("bundle"),
        ctx.input("gate"),
        tracking.LaterClient(ctx.settings),
    )
    return {"release": row.release_id, "previous": row.previous, "seq": row.seq}
