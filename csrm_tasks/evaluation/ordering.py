"""In what order a search shows judged products: the places, and how much of the order is right."""

from __future__ import annotations

import numpy as np

from csrm_tasks.evaluation import metrics
from csrm_tasks.evaluation.metrics import Floats, Ints
from csrm_tasks.evaluation.slices import Mask
from csrm_tasks.ranking import best_first, places


def places_after(query: Ints, first: Floats, second: Floats, defect: Mask, top: int) -> Ints:
    """Return the place (N,), from 0, of each judged product in its search after the second stage.

    ``query`` (N,) numbers the searches, ``first`` (N,) is the first stage's EM probability, by
    which it ranks, each ``defect`` behind all others. Of the others, the first ``top`` are ranked
    by ``second``, ties as the first stage has them; all else keeps its place. Where ``top`` is 0
    these are the first stage's places.
    """
    order = best_first(first - 2.0 * defect, query)
    shown = order[~defect[order]]
    changing = shown[places(query[shown]) < top]
    again = best_first(second[changing], query[changing])
    position = np.empty(len(query), np.int64)
    position[order] = places(query[order])
    # Who changes takes, in the new order, the places that these had: the first of its search.
    found = position.copy()
    found[changing[again]] = position[changing]
    return found


def places_of(query: Ints, score: Floats) -> Ints:
    """Return the place (N,), from 0, of each product in its search by falling ``score`` (N,)."""
    order = best_first(score, query)
    found = np.empty(len(query), np.int64)
    found[order] = places(query[order])
    return found


def ordered_pairs(query: Ints, place: Ints, grade: Ints, queries: int) -> Floats:
    """Count pairs of products of one search whose grades differ: (Q, 2) of right order, and all.

    The one of the higher grade has the lower ``place`` (N,). The share of both is the probability
    that of two such products the better one stands first.
    """
    counts = np.zeros((queries, 2))
    for q in np.unique(query):
        rows = np.flatnonzero(query == q)
        better = grade[rows][:, None] > grade[rows][None, :]
        before = place[rows][:, None] < place[rows][None, :]
        counts[q] = (better & before).sum(), better.sum()
    return counts


def first_hits(query: Ints, place: Ints, grade: Ints, queries: int) -> Floats:
    """Return EM@1 of each search as (Q, 2) of hits and searches (A43)."""
    hits, _ = metrics.top_hits(query, -place.astype(np.float64), grade, queries)
    return np.stack([hits, np.ones(queries)], 1)
