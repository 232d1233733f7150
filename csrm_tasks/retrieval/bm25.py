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

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.retrieval import commits
from csrm_tasks.retrieval.commits import LiveSegment
from csrm_tasks.retrieval.segment import Posting, Segment, stamp

Hits = list[tuple[str, float]]  # (document id, score), best first
Scores = npt.NDArray[np.float64]

K1, B = 1.2, 0.75


class Bm25Index:
    """A folder of documents, each an id and a text."""

    def __init__(self, folder: Path) -> None:
        """Open the index in ``folder``; raises :class:`ArtifactError` where there is none."""
        self.folder = folder
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
        scratch = [np.zeros(len(part.segment)) for part in self._parts]
        return [self._search_one(tokens(query), k, scratch) for query in queries]

    def ranked(self, queries: Sequence[str], k: int) -> list[list[str]]:
        """Return the ids alone of :meth:`search`."""
        return [[document for document, _ in hits] for hits in self.search(queries, k)]

    def _search_one(self, terms: list[str], k: int, scratch: list[Scores]) -> Hits:
        """Weigh every token by its live df over all segments, then merge each segment's best."""
        if not terms:
            return []
        postings = [[part.posting(term) for part in self._parts] for term in terms]
        weights = [self._weight(sum(len(docs) for docs, _ in row)) for row in postings]
        hits: Hits = []
        for i, part in enumerate(self._parts):
            weighted = [(w, *row[i]) for w, row in zip(weights, postings, strict=True)]
            rows, scores = _best(weighted, self._norms[i], scratch[i], k)
            hits += zip(part.segment.table["id"].gather(rows), scores.tolist(), strict=True)
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k] if len(self._parts) > 1 else hits

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
        mean = sum(int(n.sum()) for n in alive) / max(self._live, 1) or 1.0
        self._norms: list[Scores] = [
            np.asarray(K1 * (1 - B + B * part.segment.lengths / mean)) for part in self._parts
        ]


def _best(
    weighted: list[tuple[float, *Posting]], norms: Scores, scores: Scores, k: int
) -> tuple[npt.NDArray[np.int64], Scores]:
    """Return the best ``k`` rows of one segment and their scores, ties by row.

    ``scores`` is all zeros, and is so again afterwards. A row occurs at most once per token, so the
    best k are among the best k · tokens of the list with its repetitions.
    """
    for weight, docs, counts in weighted:
        scores[docs] += weight * counts / (counts + norms[docs])
    touched = np.concatenate([docs for _, docs, _ in weighted])
    reached = scores[touched]
    scores[touched] = 0.0
    most = k * len(weighted)
    if len(touched) > most:
        edge = np.partition(reached, len(reached) - most)[len(reached) - most]
        touched, reached = touched[reached >= edge], reached[reached >= edge]
    rows, first = np.unique(touched, return_index=True)
    order = np.argsort(-reached[first], kind="stable")[:k]
    return rows[order], reached[first][order]
