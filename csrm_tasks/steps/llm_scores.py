"""Steps that score pairs with a relevance LLM: all at once, or in shards that are put together.

A shard holds whole queries, so that a query's prefix is still run once (A12). Each is an artifact
of its own: what is done is never scored again (A19), and a killed one costs that shard only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.json_files import write_json
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.parts import check_parts
from csrm_tasks.steps.parts import shards as all_shards

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from csrm_tasks.artifacts import Artifact

log = logging.getLogger("csrm")

READS: dict[str, Any] = {"inputs": ["snapshot", "llm"], "optional": ["pairs", "rqa", "teacher"]}
BEYOND = "the run asks for no further round"
TRAINS = ["llm", "seed"]  # by whom soft labels are cross-fitted, with models of their own


@step("score_pairs", config=TRAINS, **READS)
def score_pairs(
    ctx: Context, *, space: str = "relevance", split: str = "", beyond: bool = False
) -> Metadata:
    """Score given pairs, or the snapshot's own of ``split``, with a trained LLM (A8, A16, A19).

    ``split=train`` gives soft labels (temperature 1); the file then also has pair_id and grade.
    They are cross-fitted where the teacher has memorised its labels (A18), and there are none where
    the teacher is no better on dev than its own teacher was: the rounds end there (A17), as they
    do for a round ``beyond`` those that the run asks for. ``teacher`` (of ``choose_teacher``): its
    stack's word in place of the LLM's (A50), or none where dev refuses the teacher.
    """
    pairs = _asked(ctx, split, space)
    stopped = BEYOND if beyond else _stopped(ctx, space, split)
    if stopped:
        return _no_labels(stopped)
    scored, truncated = _score(ctx, pairs, space, split)
    return _finish(ctx, scored, truncated, space, split)


@step("score_shard", **READS)
def score_shard(
    ctx: Context, *, shard: int, of: int, space: str = "relevance", split: str = "",
    beyond: bool = False,
) -> Metadata:  # fmt: skip
    """Score what ``score_pairs`` would, but only shard ``shard`` (from 0) ``of`` so many."""
    from csrm_tasks.llm.data import shard_numbers

    if not 0 <= shard < of:
        raise ConfigError(f"score_shard: there is no shard {shard} of {of}; they count from 0")
    pairs = _asked(ctx, split, space)
    stopped = BEYOND if beyond else _stopped(ctx, space, split)
    if stopped:
        return _no_labels(stopped)
    scored, truncated = _score(ctx, pairs.filter(shard_numbers(pairs, of) == shard), space, split)
    write_scores(ctx, scored, judged=bool(split))
    log.info("shard %d of %d: %d of %d pairs", shard, of, len(scored), len(pairs))
    return _shard_facts(shard, of, space, split) | {"pairs": len(scored), "truncated": truncated}


@step("join_shards", many=["shards"], config=TRAINS, **READS)
def join_shards(
    ctx: Context, *, space: str = "relevance", split: str = "", beyond: bool = False
) -> Metadata:
    """Put all shards together to what ``score_pairs`` would have made, in its order.

    Raises :class:`DataError` unless every pair was scored once, from these very inputs.
    """
    pairs = _asked(ctx, split, space)
    stopped = BEYOND if beyond else _stopped(ctx, space, split)
    if stopped:
        return _no_labels(stopped)
    scored = _joined(ctx, pairs, space, split)
    truncated = sum(int(shard.facts["truncated"]) for shard in ctx.lists["shards"])
    return _finish(ctx, scored, truncated, space, split)


def _asked(ctx: Context, split: str, space: str) -> pl.DataFrame:
    """Return the pairs to score: given ones, or the snapshot's judged ones of ``split``.

    Pairs of the tasks besides relevance carry their texts, and are the snapshot's own.
    """
    import polars as pl

    from csrm_tasks.llm.data import load_pairs
    from csrm_tasks.llm.prompt.prompts import TASK_SPACES
    from csrm_tasks.llm.task_data import load_task_pairs

    if space in TASK_SPACES:
        if "pairs" in ctx.inputs or not split:
            raise ConfigError(f"space {space}: give a split; its pairs are those of the snapshot")
        return load_task_pairs(ctx.input("snapshot").path).filter(task=space, split=split)
    if ("pairs" in ctx.inputs) == bool(split):
        raise ConfigError("score pairs of either input 'pairs' or parameter 'split', not both")
    if split:
        return load_pairs(ctx.input("snapshot").path, split)
    given = ctx.input("pairs").file("pairs.parquet")
    return pl.read_parquet(given, columns=["query_id", "product_id", "locale"])


def _score(ctx: Context, pairs: pl.DataFrame, space: str, split: str) -> tuple[pl.DataFrame, int]:
    """Return ``pairs`` with their probabilities, and how many prompts were cut."""
    import torch

    from csrm_tasks.llm.data import space_named
    from csrm_tasks.llm.prompt.prompts import TASK_SPACES
    from csrm_tasks.llm.scoring.scoring import RelevanceScorer
    from csrm_tasks.llm.task_data import TaskTexts

    torch.set_num_threads(ctx.settings.threads)
    scorer = RelevanceScorer.load(ctx.input("llm").path)
    if space in TASK_SPACES:
        return scorer.score(TASK_SPACES[space], TaskTexts(space), pairs), scorer.encoder.truncated
    fields = scorer.fields(ctx.input("snapshot").path, _rqa(ctx))
    scored = scorer.score(space_named(space), fields, pairs, calibrated=split != "train")
    return _as_taught(ctx, scored), scorer.encoder.truncated


def _as_taught(ctx: Context, scored: pl.DataFrame) -> pl.DataFrame:
    """Return what the chosen teacher says of pairs that the LLM has scored (A50)."""
    if "teacher" not in ctx.inputs:
        return scored
    from csrm_tasks.teacher.applying import stacked

    return stacked(ctx.input("teacher").path, ctx.input("snapshot").path, scored)


def _rqa(ctx: Context) -> Path | None:
    artifact = ctx.inputs.get("rqa")
    return None if artifact is None else artifact.path


def _finish(ctx: Context, scored: pl.DataFrame, truncated: int, space: str, split: str) -> Metadata:
    """Write what was scored, with its agreement with people and, of train, as soft labels."""
    facts: Metadata = {"pairs": len(scored), "truncated": truncated}
    if split and space == "relevance":
        facts |= agreement(scored)
    if _relabels(space, split):
        scored, facts = _soft_labels(ctx, scored, facts)
    write_scores(ctx, scored, judged=bool(split))
    return facts


def write_scores(ctx: Context, scored: pl.DataFrame, judged: bool) -> None:
    """Write ``scored.parquet``; of ``judged`` pairs with pair_id and grade."""
    from csrm_tasks.records import PAIRS, SCORED, write_table

    grades = {k: PAIRS[k] for k in ("pair_id", "grade")} if judged else {}
    write_table(scored, grades | SCORED, ctx.out / "scored.parquet")


def _shard_facts(shard: int, of: int, space: str, split: str) -> Metadata:
    return {"shard": shard, "of": of, "space": space, "split": split}


def _joined(ctx: Context, pairs: pl.DataFrame, space: str, split: str) -> pl.DataFrame:
    """Return ``pairs`` with the probabilities that the shards hold, every pair once."""
    import polars as pl

    from csrm_tasks.llm.data import shard_numbers

    shards = ctx.lists["shards"]
    if not shards:
        raise ConfigError("join_shards needs every shard in input 'shards'")
    check_parts(
        shards, all_shards(len(shards), space=space, split=split),
        lambda x: x.was_made_from_all(ctx.inputs),
        "shard {shard} of {of} of these pairs and this model; give every shard of one scoring, in "
        "order",
    )  # fmt: skip
    placed, number = pairs.with_row_index("place"), shard_numbers(pairs, len(shards))
    parts = [_with_scores(placed.filter(number == k), shard) for k, shard in enumerate(shards)]
    return pl.concat(parts).sort("place").drop("place")


def _with_scores(own: pl.DataFrame, shard: Artifact) -> pl.DataFrame:
    """Append the shard's p0, p1, p2 to its pairs, which it must hold once each, in order."""
    import polars as pl

    keys = ["query_id", "product_id", "locale"]
    scored = pl.read_parquet(shard.file("scored.parquet"))
    if not scored.select(keys).equals(own.select(keys)):
        raise DataError(
            f"{shard.ref} holds {len(scored)} pairs, not the {len(own)} of its shard once each; "
            "delete its folder and run score_shard again"
        )
    return own.hstack(scored.select("p0", "p1", "p2"))


def agreement(scored: pl.DataFrame) -> Metadata:
    """Agreement with the human grades, over all and by locale."""
    import polars as pl

    predicted = pl.concat_list("p0", "p1", "p2").list.arg_max()
    right = scored.select("locale", right=predicted == pl.col("grade"))
    by_locale = right.group_by("locale").agg(pl.col("right").mean()).sort("locale")
    return {
        "agreement": right["right"].cast(pl.Float64).sum() / max(1, len(right)),
        "agreement_by_locale": dict(by_locale.iter_rows()),
    }


def _teacher_of(ctx: Context, llm: Artifact) -> Artifact | None:
    """Return the model whose soft labels ``llm`` learnt from, if any."""
    soft = llm.inputs.get("soft")
    return None if soft is None else ctx.store.open(ctx.store.open(soft).inputs["llm"])


def _input_of(ctx: Context, llm: Artifact, name: str) -> Path | None:
    """Return the folder of an input that ``llm`` was trained with, if it had one."""
    ref = llm.inputs.get(name)
    return None if ref is None else ctx.store.open(ref).path


def _relabels(space: str, split: str) -> bool:
    return split == "train" and space == "relevance"


def _no_labels(stopped: str) -> Metadata:
    log.info("no soft labels: %s", stopped)
    return {"stopped": stopped, "pairs": 0}


def _stopped(ctx: Context, space: str, split: str) -> str | None:
    """Say why there are no soft labels, or None: no further round of self-distillation (A17), or a
    teacher that dev refuses, from which towers learn nothing.
    """
    if "pairs" in ctx.inputs and "teacher" in ctx.inputs:
        chosen = ctx.input("teacher").facts
        by_people = chosen["taught_by"] == "labels"
        return f"dev refuses the teacher: {'; '.join(chosen['refused'])}" if by_people else None
    if not _relabels(space, split):
        return None
    teacher = ctx.input("llm")
    before = _teacher_of(ctx, teacher)
    if before is None or "stopped" in teacher.facts:
        reason: str | None = teacher.facts.get("stopped")
        return reason
    now, then = (float(a.facts["dev_micro_f1"]) for a in (teacher, before))
    if now > then:
        return None
    return f"dev micro-F1 {now:.4f} after a round, {then:.4f} before it"


def _soft_labels(
    ctx: Context, scored: pl.DataFrame, facts: Metadata
) -> tuple[pl.DataFrame, Metadata]:
    """Return soft labels, cross-fitted where the teacher knows its labels by heart (A18).

    Writes ``changes.json``: what they say of the human labels.
    """
    import torch

    from csrm_tasks.llm.data import load_fields
    from csrm_tasks.llm.network.identity import own_pretraining, read_card
    from csrm_tasks.llm.training.inputs import FinetuneInputs
    from csrm_tasks.llm.training.rounds import changes, cross_fit
    from csrm_tasks.options import honoured

    limit, fit = ctx.market.llm.distillation.memorised, facts["agreement"]
    memorised = fit >= limit
    log.info(
        "teacher agrees with %.1f %% of the human train labels (limit %.1f %%): %s",
        100 * fit, 100 * limit,
        "memorised, so two halves label each other" if memorised else "in-sample soft labels",
    )  # fmt: skip
    facts |= {"train_fit": fit, "memorised": memorised, "cross_fitted": memorised}
    if memorised:
        torch.set_num_threads(ctx.settings.threads)
        teacher = ctx.input("llm")
        ablation = teacher.inputs.get("ablation")
        decided = None if ablation is None else ctx.store.open(ablation)
        market, unread = honoured(ctx.market, decided, ctx.input("snapshot"))
        given = FinetuneInputs(
            ctx.input("snapshot").path, _rqa(ctx), _input_of(ctx, teacher, "soft"), "fold", 0,
            pretraining=own_pretraining(teacher.path, read_card(teacher.path)),
            negatives=_input_of(ctx, teacher, "negatives"),
            filtered=_input_of(ctx, teacher, "filtered"),
            translated=_input_of(ctx, teacher, "translated"),
        ).leaving_out(unread)  # fmt: skip
        scored, folds = cross_fit(market, given, ctx.work)
        facts |= folds | agreement(scored)
    fields = load_fields(ctx.input("snapshot").path, _rqa(ctx))
    about = {"agreement": facts["agreement"], "cross_fitted": memorised} | changes(scored, fields)
    write_json(ctx.out / "changes.json", about, sort_keys=False)
    return scored, facts
