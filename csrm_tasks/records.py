"""The tables that rooms hand to each other, each column declared once as a polars schema.

Raw deliveries (what a market lands) are declared in :mod:`csrm_tasks.ingest.contract.contracts`;
these are the clean tables of a snapshot and of the artifacts after it. ``query_id`` is
``text_digest(locale, normalised query)`` and ``pair_id`` is ``text_digest(query_id, product_id)``.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

import polars as pl

from csrm_tasks.errors import DataError

Schema = dict[str, pl.DataType | type[pl.DataType]]


class Grade(IntEnum):
    """Relevance grade; the value is the label token (paper 1, section 2)."""

    IRRELEVANT = 0
    SUBSTITUTE = 1
    EXACT = 2


PRODUCTS: Schema = {
    "product_id": pl.String,
    "locale": pl.String,
    "title": pl.String,
    "brand": pl.String,  # "" when the merchant gave none
    "category": pl.String,  # path, levels joined by " > "
    "description": pl.String,
}
QUERIES: Schema = {
    "query_id": pl.String,
    "locale": pl.String,
    "query": pl.String,  # as most often typed
    "norm": pl.String,  # normalised (csrm_tasks.text.normalise)
    "brand": pl.String,  # matched by the query-brand dictionary, "" when none
    "origin": pl.String,  # label | log | translated | derived (A21) | distilled (A31)
    "impressions": pl.Int64,
}
PAIRS: Schema = {
    "pair_id": pl.String,
    "query_id": pl.String,
    "product_id": pl.String,
    "locale": pl.String,
    "grade": pl.Int8,
    "split": pl.String,  # train | dev | gold, grouped by query (A10)
    "raters": pl.Int32,
    "agree": pl.Int32,
}
TASK_PAIRS: Schema = {  # judged pairs of the tasks besides relevance, with their texts
    "task": pl.String,  # qc | qi
    **PAIRS,  # grade: 1 yes, 0 no; product_id: of qc the digest of the category's path
    "query": pl.String,  # as most often typed
    "item": pl.String,  # of qc the category's path, of qi the product's title
}
VOTES: Schema = {  # what each rater says of the judged pairs of train and dev (A49); never of gold
    "pair_id": pl.String,
    "locale": pl.String,
    "rater": pl.String,  # "" for any of the nameless
    "grade": pl.Int8,
}
TRANSLATIONS: Schema = {
    "kind": pl.String,  # category | brand | title | query (A7)
    "source_text": pl.String,
    "target_text": pl.String,
    "split": pl.String,  # train | dev
    "source_locale": pl.String,  # the language of source_text
    "target_locale": pl.String,
}
CONVERSIONS: Schema = {  # examples of the CVR task (A8)
    "query_id": pl.String,
    "product_id": pl.String,
    "locale": pl.String,
    "label": pl.Int8,  # 1 converted, 0 not
}
BEHAVIOUR: Schema = {  # local behaviour, summed over the snapshot's window
    "query_id": pl.String,
    "product_id": pl.String,
    "locale": pl.String,
    "impressions": pl.Int64,
    "clicks": pl.Int64,
    "carts": pl.Int64,
    "purchases": pl.Int64,
    "weight": pl.Float64,  # position-debiased strength of the pair, in (0, 1]
}
RQA: Schema = {
    "query_id": pl.String,
    "titles": pl.List(pl.String),  # at most k, in score order, already cut (A24)
    "product_ids": pl.List(pl.String),
    "scores": pl.List(pl.Float32),
}
SCORED: Schema = {  # query-product pairs with probabilities of one label space
    "query_id": pl.String,
    "product_id": pl.String,
    "locale": pl.String,
    "p0": pl.Float32,
    "p1": pl.Float32,
    "p2": pl.Float32,  # 0 for a label space of two
}
WEIGHTS: Schema = {  # how much each train pair counts in a training
    "pair_id": pl.String,
    "weight": pl.Float32,  # 0 leaves it out
}
DECISIONS: Schema = {  # what the self-validation filter says of every train pair (A39)
    **WEIGHTS,
    "query_id": pl.String,
    "product_id": pl.String,
    "locale": pl.String,
    "grade": pl.Int8,
    "raters": pl.Int32,
    "agree": pl.Int32,
    "fold": pl.Int64,
    "p0": pl.Float32,  # out of fold
    "p1": pl.Float32,
    "p2": pl.Float32,
    "p_label": pl.Float32,  # of the label that was given
    "predicted": pl.Int8,
    "action": pl.String,  # keep | remove | down_weight | review
    "reason": pl.String,  # "" where it is kept
}

NEGATIVES: Schema = {  # pairs that nobody judged, taken as irrelevant (A38), and where from
    "pair_id": pl.String,
    "query_id": pl.String,
    "product_id": pl.String,
    "locale": pl.String,
    "kind": pl.String,  # easy | ranked | mined
    "channel": pl.String,  # random | bm25 | ebr | category
    "rank": pl.Int32,  # from 0 in the channel; null for random
    "p0": pl.Float32,  # how surely the current LLM calls it irrelevant; null where none was asked
}
TASK_NEGATIVES: Schema = {  # likewise of qc and qi, taken as a no, with their texts
    "task": pl.String,  # qc | qi
    "pair_id": pl.String,
    "query_id": pl.String,
    "product_id": pl.String,  # of qc the digest of the category's path
    "locale": pl.String,
    "query": pl.String,
    "item": pl.String,
    "kind": pl.String,  # easy | ranked
    "channel": pl.String,  # random | items: near a right item
    "rank": pl.Int32,  # from 0 among the neighbours of a right item; null for random
    "p0": pl.Float32,  # how surely the current LLM says no; null where none was asked
}
TRANSLATED: Schema = {  # judged train pairs with a translated query (A37), and where from
    "pair_id": pl.String,  # of the judged pair, whose label and product text stand
    "query_id": pl.String,  # of the judged pair
    "product_id": pl.String,
    "locale": pl.String,  # of the judged pair
    "grade": pl.Int8,
    "query": pl.String,  # as people typed it
    "to_locale": pl.String,
    "text": pl.String,  # the translation
    "brand": pl.String,  # that it names by the dictionary of to_locale, "" when none
    "translator": pl.String,  # its identity
    "numbers": pl.String,  # in both texts, joined by spaces
    "back": pl.String,  # translated back
    "likeness": pl.Float32,  # of the query and its translation back
}


def write_table(frame: pl.DataFrame, schema: Schema, path: Path) -> None:
    """Write ``frame`` as Parquet with exactly ``schema``; raises :class:`DataError` otherwise."""
    missing = [c for c in schema if c not in frame.columns]
    if missing:
        raise DataError(f"{path.name}: column {missing[0]!r} is missing")
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.select([pl.col(c).cast(t) for c, t in schema.items()]).write_parquet(path)


def read_table(path: Path, schema: Schema) -> pl.DataFrame:
    """Read Parquet and check it against ``schema``; raises :class:`DataError` naming the column."""
    frame = pl.read_parquet(path)
    for column, kind in schema.items():
        if column not in frame.columns:
            raise DataError(f"{path}: column {column!r} is missing")
        if frame.schema[column] != kind:
            raise DataError(f"{path}: column {column!r} is {frame.schema[column]}, not {kind}")
    return frame.select(list(schema))
