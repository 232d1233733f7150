"""What a short training of the ablation says of dev, task by task, and which wrong pairs are near.

A label is yes from a threshold on (qc, qi), or the most probable one once the labels are as
frequent as on dev (relevance). An option that adds or takes away labels of one kind moves the
model's share of them, above all in a short training; thresholds mend that for what is served, and
it is not what an option is there for. As both are found on dev (A40), each half of dev is answered
by what the other half has found: so every pair counts, and none has chosen what it is judged by.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.dataset.tables import table
from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.llm.task_data import HALVES, halves, load_task_pairs
from csrm_tasks.llm.training.task_judge import SCORES
from csrm_tasks.records import Grade, Schema
from csrm_tasks.retrieval.rqa import jaccard
from csrm_tasks.towers.thresholds import choose_threshold

FILE = "dev_answers.parquet"
ANSWERS: Schema = {
    "task": pl.String,
    "pair_id": pl.String,
    "query_id": pl.String,
    "locale": pl.String,
    "grade": pl.Int8,
    "said": pl.Int8,  # the label that the model gives
}


def answers_of(model: Path, snapshot: Path) -> pl.DataFrame:
    """Return ANSWERS of a trained LLM's folder, sorted by task and pair."""
    parts = [pl.DataFrame(schema=ANSWERS)]
    if (model / "dev_scores.parquet").is_file():
        known = table(snapshot, "pairs").select("pair_id", "query_id", "locale")
        texts = table(snapshot, "queries").select("query_id", "norm").unique("query_id")
        scores = pl.read_parquet(model / "dev_scores.parquet").join(known, on="pair_id")
        scores = scores.join(texts, on="query_id", maintain_order="left")
        scores = scores.with_columns(halves(scores["norm"]), task=pl.lit("relevance"))
        parts.append(_typed(scores.with_columns(at_the_other_halfs_shares(scores))))
    if (model / SCORES).is_file():
        for _, own in pl.read_parquet(model / SCORES).group_by("task", maintain_order=True):
            parts.append(_typed(own.with_columns(at_the_other_halfs_threshold(own))))
    return pl.concat(parts).sort("task", "pair_id")


def _typed(answers: pl.DataFrame) -> pl.DataFrame:
    return answers.select(pl.col(c).cast(t) for c, t in ANSWERS.items())


def at_the_other_halfs_shares(scored: pl.DataFrame) -> pl.Series:
    """Return ``said`` of relevance's dev pairs with half, grade, p0, p1 and p2, aligned.

    A label's probabilities are divided by their mean on the other half and multiplied by the
    label's share there (one step of Saerens, Latinne and Decaestecker, 2002); of equals the
    earliest label is taken. A half that stands alone is answered as it is.
    """
    p = scored.select("p0", "p1", "p2").to_numpy().astype(np.float64)  # (N, 3)
    grade, half = scored["grade"].cast(pl.Int64).to_numpy(), scored["half"].to_numpy()
    said = p.argmax(1)
    for own in HALVES:
        other = half != own
        if other.any():
            shares = np.bincount(grade[other], minlength=p.shape[1]) / other.sum()
            weights = shares / np.maximum(p[other].mean(0), np.finfo(np.float64).tiny)
            said[half == own] = (p[half == own] * weights).argmax(1)
    return pl.Series("said", said, dtype=pl.Int8)


def at_the_other_halfs_threshold(scored: pl.DataFrame) -> pl.Series:
    """Return ``said`` (1 yes) of one task's dev pairs with task, half, grade and p, aligned.

    A half from which nothing can be chosen, having no yes, leaves the other one at 0.5.
    """
    limits = {}
    for half, other in zip(HALVES, reversed(HALVES), strict=True):
        chosen = scored.filter(half=other)
        is_yes = (chosen["grade"] == 1).to_numpy()
        scores = chosen["p"].to_numpy().astype(np.float64)
        task = str(scored["task"][0])
        limits[half] = choose_threshold(task, scores, is_yes, None).value if is_yes.any() else 0.5
    at = scored["half"].replace_strict(limits, return_dtype=pl.Float64)
    return (scored["p"].cast(pl.Float64) >= at).cast(pl.Int8).alias("said")


def hard_pairs(snapshot: Path) -> pl.DataFrame:
    """Return (task, pair_id) of the wrong dev pairs that are near a right one of their query.

    Near are those whose title or category path shares more words (Jaccard) with one of the right
    items of the query than half of the task's wrong pairs do. Items are compared with items, so
    the query's language does not matter, and no model is asked. A query of which dev knows nothing
    right has none.
    """
    found = [pl.DataFrame(schema={"task": pl.String, "pair_id": pl.String})]
    for (task,), own in _dev_items(snapshot).group_by("task", maintain_order=True):
        right: dict[str, list[frozenset[str]]] = {}
        for query, item in own.filter("right").select("query_id", "item").iter_rows():
            right.setdefault(query, []).append(frozenset(tokens(item)))
        wrong = own.filter("wrong", pl.col("query_id").is_in(list(right)))
        likeness = [
            max(jaccard(frozenset(tokens(item)), other) for other in right[query])
            for query, item in wrong.select("query_id", "item").iter_rows()
        ]
        if likeness:
            near = np.asarray(likeness) > np.median(likeness)
            found.append(
                wrong.filter(pl.Series(near)).select(pl.lit(task).alias("task"), "pair_id")
            )
    return pl.concat(found)


def _dev_items(snapshot: Path) -> pl.DataFrame:
    """Return of every dev pair task, pair_id, query_id, the item's text, and what is true of it."""
    keys = ["task", "pair_id", "query_id", "item", "right", "wrong"]
    titles = table(snapshot, "products").select("product_id", "locale", item="title")
    relevance = table(snapshot, "pairs").filter(split="dev").join(
        titles, on=["product_id", "locale"]
    )  # fmt: skip
    told = relevance.with_columns(
        task=pl.lit("relevance"), right=pl.col("grade") == int(Grade.EXACT),
        wrong=pl.col("grade") == int(Grade.IRRELEVANT),
    )  # fmt: skip
    others = load_task_pairs(snapshot).filter(split="dev")
    others = others.with_columns(right=pl.col("grade") == 1, wrong=pl.col("grade") == 0)
    return pl.concat([told.select(keys), others.select(keys)]).sort("task", "pair_id")
