"""Rows of qc and qi that nobody judged as they stand: translated queries (A37), negatives (A38).

They are made of what ``translate_queries`` and ``mine_negatives`` have found for the relevance
labels: a train query that has a translation is learnt in it by every task that judged it, and a
negative is a "no" of qi. Dev and gold know nothing of them.
"""

from __future__ import annotations

import polars as pl

from csrm_tasks.llm.data import Fields
from csrm_tasks.llm.prompt.prompts import QI
from csrm_tasks.records import TASK_PAIRS
from csrm_tasks.text import normalised

WEIGHTED = {**TASK_PAIRS, "weight": pl.Float32}


def with_translated(
    train: pl.DataFrame, held_out: pl.Series, found: pl.DataFrame, weight: float
) -> pl.DataFrame:
    """Return task pairs to learn with copies of them whose query is translated (A37).

    ``train``: TASK_PAIRS and perhaps ``weight``; ``held_out``: query texts of dev and gold, of any
    task, which no copy has; ``found``: TRANSLATED. A copy keeps item and label, and its weight is
    the pair's times ``weight``: what a filter has left out does not come back. Of copies that are
    one question the first stands; where their labels differ, none does.
    """
    texts = found.select("query_id", "to_locale", "text").unique()
    copies = _weighted(train).join(texts, on="query_id").sort("task", "to_locale", "pair_id")
    copies = copies.with_columns(normalised(copies["text"]).alias("norm"))
    asked = ["task", "to_locale", "norm", "item"]
    copies = copies.filter(
        ~pl.col("norm").is_in(normalised(held_out).unique().implode())
        & (pl.col("grade").n_unique().over(asked) == 1)
        & (pl.col("pair_id") == pl.col("pair_id").first().over(asked))
    )
    named = copies.with_columns(
        pair_id=pl.format("translated/{}/{}", "to_locale", "pair_id"),
        locale="to_locale", query="text", weight=pl.col("weight") * weight,
    )  # fmt: skip
    return _with(train, named)


def with_negatives(
    train: pl.DataFrame, fields: Fields, found: pl.DataFrame, weight: float
) -> pl.DataFrame:
    """Return task pairs to learn with the NEGATIVES ``found`` as pairs of qi whose label is no.

    ``train``: TASK_PAIRS and perhaps ``weight``. A query that qi has not judged gets none.
    """
    judged = train.filter(task=QI.name)
    drawn = found.join(judged, on="query_id", how="semi", maintain_order="left")
    queries, products = fields.of(drawn)
    named = drawn.with_columns(
        pl.Series("query", [q.query for q in queries], dtype=pl.String),
        pl.Series("item", [p.title for p in products], dtype=pl.String),
        pair_id=pl.format("{}/{}/{}", "kind", "channel", "pair_id"),
        task=pl.lit(QI.name), grade=pl.lit(0), split=pl.lit("train"), raters=pl.lit(0),
        agree=pl.lit(0), weight=pl.lit(weight),
    )  # fmt: skip
    return _with(train, named)


def _with(train: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame:
    """Put ``added`` behind ``train``, which stays as it is where there is nothing to add."""
    if added.is_empty():
        return train
    rows = added.select(pl.col(c).cast(t) for c, t in WEIGHTED.items())
    return pl.concat([_weighted(train), rows]).sort("task", maintain_order=True)


def _weighted(train: pl.DataFrame) -> pl.DataFrame:
    known = train if "weight" in train.columns else train.with_columns(weight=pl.lit(1.0))
    return known.select(pl.col(c).cast(t) for c, t in WEIGHTED.items())
