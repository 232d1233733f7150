"""An immutable piece of an inverted index: sorted documents, sorted terms, postings (A20).

Documents are numbered in the order of their ids, so that "ties by id" is "ties by number". Arrays
are memory-mapped when read; only terms and ids are held in memory (about 0.1 GB for a million
titles).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.records import Schema

Rows = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.uint16]
Posting = tuple[Rows, Counts]  # documents, ascending, and how often in each

DOCUMENTS: Schema = {"id": pl.String, "stamp": pl.UInt64, "length": pl.Int32}  # length in tokens
NOTHING: Posting = (np.zeros(0, np.int32), np.zeros(0, np.uint16))
MOST = np.iinfo(np.uint16).max  # occurrences of a term in one document that are told apart


@dataclass(frozen=True)
class Segment:
    """n documents with T distinct terms and P postings."""

    table: pl.DataFrame  # DOCUMENTS, n rows, ids ascending
    terms: list[str]  # ascending, T
    start: Longs  # (T + 1,) where each term's postings begin
    docs: Rows  # (P,)
    counts: Counts  # (P,)

    def __len__(self) -> int:
        """Return n."""
        return len(self.table)

    @classmethod
    def build(cls, documents: Iterable[tuple[str, str]]) -> Segment:
        """Analyse (id, text); of several texts of one id the last stays."""
        texts = dict(documents)
        ids = sorted(texts)
        seen: dict[str, int] = {}
        terms, lengths = array("i"), array("i")
        for identifier in ids:
            own = tokens(texts[identifier])
            terms.extend([seen.setdefault(t, len(seen)) for t in own])
            lengths.append(len(own))
        columns = [ids, [stamp(texts[i]) for i in ids], np.array(lengths, np.int32)]
        table = pl.DataFrame(columns, DOCUMENTS)
        docs = np.repeat(np.arange(len(ids), dtype=np.int64), lengths)
        return _inverted(table, list(seen), np.array(terms, np.int64), docs, None)

    @classmethod
    def merge(cls, parts: Sequence[tuple[Segment, Flags]]) -> Segment:
        """Join what is live in ``parts`` (an id lives in one at most), without analysing anew."""
        table = pl.concat([s.table.filter(pl.Series(alive)) for s, alive in parts])
        order = table["id"].arg_sort().to_numpy()
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        names = sorted(set().union(*(s.terms for s, _ in parts)))
        known = {t: i for i, t in enumerate(names)}
        terms, docs, counts, before = [], [], [], 0
        for segment, alive in parts:
            place = np.full(len(segment), -1, np.int64)
            place[alive] = rank[before : before + int(alive.sum())]
            before += int(alive.sum())
            kept = alive[segment.docs]
            own = np.array([known[t] for t in segment.terms], np.int64)
            terms.append(np.repeat(own, np.diff(segment.start))[kept])
            docs.append(place[segment.docs[kept]])
            counts.append(segment.counts[kept])
        return _inverted(
            table[order], names, np.concatenate(terms), np.concatenate(docs), np.concatenate(counts)
        )

    @cached_property
    def number(self) -> dict[str, int]:
        """Each term's place."""
        return {t: i for i, t in enumerate(self.terms)}

    @cached_property
    def lengths(self) -> Rows:
        """Tokens of each document, (n,)."""
        lengths: Rows = self.table["length"].to_numpy()
        return lengths

    def posting(self, term: str) -> Posting:
        """Return the documents of ``term`` and its counts."""
        at = self.number.get(term)
        if at is None:
            return NOTHING
        here = slice(int(self.start[at]), int(self.start[at + 1]))
        return self.docs[here], self.counts[here]

    def rows(self, ids: Iterable[str]) -> Longs:
        """Return the numbers of those of ``ids`` that are here."""
        wanted = pl.Series("id", sorted(set(ids)), pl.String)
        at = self.table["id"].search_sorted(wanted, side="left").to_numpy().astype(np.int64)
        inside = at < len(self)
        same = (self.table["id"].gather(at[inside]) == wanted.filter(pl.Series(inside))).to_numpy()
        rows: Longs = at[inside][same]
        return rows

    def save(self, folder: Path) -> None:
        """Write the segment's files."""
        folder.mkdir(parents=True)
        self.table.write_parquet(folder / "documents.parquet")
        columns = {"term": pl.String, "end": pl.Int64}
        pl.DataFrame([self.terms, self.start[1:]], columns).write_parquet(folder / "terms.parquet")
        np.save(folder / "docs.npy", self.docs)
        np.save(folder / "counts.npy", self.counts)

    @classmethod
    def load(cls, folder: Path) -> Segment:
        """Open what :meth:`save` wrote, postings memory-mapped."""
        terms = pl.read_parquet(folder / "terms.parquet")
        start = np.concatenate([[0], terms["end"].to_numpy()]).astype(np.int64)
        # A plain view of the map is twice as fast to slice as a memmap.
        docs: Rows = np.load(folder / "docs.npy", mmap_mode="r").view(np.ndarray)
        counts: Counts = np.load(folder / "counts.npy", mmap_mode="r").view(np.ndarray)
        table = pl.read_parquet(folder / "documents.parquet")
        return cls(table, terms["term"].to_list(), start, docs, counts)


def _inverted(
    table: pl.DataFrame,
    names: list[str],
    terms: Longs,
    docs: Longs,
    counts: Counts | None,
) -> Segment:
    """Sort occurrences (terms point into ``names``) by term, then document; count equal ones.

    ``counts`` is given where every (term, document) comes once already.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    size = max(1, len(table))
    keys = rank[terms] * size + docs if len(terms) else np.zeros(0, np.int64)
    if counts is None:
        keys, counts_of = np.unique(keys, return_counts=True)
        counts = np.minimum(counts_of, MOST).astype(np.uint16)
    else:
        by_key = np.argsort(keys)
        keys, counts = keys[by_key], counts[by_key]
    term = keys // size
    used, first = np.unique(term, return_index=True)
    start = np.append(first, len(keys)).astype(np.int64)
    left = [names[order[i]] for i in used.tolist()]
    return Segment(table, left, start, (keys % size).astype(np.int32), counts)


def stamp(text: str) -> int:
    """Return 64 bits that tell whether a text has changed."""
    return int(text_digest(text), 16)
