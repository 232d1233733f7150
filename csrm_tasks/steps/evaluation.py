"""Judging what was trained: baselines, the live release, and everything on the same gold set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import ConfigError
from csrm_tasks.json_files import write_json
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import RQA, SCORED, read_table
from csrm_tasks.release import ledger
from csrm_tasks.release.bundle.manifest import BEHIND, SECOND_STAGE
from csrm_tasks.settings import Settings
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    from csrm_tasks.evaluation.gold import Gold, Predictions

BASELINES = ("majority", "tfidf")
PARTS = ("llm", "ebr", "index", "rqa", "export", "snapshot")


@step("baselines", inputs=["snapshot"])
def baselines(ctx: Context) -> Metadata:
    """Train the majority class and the character n-gram baseline; score the gold set with both."""
    from csrm_tasks.evaluation.baselines import baseline_scores
    from csrm_tasks.evaluation.gold import judgeable

    pairs, queries, products = _tables(ctx.input("snapshot"))
    pairs = judgeable(pairs, queries, products)
    gold = pairs.filter(pl.col("split") == "gold").sort("pair_id")
    for name, frame in baseline_scores(pairs, queries, products, gold).items():
        frame.write_parquet(ctx.out / f"{name}.parquet")
    train = pairs.filter(pl.col("split") == "train")
    return {"train_pairs": train.height, "gold_pairs": gold.height}


def _tables(snapshot: Artifact) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    pairs, queries, products = (table(snapshot.path, n) for n in ("pairs", "queries", "products"))
    return pairs, queries, products


def _head(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str | None:
    """What the champion depends on: the ledger row that made the live release live."""
    move = ledger.last_live_row(ledger.history(settings, market.market))
    return move.hash if move else None


@step("champion", external_inputs=_head, side_effect=True)
def champion(ctx: Context) -> Metadata:
    """Find the live release in the ledger and the artifacts it was made of (null: none is live)."""
    entries = ledger.verified(ctx.settings, ctx.market.market)
    release = ledger.live(entries)
    promoted = ledger.find(entries, "promoted", release) if release else None
    names = [*PARTS, *BEHIND, SECOND_STAGE]
    facts: Metadata = {"release": release, "bundle": None} | dict.fromkeys(names)
    if promoted is not None:
        bundle = ctx.store.open(promoted.payload["bundle"])
        facts["bundle"] = bundle.ref
        facts |= {part: bundle.inputs[part] for part in PARTS}
        facts[SECOND_STAGE] = bundle.inputs.get(SECOND_STAGE)
        for name, part in BEHIND.items():  # retention keeps them for whoever reads this
            facts[name] = ctx.store.open(facts[part]).inputs.get(name)
    write_json(ctx.out / "champion.json", facts)
    return facts


@step(
    "evaluate",
    inputs=["snapshot", "baselines", "champion"],
    optional=["alone", "ablation", "leave_out", "review"],
    many=["llm_scores", "tower_scores"],
    config=["generated"],
)
def evaluate(ctx: Context, *, names: str) -> Metadata:
    """Judge all models on the frozen gold set, pairwise and by slice; write figures and report.

    ``names``: comma-separated, one per score artifact, those of LLMs first. ``alone``: gold scores
    of an LLM without retrieved titles, to be compared with its own among the others. ``ablation``:
    what dev kept of the market's options (A41), ``leave_out``: a control, ``review``: the pairs
    without a sure grade (A60); the report tells these.
    """
    from csrm_tasks.evaluation import evidence
    from csrm_tasks.evaluation.gold import gold_set
    from csrm_tasks.evaluation.report import page as report
    from csrm_tasks.evaluation.summary import against, headline, summarise

    gold = gold_set(*_tables(ctx.input("snapshot")))
    models = _answers(ctx, _names(ctx, names), gold)
    evidence.write(ctx.out, gold, models)
    summary = {
        "market": ctx.market.market,
        "snapshot": ctx.input("snapshot").ref,
        "generated": ctx.market.generated,
        "champion": ctx.input("champion").facts["release"],
        **summarise(models, gold, _rivals(ctx, models)),
        "rqa": _rqa(ctx),
        "resolved": _resolved(ctx, gold.frame),
        "training": _training(ctx, _names(ctx, names)),
        "ablation": dict(ctx.inputs["ablation"].facts) if "ablation" in ctx.inputs else None,
        "leave_out": _left_out(ctx),
        "review": dict(ctx.inputs["review"].facts) if "review" in ctx.inputs else None,
        "data": {name: _json(ctx.input("snapshot"), name) for name in ("health", "raters")},
    }
    summary |= _second_stages(ctx, models, gold)
    write_json(ctx.out / "metrics.json", summary, sort_keys=False)
    page = ctx.out / "report.html"
    page.write_text(report.render(summary), encoding="utf-8")
    metrics = headline(summary)
    tracking.log_run(
        ctx.settings,
        ctx.market.market,
        ctx.ref,
        params={"names": names, "gold": summary["gold"]["digest"]},
        metrics=metrics,
        files=[page, ctx.out / "metrics.json"],
    )
    return {
        "gold_pairs": gold.pairs,
        "gold_queries": gold.queries,
        "metrics": metrics,
        "micro_f1": against(summary, "micro_f1"),
        "em_f1": against(summary, "em_f1"),
        "defect_f1": against(summary, "defect_f1"),
    }


def _second_stages(ctx: Context, models: list[Predictions], gold: Gold) -> dict[str, Any]:
    """Return what dev and gold say of second stages; nothing where the market has none."""
    from csrm_tasks.evaluation.second_stage import told

    by_source = {(m.kind, m.source): m for m in models}
    pairs, dev = [], {}
    for scored in ctx.lists["tower_scores"]:
        if not scored.facts.get("served"):
            continue
        export, second = scored.inputs["export"], scored.inputs.get(SECOND_STAGE)
        served = by_source["served", second or export]
        if ("towers", export) in by_source:
            pairs.append((served, by_source["towers", export]))
        if second is not None:
            dev[served.name] = dict(ctx.store.open(second).facts)
    return {SECOND_STAGE: {"dev": dev, "gold": told(pairs, gold)}} if pairs else {}


def _names(ctx: Context, names: str) -> list[str]:
    wanted = [n.strip() for n in names.split(",")]
    given = len(ctx.lists["llm_scores"]) + len(ctx.lists["tower_scores"])
    taken = {*wanted, *BASELINES}
    if len(wanted) != given or len(taken) != given + len(BASELINES) or not all(wanted):
        raise ConfigError(
            f"evaluate: {given} score artifacts need {given} different names (and none of "
            f"{', '.join(BASELINES)}), not {names!r}"
        )
    return wanted


def _answers(ctx: Context, names: list[str], gold: Gold) -> list[Predictions]:
    """Read every score file; baselines come first, so that differences read "ours minus theirs"."""
    from csrm_tasks.evaluation.gold import llm_answers, tower_answers

    peers = ctx.input("baselines")
    answers = [
        llm_answers(n, "baseline", peers.ref, pl.read_parquet(peers.file(f"{n}.parquet")), gold)
        for n in BASELINES
    ]
    llms, towers = ctx.lists["llm_scores"], ctx.lists["tower_scores"]
    for name, artifact in zip(names[: len(llms)], llms, strict=True):
        scored = pl.read_parquet(artifact.file("scored.parquet"))
        llm = artifact.inputs.get("llm")  # what was not trained here is its own source
        kind = "baseline" if llm is None else "control" if _unclicked(ctx, artifact) else "llm"
        teacher = artifact.inputs.get("teacher")  # its word, in place of the LLM's (A50)
        kind = kind if teacher is None else "teacher"
        answers.append(llm_answers(name, kind, teacher or llm or artifact.ref, scored, gold))
    for name, artifact in zip(names[len(llms) :], towers, strict=True):
        scored = pl.read_parquet(artifact.file("scored.parquet"))
        kind = "control" if artifact.facts.get("control") else "towers"
        source = artifact.inputs["export"]
        if artifact.facts.get("served"):  # in the order of the second stage, if there is one
            kind, source = "served", artifact.inputs.get(SECOND_STAGE) or source
        answers.append(tower_answers(name, source, scored, gold, kind))
    return answers


def _unclicked(ctx: Context, scores: Artifact) -> bool:
    """Whether the titles were retrieved without clicks of gold queries: a control (A23)."""
    rqa = scores.inputs.get("rqa")
    return rqa is not None and bool(ctx.store.open(rqa).facts.get("unclicked"))


def _rivals(ctx: Context, models: list[Predictions]) -> list[tuple[str, str]]:
    """Name the candidate's LLM and towers, each with what the live release has instead.

    The champion's are known by what was scored; the candidate's are the last of the others.
    """
    live, rivals = ctx.input("champion").facts, []
    for kind, part in (("llm", "llm"), ("towers", "export")):
        of_kind = [m for m in models if m.kind == kind]
        champions = [m.name for m in of_kind if m.source == live[part]]
        others = [m.name for m in of_kind if m.source != live[part]]
        if champions and others:
            rivals.append((others[-1], champions[0]))
    return rivals


def _json(artifact: Artifact, name: str) -> object:
    return json.loads(artifact.file(f"{name}.json").read_text(encoding="utf-8"))


def _rqa(ctx: Context) -> dict[str, Any]:
    """Metadata of the RQA that each LLM read, by its reference (A26)."""
    refs = {a.inputs["rqa"] for a in ctx.lists["llm_scores"] if a.inputs.get("rqa")}
    return {ref: dict(ctx.store.open(ref).facts) for ref in sorted(refs)}


def _resolved(ctx: Context, gold: pl.DataFrame) -> dict[str, Any] | None:
    """What titles changed for the LLM that ``alone`` was scored with (None: not asked)."""
    from csrm_tasks.evaluation.rqa_ablation import rqa_ablation

    alone = ctx.inputs.get("alone")
    same = [
        a for a in ctx.lists["llm_scores"]
        if alone and a.inputs.get("llm") == alone.inputs["llm"] and a.inputs.get("rqa")
        and "teacher" not in a.inputs
    ]  # fmt: skip
    if alone is None or not same:
        return None
    titles = ctx.store.open(same[-1].inputs["rqa"]).file("rqa.parquet")
    without, augmented = (read_table(a.file("scored.parquet"), SCORED) for a in (alone, same[-1]))
    queries = table(ctx.input("snapshot").path, "queries")
    return rqa_ablation(gold, without, augmented, queries, read_table(titles, RQA))


def _left_out(ctx: Context) -> object:
    control = ctx.inputs.get("leave_out")
    return [] if control is None else _json(control, "leave_out")


def _training(ctx: Context, names: list[str]) -> dict[str, Any]:
    """How each LLM was trained: its facts and, of a round, what its soft labels said (A18, A44)."""
    training: dict[str, Any] = {}
    for name, scores in zip(names, ctx.lists["llm_scores"], strict=False):  # towers come after
        if "llm" not in scores.inputs or "teacher" in scores.inputs:  # no LLM by itself
            continue
        llm = ctx.store.open(scores.inputs["llm"])
        training[name] = {"facts": dict(llm.facts)}
        if llm.inputs.get("soft"):
            soft = ctx.store.open(llm.inputs["soft"])
            training[name]["soft"] = dict(soft.facts)
            if not soft.facts.get("stopped"):
                training[name]["changes"] = _json(soft, "changes")
        if "chosen_ref" in llm.facts:  # a chosen model hides nothing of the candidate it was
            training[name]["facts"] = {**ctx.store.open(llm.facts["chosen_ref"]).facts, **llm.facts}
    return training
