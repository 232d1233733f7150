"""Train pairs with a translated query, as rows of the relevance task (A37)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.dataset.splits import held_out_queries
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import DataError
from csrm_tasks.llm.data import Fields, LabelRows
from csrm_tasks.llm.prompt.prompts import QueryFields
from csrm_tasks.records import TRANSLATED, read_table
from csrm_tasks.text import normalised, query_id


def load_translated(snapshot: Path, translated: Path | None) -> pl.DataFrame:
    """Read the TRANSLATED of ``translate_queries``; none where there is no folder.

    Raises :class:`DataError` where one is not of a train pair of this snapshot with its label, or
    where it, or the query it is of, is a dev or gold query in whichever locale: another snapshot's.
    """
    if translated is None:
        return pl.DataFrame(schema=TRANSLATED)
    found = read_table(translated / "translated.parquet", TRANSLATED)
    queries, pairs = table(snapshot, "queries"), table(snapshot, "pairs")
    named = ["pair_id", "query_id", "product_id", "locale", "grade"]
    require_train(found, named, queries, pairs)
    return found


def require_train(
    found: pl.DataFrame, named: Sequence[str], queries: pl.DataFrame, judged: pl.DataFrame,
    also: pl.Series | None = None, noun: str = "",
) -> None:  # fmt: skip
    """Raise :class:`DataError` where a row of ``found`` is no train query's, or a held-out one's.

    ``named``: the columns by which a row is one of the snapshot's train rows of ``judged``;
    ``also``: texts that are dev's or gold's besides those of ``queries``; ``noun``: of the rows.
    """
    held_out = held_out_queries(queries, judged)
    norms = queries.join(held_out, on="query_id", how="semi")["norm"]
    if also is not None:
        norms = pl.concat([norms, normalised(also).alias("norm")])
    allowed = (
        found.with_columns(normalised(found["text"]).alias("norm"))
        .join(judged.filter(split="train"), on=list(named), how="semi")
        .join(held_out, on="query_id", how="anti")
        .filter(~pl.col("norm").is_in(norms.unique().implode()))
    )
    if allowed.height < found.height:
        raise DataError(
            f"translated: {found.height - allowed.height} of {found.height}{noun} are not of this "
            "snapshot's train pairs, or are dev or gold queries of it; run translate_queries on "
            "this snapshot"
        )


def translated_rows(
    fields: Fields, found: pl.DataFrame, rows: LabelRows, weight: float
) -> LabelRows:
    """Return TRANSLATED as copies of the ``rows`` (named by pair_id) whose query is translated.

    Target and weight are the row's, the weight times ``weight``: what a filter has left out does
    not come back, and what it weighs down stays light (A39). A text that is a query of the
    snapshot has that query's fields, with its retrieved titles; another has none of these.
    """
    places = {name: i for i, name in enumerate(rows.names)}
    own = found.filter(pl.col("pair_id").is_in(list(places)))
    at = [places[pair] for pair in own["pair_id"]]
    texts = own.select("to_locale", "text", "brand").iter_rows()
    given = np.ones(len(rows), np.float32) if rows.weights is None else rows.weights
    return LabelRows(
        rows.space,
        [f"translated/{to}/{pair}" for to, pair in own.select("to_locale", "pair_id").iter_rows()],
        [
            fields.queries.get(query_id(locale, text)) or QueryFields(text, brand)
            for locale, text, brand in texts
        ],
        [rows.products[i] for i in at],
        rows.targets[at],
        given[at] * np.float32(weight),
        None if rows.corrected is None else rows.corrected.take(at),
    )
