"""Rows of the relevance task that nobody judged as they stand: negatives, misspelt queries (A38).

Both are added to what people judged of train queries, and tell by their names where they are from.
Dev, gold and soft labels know nothing of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.splits import held_out_queries
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import DataError
from csrm_tasks.llm.corrected import as_they_are, one_after_the_other
from csrm_tasks.llm.data import Fields, LabelRows
from csrm_tasks.llm.prompt.prompts import RELEVANCE, QueryFields
from csrm_tasks.llm.soft_targets import one_hot
from csrm_tasks.records import NEGATIVES, Grade, read_table
from csrm_tasks.text import normalise
from csrm_tasks.training.misspelling import slip


def load_negatives(snapshot: Path, negatives: Path | None) -> pl.DataFrame:
    """Read the NEGATIVES of ``mine_negatives``; none where there is no folder.

    Raises :class:`DataError` where one is a judged pair, or of a query that is none of this
    snapshot's train queries or whose text is a dev or gold one: they are another snapshot's.
    """
    if negatives is None:
        return pl.DataFrame(schema=NEGATIVES)
    found = read_table(negatives / "negatives.parquet", NEGATIVES)
    pairs = table(snapshot, "pairs")
    allowed = (
        found.join(pairs.filter(split="train"), on="query_id", how="semi")
        .join(held_out_queries(table(snapshot, "queries"), pairs), on="query_id", how="anti")
        .join(pairs, on=["query_id", "product_id"], how="anti")
    )
    if allowed.height < found.height:
        raise DataError(
            f"negatives: {found.height - allowed.height} of {found.height} are judged pairs of "
            "this snapshot, or not of its train queries; run mine_negatives on this snapshot"
        )
    return found


def negative_rows(fields: Fields, negatives: pl.DataFrame, weight: float) -> LabelRows:
    """Return NEGATIVES as irrelevant, each of loss weight ``weight``; named kind/channel/pair."""
    grades = np.full(len(negatives), int(Grade.IRRELEVANT), np.int64)
    names = [
        f"{kind}/{channel}/{pair}"
        for kind, channel, pair in negatives.select("kind", "channel", "pair_id").iter_rows()
    ]
    weights = np.full(len(negatives), weight, np.float32)
    targets = one_hot(grades, len(RELEVANCE.tokens))
    return LabelRows(RELEVANCE, names, *fields.of(negatives), targets, weights)


def misspelt_rows(
    fields: Fields, pairs: pl.DataFrame, rows: LabelRows, share: float, seed: int
) -> LabelRows:
    """Return copies of the ``rows`` (of ``pairs``) of about ``share`` of the queries, misspelt.

    Targets and weights are kept. A copy has no retrieved titles, for a search of the slip might not
    have found them, no translation, for no table has the slip (A52), and the matched brand only
    where the slip left it whole. No copy is a query of the snapshot, in whichever locale: held-out
    ones among them, and others that mean something else.
    A query's slip depends on the seed and the query alone.
    """
    barred = {normalise(query.query) for query in fields.queries.values()} if share else set()
    copies: dict[str, QueryFields] = {}
    for query_id in pairs["query_id"].unique() if share else ():
        rng = np.random.default_rng(int(text_digest(str(seed), "misspelt", query_id), 16))
        query = fields.queries[query_id]
        text = slip(query.query, rng) if rng.random() < share else None
        if text is not None and normalise(text) not in barred:
            brand = query.brand if normalise(query.brand) in normalise(text) else ""
            copies[query_id] = replace(query, query=text, brand=brand, titles=(), pivot="")
    ids = pairs["query_id"].to_list()
    taken = [i for i, query_id in enumerate(ids) if query_id in copies]
    return LabelRows(
        rows.space,
        [f"misspelt/{rows.names[i]}" for i in taken],
        [copies[ids[i]] for i in taken],
        [rows.products[i] for i in taken],
        rows.targets[taken],
        None if rows.weights is None else rows.weights[taken],
        None if rows.corrected is None else rows.corrected.take(taken),
    )


def joined(*parts: LabelRows) -> LabelRows:
    """Return rows of one label space, one after the other."""
    weights = [np.ones(len(p), np.float32) if p.weights is None else p.weights for p in parts]
    corrected = [p.corrected or as_they_are(p.targets) for p in parts]
    return LabelRows(
        parts[0].space,
        [name for p in parts for name in p.names],
        [query for p in parts for query in p.queries],
        [product for p in parts for product in p.products],
        np.concatenate([p.targets for p in parts]),
        None if all(p.weights is None for p in parts) else np.concatenate(weights),
        None if all(p.corrected is None for p in parts) else one_after_the_other(corrected),
    )
