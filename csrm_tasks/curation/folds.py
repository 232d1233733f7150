"""Out-of-fold probabilities of the train pairs: each fold judged by a model of the others (A39).

A fold holds whole query texts: a text that was judged in several locales is in one fold, as it is
in one split (A10), so no model has seen any label of a query that it judges. Dev pairs are in folds
as well and are judged like train pairs, so that what is found on dev holds for these; gold is not
read.

Judged are the pairs of relevance, of which those of qi are read; in a market that learns no
relevance those of qc and qi, each task by itself, with p(no), p(yes) and 0.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.dataset.sides import text_ids
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.baselines import CharacterModel, Texts, texts_of
from csrm_tasks.llm.prompt.prompts import RELEVANCE, TASK_SPACES
from csrm_tasks.llm.scoring.probabilities import with_probabilities
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.llm.task_data import TaskTexts, learns_tasks_alone, load_task_pairs
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.launch import train_anew
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import WEIGHTS, write_table
from csrm_tasks.text import LEVEL_SEPARATOR, normalised

log = logging.getLogger("csrm")

LABELS = 3
LEVELS = 3  # of a category path, by which pairs of query and category are cut into folds


def judged(snapshot: Path, folds: int) -> pl.DataFrame:
    """Return the snapshot's train and dev pairs with ``fold``, from 0: PAIRS and fold.

    And ``task``: relevance, or where nobody learns it the others, with their texts (TASK_PAIRS).
    """
    learnt = pl.col("split").is_in(["train", "dev"])
    if learns_tasks_alone(snapshot):
        tasks = load_task_pairs(snapshot).filter(learnt)
        return tasks.with_columns(fold_numbers(normalised(tasks["query"]), folds))
    pairs = table(snapshot, "pairs").filter(learnt).with_columns(task=pl.lit(RELEVANCE.name))
    queries = table(snapshot, "queries").select("query_id", "norm").unique("query_id")
    named = pairs.join(queries, on="query_id", how="left", maintain_order="left")
    lost = named.filter(pl.col("norm").is_null())
    if lost.height:
        raise DataError(f"pair {lost['pair_id'][0]} names a query that the snapshot does not hold")
    return named.with_columns(fold_numbers(named["norm"], folds)).drop("norm")


def fold_numbers(norms: pl.Series, folds: int) -> pl.Series:
    """Return ``fold`` (0 … folds - 1) of normalised query texts, aligned, by the text alone."""
    numbers = [int(text, 16) % folds for text in text_ids(norms)]
    return pl.Series("fold", numbers, dtype=pl.Int64)


def fold_numbers_of_paths(paths: pl.Series, folds: int, levels: int = LEVELS) -> pl.Series:
    """Return ``fold`` (0 … folds - 1) of category paths, aligned, by their first ``levels`` alone.

    For pairs of a query and a category: what a model has learnt of a branch it must not be asked
    about. Paths that differ in letter case or white space, or only further down, are in one fold;
    so are all empty ones.
    """
    first = paths.str.split(LEVEL_SEPARATOR).list.head(levels).list.join(LEVEL_SEPARATOR)
    return fold_numbers(pl.Series("norm", normalised(first), pl.String), folds)


def held_out_scores(
    market: MarketConfig, snapshot: Path, fold: int, pretraining: Path | None, work: Path
) -> pl.DataFrame:
    """Return fold ``fold``'s pairs with p0, p1, p2 by models that have learnt from the others.

    Raises :class:`DataError` where a label of the fold's train pairs is in none of the others: a
    model cannot say what it has never seen.
    """
    rules = market.filter
    pairs = judged(snapshot, rules.folds)
    inside = pl.col("fold") == fold
    asked, others = pairs.filter(inside), pairs.filter(~inside)
    learnt = others.filter(pl.col("split") == "train")
    for task in asked["task"].unique().sort():
        _check_seen(asked.filter(task=task), learnt.filter(task=task), fold, rules.folds)
    log.info(
        "fold %d of %d: %d pairs, learning from %d", fold, rules.folds, len(asked), len(learnt)
    )
    if rules.scorer == "llm":
        return _by_llm(market, snapshot, asked, learnt, pretraining, work)
    parts = [
        with_probabilities(own, _linear(snapshot, own, others.filter(task=str(task))))
        for (task,), own in asked.group_by("task", maintain_order=True)
    ]
    return pl.concat(parts) if parts else with_probabilities(asked, np.zeros((0, LABELS)))


def _check_seen(asked: pl.DataFrame, learnt: pl.DataFrame, fold: int, folds: int) -> None:
    given = asked.filter(pl.col("split") == "train")["grade"].unique()
    unseen = sorted(set(given) - set(learnt["grade"]))
    if unseen or learnt["grade"].n_unique() < 2:
        task = str(asked["task"][0])
        of = "" if task == RELEVANCE.name else f"task {task}, "
        what = f"label {unseen[0]} in none" if unseen else "fewer than two labels in all"
        raise DataError(
            f"filter: {of}fold {fold} of {folds} has {what} of the other folds' train pairs; "
            "wait for more labels, or set filter.action to null"
        )


def _linear(snapshot: Path, asked: pl.DataFrame, others: pl.DataFrame) -> np.ndarray:
    """Return probabilities (N, 3) of ``asked``; regularisation by the other folds' dev pairs."""
    train, dev = (others.filter(pl.col("split") == s) for s in ("train", "dev"))
    model = CharacterModel().fit(
        _texts(snapshot, train), train["grade"].cast(pl.Int64).to_numpy(),
        _texts(snapshot, dev), dev["grade"].cast(pl.Int64).to_numpy(),
    )  # fmt: skip
    return model.probabilities(_texts(snapshot, asked))


def _texts(snapshot: Path, pairs: pl.DataFrame) -> Texts:
    if "item" not in pairs.columns:
        return texts_of(pairs, table(snapshot, "queries"), table(snapshot, "products"))
    items = pairs["item"].str.to_lowercase().to_list()
    return Texts(normalised(pairs["query"]).to_list(), items, [""] * len(items))


def _by_llm(
    market: MarketConfig,
    snapshot: Path,
    asked: pl.DataFrame,
    learnt: pl.DataFrame,
    pretraining: Path | None,
    work: Path,
) -> pl.DataFrame:
    """Train the LLM without the fold, by the weights that the filter itself works through.

    A killed training goes on from its checkpoint below ``work``.
    """
    folds = market.filter.folds
    steps = market.filter.steps or -(-market.llm.steps * (folds - 1) // folds)
    llm = market.llm.model_copy(update={"steps": steps})
    out, held_out = work / "model", work / "held_out"
    train = pl.concat([asked, learnt]).filter(pl.col("split") == "train")
    kept = train["pair_id"].is_in(learnt["pair_id"].implode()).cast(pl.Float32)
    write_table(train.with_columns(kept.alias("weight")), WEIGHTS, held_out / "decisions.parquet")
    given = FinetuneInputs(
        snapshot, None, None, "filter", 0, pretraining=pretraining, filtered=held_out
    )
    short = market.model_copy(update={"llm": llm})
    train_anew(short, given, out, work, f"filter, model without one of {folds} folds")
    scorer = RelevanceScorer.load(out)
    parts = [
        scorer.score(TASK_SPACES[str(task)], TaskTexts(str(task)), own)
        if task in TASK_SPACES
        else scorer.score(RELEVANCE, scorer.fields(snapshot), own, calibrated=False)
        for (task,), own in asked.group_by("task", maintain_order=True)
    ]
    return pl.concat(parts)
