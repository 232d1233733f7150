"""Rows of qc and qi that nobody judged as they stand: translated queries (A37), negatives (A38).

A train query for which ``translate_queries`` has a translation is learnt in it by every task that
judged it. A negative that ``mine_negatives`` has found for the relevance labels is a "no" of qi;
where no relevance is learnt, ``mine_task_negatives`` finds them for either task. Dev and gold know
nothing of them.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from csrm_tasks.dataset.tables import judged_anywhere, table
from csrm_tasks.errors import DataError
from csrm_tasks.llm.data import Fields
from csrm_tasks.llm.prompt.prompts import QI
from csrm_tasks.llm.task_data import held_out_task_texts, load_task_pairs
from csrm_tasks.llm.translated import require_train
from csrm_tasks.records import TASK_NEGATIVES, TASK_PAIRS, Schema, read_table
from csrm_tasks.text import normalised

WEIGHTED = {**TASK_PAIRS, "weight": pl.Float32}


def with_translated(
    train: pl.DataFrame, held_out: pl.Series, found: pl.DataFrame, weight: float
) -> pl.DataFrame:
    """Return task pairs to learn with copies of them whose query is translated (A37).

    ``train``: TASK_PAIRS and perhaps ``weight``; ``held_out``: query texts of dev and gold, of any
    task, which no copy has; ``found``: query_id, to_locale, text. A copy keeps item and label, and
    its weight is the pair's times ``weight``: what a filter has left out does not come back. Of
    copies that are one question the first stands; where their labels differ, none does.
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


def load_texts(snapshot: Path, translated: Path | None) -> pl.DataFrame:
    """Read query_id, to_locale and text of what ``translate_queries`` has kept; none of no folder.

    Raises :class:`DataError` where one is not of a train query of this snapshot, or where it, or
    the query, is a dev or gold one in whichever task and locale: another snapshot's.
    """
    columns = ["query_id", "to_locale", "text"]
    if translated is None:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    schema: Schema = {name: pl.String for name in (*columns, "reason")}
    kept = read_table(translated / "decisions.parquet", schema).filter(reason="").select(columns)
    judged, queries = judged_anywhere(snapshot), table(snapshot, "queries")
    also = held_out_task_texts(snapshot)
    require_train(kept, ["query_id"], queries, judged, also, noun=" queries")
    return kept.unique()


def translated_counts(snapshot: Path, decided: pl.DataFrame) -> dict[str, int]:
    """Return by task how many train pairs are learnt with a translated query.

    ``decided``: query_id, to_locale, text and reason ("" where it is kept).
    """
    train = load_task_pairs(snapshot).filter(split="train")
    found = decided.filter(reason="").select("query_id", "to_locale", "text")
    more = with_translated(train, held_out_task_texts(snapshot), found, 1.0)
    grown = more.filter(pl.col("pair_id").str.starts_with("translated/"))
    return {task: grown.filter(task=task).height for task in train["task"].unique().sort()}


def load_task_negatives(snapshot: Path, negatives: Path | None) -> pl.DataFrame:
    """Read the TASK_NEGATIVES of ``mine_task_negatives``; none where there is no folder.

    Raises :class:`DataError` where one is a judged pair, or of a query that is none of this
    snapshot's train queries of the task or is a dev or gold one: they are another snapshot's.
    """
    if negatives is None:
        return pl.DataFrame(schema=TASK_NEGATIVES)
    found = read_table(negatives / "task_negatives.parquet", TASK_NEGATIVES)
    judged = load_task_pairs(snapshot)
    keys = ["task", "query_id"]
    norms = normalised(held_out_task_texts(snapshot)).unique()
    allowed = (
        found.with_columns(normalised(found["query"]).alias("norm"))
        .filter(~pl.col("norm").is_in(norms.implode()))
        .join(judged.filter(split="train"), on=keys, how="semi")
        .join(judged, on=[*keys, "product_id"], how="anti")
    )
    if allowed.height < found.height:
        raise DataError(
            f"negatives: {found.height - allowed.height} of {found.height} are judged pairs of "
            "this snapshot, or not of its train queries; run mine_task_negatives on this snapshot"
        )
    return found


def with_task_negatives(train: pl.DataFrame, found: pl.DataFrame, weight: float) -> pl.DataFrame:
    """Return task pairs to learn with TASK_NEGATIVES ``found`` as pairs whose label is no."""
    named = found.with_columns(
        pair_id=pl.format("{}/{}/{}", "kind", "channel", "pair_id"), grade=pl.lit(0),
        split=pl.lit("train"), raters=pl.lit(0), agree=pl.lit(0), weight=pl.lit(weight),
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
