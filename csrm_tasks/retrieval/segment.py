"""An immutable piece of an inverted index: sorted documents, sorted terms, postings (A20).

Documents are numbered in the order of their ids, so that "ties by id" is "ties by number". Arrays
are memory-mapped when read; only terms and ids are held in memory (about 0.1 GB for a million
titles; who searches holds eight bytes for each posting more).
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
import scipy.sparse as sp

from csrm_tasks.blobs import text_digest
from csrm_tasks.lexical.analyser import KNOWN, chunk_tokens, chunks
from csrm_tasks.records import Schema

Rows = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.uint16]

DOCUMENTS: Schema = {"id": pl.String, "stamp": pl.UInt64, "length": pl.Int32}  # length in tokens
NOWHERE = slice(0, 0)
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
        """Analyse (id, text); of several texts of one id the last stays.

        Texts are read once and not kept: ``documents`` may be a stream.
        """
        last: dict[str, int] = {}  # id → its row
        names: dict[str, int] = {}  # term → number, as met
        of_chunk: dict[str, list[int]] = {}  # what is known of a chunk of text: its terms' numbers
        terms, ends, stamps = array("i"), array("q", [0]), array("Q")
        for row, (identifier, text) in enumerate(documents):
            last[identifier] = row
            for chunk in chunks(text):
                own = of_chunk.get(chunk)
                if own is None:
                    if len(of_chunk) >= KNOWN:
                        of_chunk.clear()
                    own = [names.setdefault(t, len(names)) for t in chunk_tokens(chunk)]
                    of_chunk[chunk] = own
                terms.extend(own)
            ends.append(len(terms))
            stamps.append(stamp(text))
        ids = pl.Series("id", list(last), pl.String)
        order = ids.arg_sort()
        rows = np.fromiter(last.values(), np.int64, len(last))[order.to_numpy()]
        del last, of_chunk
        counts = sp.csr_array(
            (
                np.ones(len(terms), np.int32),
                np.frombuffer(terms, np.int32),
                np.frombuffer(ends, np.int64),
            ),
            shape=(len(stamps), len(names)),
        )[rows]
        lengths = np.diff(counts.indptr).astype(np.int32)
        columns = (ids.gather(order), np.frombuffer(stamps, np.uint64)[rows], lengths)
        table = pl.DataFrame(dict(zip(DOCUMENTS, columns, strict=True)), DOCUMENTS)
        counts.sum_duplicates()
        return _inverted(table, list(names), counts.tocsc())

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
            place = np.full(len(segment), -1, np.int32)
            place[alive] = rank[before : before + int(alive.sum())]
            before += int(alive.sum())
            kept = alive[segment.docs]
            own = np.array([known[t] for t in segment.terms], np.int32)
            terms.append(np.repeat(own, np.diff(segment.start))[kept])
            docs.append(place[segment.docs[kept]])
            counts.append(segment.counts[kept].astype(np.int32))
        held = (np.concatenate(counts), (np.concatenate(docs), np.concatenate(terms)))
        return _inverted(table[order], names, sp.coo_array(held, (len(table), len(names))).tocsc())

    @cached_property
    def number(self) -> dict[str, int]:
        """Each term's place."""
        return {t: i for i, t in enumerate(self.terms)}

    @cached_property
    def ids(self) -> list[str]:
        """Each document's id; a list is ten times as fast to pick from as a column."""
        return self.table["id"].to_list()

    @cached_property
    def lengths(self) -> Rows:
        """Tokens of each document, (n,)."""
        lengths: Rows = self.table["length"].to_numpy()
        return lengths

    def place(self, term: str) -> slice:
        """Return where the postings of ``term`` stand among all."""
        at = self.number.get(term)
        return NOWHERE if at is None else slice(int(self.start[at]), int(self.start[at + 1]))

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


def _inverted(table: pl.DataFrame, names: list[str], counts: sp.csc_array) -> Segment:
    """Sort the columns of ``counts`` (n, T') by their names, leaving out those without a document.

    Rows ascend within each column.
    """
    used = np.flatnonzero(np.diff(counts.indptr))
    order = used[
        pl.Series([names[i] for i in used.tolist()], dtype=pl.String).arg_sort().to_numpy()
    ]
    sizes = np.diff(counts.indptr)[order]
    start = np.append(0, np.cumsum(sizes)).astype(np.int64)
    # Where each posting of the sorted columns stands among the unsorted ones.
    at = np.repeat(counts.indptr[order] - start[:-1], sizes) + np.arange(start[-1])
    docs = counts.indices[at].astype(np.int32)
    capped = np.minimum(counts.data[at], MOST).astype(np.uint16)
    return Segment(table, [names[i] for i in order.tolist()], start, docs, capped)


def stamp(text: str) -> int:
    """Return 64 bits that tell whether a text has changed."""
    return int(text_digest(text), 16)
