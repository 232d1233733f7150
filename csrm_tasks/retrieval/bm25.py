"""BM25 over tokens of our own analyser, on tantivy (A20).

tantivy persists, takes additions and deletions while it is being read, and is fast; it sees a field
of tokens joined by spaces, so that :mod:`csrm_tasks.retrieval.analyser` alone decides what a token
is. Differences from ``rank_bm25.BM25Okapi`` on the same tokens, all visible in the scores and
none in what is found:

* idf is ``ln(1 + (N - df + 0.5) / (df + 0.5))``, never negative; Okapi's is ``ln`` of the fraction
  alone, with negative values replaced by a quarter of the mean idf.
* k1 = 1.2, b = 0.75, fixed in the engine; Okapi's default is k1 = 1.5.
* A document's length is kept in one byte: exact up to 40 tokens, then in steps of about 5 %.

A deleted document is never returned, but counts in N, df and the mean length until the engine
merges its segment away. Each snapshot builds its index anew, so artifacts never carry that debt.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tantivy

from csrm_tasks.errors import ArtifactError
from csrm_tasks.retrieval.analyser import tokens

Hits = list[tuple[str, float]]  # (document id, score), best first
WRITER_BYTES = 64_000_000
SCORE_DIGITS = 4  # float32 sums differ in the last bits with the order of segments


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("text", tokenizer_name="pretokenised", index_option="freq")
    return builder.build()


class Bm25Index:
    """A folder of documents, each an id and a text."""

    def __init__(self, folder: Path) -> None:
        """Open the index in ``folder``; raises :class:`ArtifactError` where there is none."""
        if not (folder.is_dir() and tantivy.Index.exists(str(folder))):
            raise ArtifactError(f"{folder} holds no BM25 index; run build_bm25")
        self._schema = _schema()
        self._index = tantivy.Index(self._schema, path=str(folder))
        whitespace = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()
        self._index.register_tokenizer("pretokenised", whitespace)
        self._searcher = self._index.searcher()

    @classmethod
    def build(cls, folder: Path, documents: Iterable[tuple[str, str]]) -> Bm25Index:
        """Make a new index of (id, text) in ``folder``, replacing what was there."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tantivy.Index(_schema(), path=str(folder))
        index = cls(folder)
        index.add(documents)
        return index

    def __len__(self) -> int:
        """Return how many documents are live."""
        return int(self._searcher.num_docs)

    def add(self, documents: Iterable[tuple[str, str]]) -> None:
        """Add (id, text); a document whose id is already there is replaced. Atomic."""

        def write(writer: Any) -> None:
            for identifier, text in documents:
                writer.delete_documents_by_term("id", identifier)
                joined = " ".join(tokens(text))
                writer.add_document(tantivy.Document(id=[identifier], text=[joined]))

        self._commit(write)

    def delete(self, identifiers: Iterable[str]) -> None:
        """Delete by id; an id that is not there is no error. Atomic."""

        def write(writer: Any) -> None:
            for identifier in identifiers:
                writer.delete_documents_by_term("id", identifier)

        self._commit(write)

    def _commit(self, write: Callable[[Any], None]) -> None:
        writer = self._index.writer(heap_size=WRITER_BYTES, num_threads=1)
        write(writer)
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()
        self._searcher = self._index.searcher()

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """Return the best ``k`` of each query, ties by id; [] for a query without tokens."""
        return [self._search_one(tokens(query), k) for query in queries]

    def _search_one(self, terms: list[str], k: int) -> Hits:
        """Fetch until the score falls below the k-th, so that ties cannot depend on segments."""
        if not terms or not len(self):
            return []
        query = self._query(terms)
        limit = k + 8
        while True:
            hits = self._searcher.search(query, limit, count=False).hits
            scores = [round(score, SCORE_DIGITS) for score, _ in hits]
            if len(hits) < limit or scores[-1] < scores[k - 1]:
                break
            limit *= 2
        last = min(scores[:k], default=0.0)
        kept = [(s, a) for s, (_, a) in zip(scores, hits, strict=True) if s >= last]
        named = [(str(self._searcher.doc(a)["id"][0]), s) for s, a in kept]
        return sorted(named, key=lambda hit: (-hit[1], hit[0]))[:k]

    def _query(self, terms: list[str]) -> Any:
        term = tantivy.Query.term_query
        should = tantivy.Occur.Should
        return tantivy.Query.boolean_query(
            [(should, term(self._schema, "text", t, "freq")) for t in terms]
        )
