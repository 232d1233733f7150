"""What one step of the EBR's training looks at (A22).

A step draws one locale (in proportion to its pairs), B pairs of it, and a pool of titles of the
same locale, random ones and, where they were mined, hard negatives of the step's own queries. A
title costs several times what a query costs, so pairs are drawn in groups that share one: B/4 at
random, then at most four pairs of each one's title. A loss within queries needs several titles of
one query: then the groups share a query, and a step encodes up to B positives instead of B/4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csrm_tasks.retrieval.pairs import LocalePairs, Mask, Rows, Scores, TrainingPairs

GROUP = 4  # pairs of a title (of a query) in one step, at most


@dataclass(frozen=True)
class Batch:
    """One step's rows: B pairs over Q distinct queries and P distinct titles."""

    queries: Rows  # (Q,) distinct query rows
    titles: Rows  # (P,) distinct title rows: positives and pool
    query_of: Rows  # (B,) into queries
    title_of: Rows  # (B,) into titles
    teacher: Scores  # (Q, P) weight of the pair, NaN where it is none
    weight: Scores  # (B,)

    @property
    def allowed(self) -> Mask:
        """(B, P): may this title be a negative of this pair? No pair of the same query may."""
        allowed: Mask = np.isnan(self.teacher)[self.query_of]
        return allowed


def draw(
    data: TrainingPairs, size: int, pool: int, rng: np.random.Generator, *, by_query: bool = False
) -> Batch:
    """Draw one batch of at most ``size`` pairs and ``pool`` further titles of one locale."""
    share = np.array([len(part.query) for part in data.locales], float)
    part: LocalePairs = data.locales[rng.choice(len(share), p=share / share.sum())]
    seeds = rng.choice(len(part.query), min(-(-size // GROUP), len(part.query)), replace=False)
    pairs = (part.lists if by_query else part.around)(seeds, GROUP, rng)
    queries, query_of = np.unique(part.query[pairs], return_inverse=True)
    hard = _hard(data, queries, pool // 2, rng)
    random = rng.choice(part.catalogue, min(pool - len(hard), len(part.catalogue)), replace=False)
    drawn = np.concatenate([part.title[pairs], random, hard])
    titles, title_of = np.unique(drawn, return_inverse=True)
    teacher = part.teacher(queries, titles, len(data.titles))
    own = title_of[: len(pairs)]
    return Batch(queries, titles, query_of, own, teacher, part.weight[pairs])


def _hard(data: TrainingPairs, queries: Rows, most: int, rng: np.random.Generator) -> Rows:
    """Return at random ``most`` of the titles mined for ``queries``: they cost as any other."""
    if data.mined is None:
        return np.zeros(0, np.int64)
    mined = np.unique(data.mined[queries])
    mined = mined[mined >= 0]
    kept: Rows = rng.choice(mined, most, replace=False) if len(mined) > most else mined
    return kept
