"""Misspelt copies of queries with the pairs and targets of the query that was meant.

A teacher reads past a slip with the help of retrieved titles; the query tower sees the query alone.
So it is shown both spellings (typo-aware training, Zhuang & Zuccon 2021, here with the teacher's
probabilities as targets). A slip is a letter dropped or two neighbours swapped, which every script
knows.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from csrm_tasks.text import normalise
from csrm_tasks.towers.examples import Examples
from csrm_tasks.training.misspelling import SHORTEST, letters, misspelt


def with_typos(
    examples: Examples, share: float, seed: int, barred: Collection[str] = ()
) -> Examples:
    """Add a misspelt copy of about ``share`` of the queries, each with all its pairs.

    A pure function of its arguments. Queries of fewer than ``SHORTEST`` letters get none, and no
    copy is one of the ``barred`` texts: a slip of one query may be a held-out one.
    """
    rng = np.random.default_rng([seed, len(examples.queries)])
    drawn = (rng.random(len(examples.queries)) < share).tolist()
    copies = {
        row: misspelt(text, rng)
        for row, (text, taken) in enumerate(zip(examples.queries, drawn, strict=True))
        if taken and len(letters(text)) >= SHORTEST
    }
    copies = {row: copy for row, copy in copies.items() if normalise(copy) not in barred}
    place = np.full(len(examples.queries), -1, np.int64)
    place[list(copies)] = len(examples.queries) + np.arange(len(copies))
    rows = np.flatnonzero(place[examples.query] >= 0)
    return Examples(
        [*examples.queries, *copies.values()],
        examples.products,
        np.concatenate([examples.query, place[examples.query[rows]]]),
        np.concatenate([examples.product, examples.product[rows]]),
        np.concatenate([examples.exact, examples.exact[rows]]),
        np.concatenate([examples.irrelevant, examples.irrelevant[rows]]),
    )
