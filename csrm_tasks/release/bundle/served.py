"""The order in which a release answers, for whoever ranks without a server: audits by raters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csrm_tasks.ranking import best_first
from csrm_tasks.release.bundle.scorer import ReleaseScorer, Scored


class ServedOrder:
    """Scores as a release does, with ``rank_score`` by both stages where it has a second one.

    All of the top is re-ranked, as in ``/rank`` where the budget allows.
    """

    def __init__(self, scorer: ReleaseScorer) -> None:
        self._scorer = scorer

    def score(
        self, queries: Sequence[str], products: Sequence[str | None], titles: Sequence[str | None]
    ) -> Scored:
        """Score N pairs as :meth:`ReleaseScorer.score` does; pairs of one query are one search."""
        scored = self._scorer.score(queries, products, titles)
        if self._scorer.second is None:
            return scored
        rank_score = np.zeros_like(scored.rank_score)
        asked = np.array(queries, dtype=object)
        for query in dict.fromkeys(queries):
            at = np.flatnonzero((asked == query) & ~scored.is_defect)
            order = self._search(query, at, products, titles, scored)
            rank_score[order] = 1.0 / np.arange(1, len(order) + 1)
        return scored._replace(rank_score=rank_score)

    def _search(
        self, query: str, at: np.ndarray[tuple[int], np.dtype[np.intp]],
        products: Sequence[str | None], titles: Sequence[str | None], scored: Scored,
    ) -> list[int]:  # fmt: skip
        """Return the rows ``at`` in the order in which they are shown."""
        from csrm_tasks.towers.serving.second_stage import reordered

        second, found = self._scorer.second, self._scorer.products
        assert second is not None
        order = at[best_first(scored.em[at].astype(np.float64))].tolist()
        first = order[: second.top]
        rows = found.rows([products[i] for i in first])
        tokens = self._scorer.title_tokens(found, rows, [titles[i] for i in first])
        return reordered(order, second.score(query, tokens, scored.em[first]).tolist())
