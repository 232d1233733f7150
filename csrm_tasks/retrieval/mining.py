"""Hard negatives for the EBR: titles that BM25 ranks high and that are no pair of the query (A22).

Of each query's ranks ``first`` to ``last`` (the top is left alone: it holds right answers that
nobody has scored), the best ``per_query`` titles stay that are

- no pair of the query, which the teacher has scored;
- not nearly one of its pairs: equal in at least 0.8 of their words (as RQA tells copies apart),
  such a title would be a false negative;
- still in the catalogue.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl

from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.retrieval.bm25 import Bm25Index, Hits
from csrm_tasks.retrieval.pairs import LocalePairs, Rows, TrainingPairs
from csrm_tasks.retrieval.rqa import NEAR, jaccard
from csrm_tasks.sections import Mining
from csrm_tasks.text import normalised

log = logging.getLogger("csrm")

CHUNK = 1024  # queries asked at once


@dataclass
class Counts:
    """What became of the ranks looked at; queries are those that have pairs."""

    queries: int = 0
    short: int = 0  # queries that got fewer than asked for
    mined: int = 0
    gone: int = 0  # of a product that the catalogue has lost
    pairs: int = 0
    copies: int = 0  # nearly a pair's title, or a title mined already

    def __str__(self) -> str:
        """``queries 40, short 2, …``."""
        return ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self))


def mine(
    data: TrainingPairs, products: pl.DataFrame, indexes: Mapping[str, Bm25Index], config: Mining
) -> tuple[TrainingPairs, Counts]:
    """Return ``data`` with hard negatives for every query that has pairs, and their statistics.

    ``indexes`` by locale; ``products`` the snapshot's. Both come out the same on every call.
    """
    mined: Rows = np.full((len(data.queries), config.per_query), -1, np.int64)
    counts = Counts()
    for part in data.locales:
        own = products.filter(pl.col("locale") == part.locale)
        row_of = {data.titles[row]: row for row in part.catalogue.tolist()}
        texts = zip(own["product_id"], normalised(own["title"]), strict=True)
        rows = {product: row_of[text] for product, text in texts}
        for query, hits in _asked(data, part, indexes[part.locale], config):
            survivors = _survivors(
                data, part, query, [rows.get(p, -1) for p, _ in hits], config, counts
            )
            mined[query, : len(survivors)] = survivors
    log.info("hard negatives: %s", counts)
    return replace(data, mined=mined), counts


def _asked(
    data: TrainingPairs, part: LocalePairs, index: Bm25Index, config: Mining
) -> Iterator[tuple[int, Hits]]:
    """Yield every query row that has pairs, with its hits in the window."""
    queries = np.unique(part.query).tolist()
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK]
        answers = index.search([data.queries[q] for q in chunk], config.last)
        for query, hits in zip(chunk, answers, strict=True):
            yield query, hits[config.first :]


def _survivors(
    data: TrainingPairs,
    part: LocalePairs,
    query: int,
    rows: list[int],
    config: Mining,
    counts: Counts,
) -> list[int]:
    """Return the first ``per_query`` title rows that may be negatives of ``query``."""
    known = set(part.titles_of(query).tolist())
    taken = [frozenset(tokens(data.titles[row])) for row in sorted(known)]
    survivors: list[int] = []
    for row in rows:
        if len(survivors) == config.per_query:
            break
        words = frozenset(tokens(data.titles[row])) if row >= 0 else frozenset()
        if row < 0:
            counts.gone += 1
        elif row in known:
            counts.pairs += 1
        elif any(jaccard(words, other) >= NEAR for other in taken):
            counts.copies += 1
        else:
            survivors.append(row)
            taken.append(words)
    counts.queries += 1
    counts.mined += len(survivors)
    counts.short += len(survivors) < config.per_query
    return survivors
