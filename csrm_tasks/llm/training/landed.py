"""Texts of a market's landed files, to know how long its prompts are before anything has run."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from csrm_tasks.ingest.contract.contracts import contract_of
from csrm_tasks.ingest.reading.landing import NAME
from csrm_tasks.ingest.reading.readers import read_batches
from csrm_tasks.ingest.reading.records import UnreadableError
from csrm_tasks.lexical.analyser import truncate_title
from csrm_tasks.llm.prompt.prompts import ProductFields, QueryFields
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections.data import Columns

MOST = 400  # rows of each kind


def landed_texts(
    market: MarketConfig, landing: Path
) -> tuple[list[QueryFields], list[ProductFields]]:
    """Return some queries, with as many retrieved titles as the LLM reads, and some products.

    Nothing is judged: a row is good enough to be counted. Both are empty where nothing has landed.
    """
    names = market.ingest.columns
    products = _rows(landing / market.market, "catalogue", names)
    queries = _rows(landing / market.market, "labels", names)["query"].unique().sort()
    titles = products["title"].to_list()
    rqa = market.retrieval.rqa
    cut = [truncate_title(t, rqa.title_tokens) for t in titles]
    found = [
        QueryFields(query, titles=tuple(cut[i * rqa.k % max(1, len(cut)) :][: rqa.k]))
        for i, query in enumerate(queries.to_list())
    ]
    fields = products.select("title", "brand", "category", "description").iter_rows()
    return found, [ProductFields(*row) for row in fields]


def _rows(folder: Path, kind: str, names: Columns) -> pl.DataFrame:
    """Return rows from the first batch of each file of a kind, evenly, as text without nulls."""
    contract = contract_of(kind, names)
    schema = {c.name: pl.String for c in contract.columns}
    tables = [pl.DataFrame(schema=schema)]
    for path in sorted(folder.glob("*-*-*/*/*")):
        match = NAME.fullmatch(path.name)
        if match is None or match["kind"] != kind:
            continue
        try:
            batch = next(
                read_batches(path, match["format"], match["compression"] or "", contract), None
            )
        except UnreadableError:  # the night will say so
            continue
        if batch is not None:
            tables.append(batch.frame.select(pl.col(schema).cast(pl.String)))
    found = pl.concat(tables).fill_null("")
    return found.gather_every(max(1, len(found) // MOST)).head(MOST)
