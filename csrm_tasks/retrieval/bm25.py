"""BM25 that takes additions and deletions, and then equals a rebuild to the last bit (A20).

A commit writes one small segment and marks what it replaces as dead; when there are too many
segments, or too much is dead, they are merged without analysing a text again
(:mod:`csrm_tasks.retrieval.commits`). N, df and the mean length are those of the live documents
when a query is answered, and a score is made of them and of two whole numbers per posting, so the
same documents give the same scores whatever their history. For a query q and a document d::

    score = sum over q's tokens of idf · tf · (k1 + 1) / (tf + k1 · (1 - b + b · |d| / mean))
    idf = ln(1 + (N - df + 0.5) / (df + 0.5))

``rank_bm25.BM25Okapi`` has ``idf = ln`` of the fraction alone, and a quarter of the mean idf where
that is negative (a word in half of all documents); its k1 is 1.5. Why this is no library:
docs/decisions/0008-lexical-search.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from math import log
from pathlib import Path
from threading import local

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.retrieval import commits
from csrm_tasks.retrieval.commits import LiveSegment
from csrm_tasks.retrieval.segment import Rows, Segment, stamp

Hits = list[tuple[str, float]]  # (document id, score), best first
Scores = npt.NDArray[np.float64]
Posting = tuple[Rows, Scores]  # documents, ascending, and what the token adds to each, unweighted

K1, B = 1.2, 0.75


class Bm25Index:
    """A folder of documents, each an id and a text."""

    def __init__(self, folder: Path) -> None:
        """Open the index in ``folder``; raises :class:`ArtifactError` where there is none."""
        self.folder = folder
        self._own = local()  # of each thread: its scorers
        self._read()

    @classmethod
    def build(cls, folder: Path, documents: Iterable[tuple[str, str]]) -> Bm25Index:
        """Make a new index of (id, text) in ``folder``, replacing what was there."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        commits.publish(folder, [])
        index = cls(folder)
        index.add(documents)
        return index

    def __len__(self) -> int:
        """Return how many documents are live."""
        return sum(int(part.alive.sum()) for part in self._parts)

    def add(self, documents: Iterable[tuple[str, str]]) -> None:
        """Add (id, text); a document whose id is already there is replaced. Atomic.

        Of several documents of one id the last stays. Raises :class:`ArtifactError` for an index
        of another analyser.
        """
        self._require_own_tokens()
        fresh = Segment.build(documents)
        self._commit(fresh, fresh.table["id"].to_list())

    def delete(self, identifiers: Iterable[str]) -> None:
        """Delete by id; an id that is not there is no error. Atomic; raises as :meth:`add`."""
        self._require_own_tokens()
        self._commit(None, list(identifiers))

    def sync(self, documents: Iterable[tuple[str, str]]) -> int:
        """Make ``documents`` all there is, analysing new and changed texts only; returns how many.

        Everything is analysed again when the analyser is not the one that the index was built with.
        """
        wanted = dict(documents)
        held = dict(self._stamps())
        known = {} if self._stale else held
        fresh = Segment.build((i, t) for i, t in wanted.items() if known.get(i) != stamp(t))
        self._commit(fresh, [*(held.keys() - wanted.keys()), *fresh.table["id"]])
        return len(fresh)

    def _require_own_tokens(self) -> None:
        if self._stale:
            raise ArtifactError(
                f"{self.folder} was built by another version of the analyser; run build_bm25 again"
            )

    def _stamps(self) -> Iterator[tuple[str, int]]:
        for part in self._parts:
            live = part.segment.table.filter(pl.Series(part.alive))
            yield from live.select("id", "stamp").iter_rows()

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """Return the best ``k`` of each query, ties by id; [] for a query without tokens.

        Raises :class:`ArtifactError` for an index whose tokens are not this code's.
        """
        self._require_own_tokens()
        scorers = self._scorers()
        found = [self._search_one(tokens(query), k, scorers) for query in queries]
        self._own.scorers = (self._parts, scorers)  # not those of a search that failed half-way
        return found

    def _scorers(self) -> list[SegmentScorer]:
        """Return a scorer of each segment, this thread's own."""
        kept: tuple[object, list[SegmentScorer]] | None = self._own.__dict__.pop("scorers", None)
        if kept is not None and kept[0] is self._parts:
            return kept[1]
        return [SegmentScorer(part, impact) for part, impact in self._impacts()]

    def ranked(self, queries: Sequence[str], k: int) -> list[list[str]]:
        """Return the ids alone of :meth:`search`."""
        return [[document for document, _ in hits] for hits in self.search(queries, k)]

    def _search_one(self, terms: list[str], k: int, scorers: list[SegmentScorer]) -> Hits:
        """Weigh every token by its live df over all segments, then merge each segment's best."""
        if not terms:
            return []
        postings = [[scorer.posting(term) for term in terms] for scorer in scorers]
        sizes = [sum(len(row[t][0]) for row in postings) for t in range(len(terms))]
        weights = [self._weight(df) for df in sizes]
        hits: Hits = []
        for scorer, row in zip(scorers, postings, strict=True):
            hits += scorer.best(row, weights, k)
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k] if len(scorers) > 1 else hits

    def _weight(self, df: int) -> float:
        return (K1 + 1) * log(1 + (self._live - df + 0.5) / (df + 0.5))

    def _commit(self, fresh: Segment | None, gone: list[str]) -> None:
        with commits.locked(self.folder):
            self._read()  # another writer may have been here
            parts = [part.without(gone) for part in self._parts]
            if fresh is not None and len(fresh):
                parts.append(LiveSegment("", fresh, np.ones(len(fresh), bool)))
            commits.publish(self.folder, commits.compact(parts))
        self._read()

    def _read(self) -> None:
        self._parts, self._stale = commits.read(self.folder)
        self._live = len(self)
        alive = [part.segment.lengths[part.alive] for part in self._parts]
        self._mean = sum(int(n.sum()) for n in alive) / max(self._live, 1) or 1.0
        self._kept: list[Scores] | None = None

    def _impacts(self) -> Iterator[tuple[LiveSegment, Scores]]:
        """Return each segment with tf / (tf + norm) of its postings (P,), for the present mean."""
        if self._kept is None:
            self._kept = [_impact(part.segment, self._mean) for part in self._parts]
        return zip(self._parts, self._kept, strict=True)


class SegmentScorer:
    """The best documents of one segment, for one thread: it has room for a score of each."""

    def __init__(self, part: LiveSegment, impact: Scores) -> None:
        """``impact`` (P,): what each posting adds to a score, but for its token's weight."""
        self._segment, self._impact = part.segment, impact
        self._alive = None if part.whole else part.alive
        # All zeros between two searches: zeroing it costs more than most searches.
        self._scores: Scores = np.zeros(len(part.segment))

    def posting(self, term: str) -> Posting:
        """Return the live documents of ``term`` and its impacts."""
        place = self._segment.place(term)
        docs, impact = self._segment.docs[place], self._impact[place]
        if self._alive is None:
            return docs, impact
        live = self._alive[docs]
        return docs[live], impact[live]

    def best(self, postings: Sequence[Posting], weights: Sequence[float], k: int) -> Hits:
        """Return the best ``k`` of the documents that have any of the tokens, ties by id.

        A document occurs at most once per token, so the best k are among the best k · tokens of the
        list with its repetitions.
        """
        touched, reached = self._reached(postings, weights)
        most = k * len(weights)
        if len(touched) > most:
            edge = np.partition(reached, len(reached) - most)[len(reached) - most]
            near = reached >= edge
            touched, reached = touched[near], reached[near]
        order = np.lexsort((touched, -reached))
        rows, scores = touched[order], reached[order]
        if len(weights) > 1 and len(rows):  # a document's repetitions have one score: neighbours
            first = np.append(True, rows[1:] != rows[:-1])
            rows, scores = rows[first], scores[first]
        ids = self._segment.ids
        return [(ids[r], s) for r, s in zip(rows[:k].tolist(), scores[:k].tolist(), strict=True)]

    def _reached(
        self, postings: Sequence[Posting], weights: Sequence[float]
    ) -> tuple[Rows, Scores]:
        """Return every document of every token, with its score over all tokens."""
        if len(postings) == 1:
            return postings[0][0], weights[0] * postings[0][1]
        scores = self._scores
        for (docs, impact), weight in zip(postings, weights, strict=True):
            np.add.at(scores, docs, weight * impact)
        touched = np.concatenate([docs for docs, _ in postings])
        reached = scores.take(touched)
        scores[touched] = 0.0
        return touched, reached


def _impact(segment: Segment, mean: float) -> Scores:
    """Return tf / (tf + k1 · (1 - b + b · |d| / mean)) of every posting, (P,)."""
    norms = K1 * (1 - B + B * segment.lengths / mean)
    return np.asarray(segment.counts / (segment.counts + norms[segment.docs]))
