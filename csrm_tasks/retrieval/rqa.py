"""Retrieval-based query augmentation: the titles that tell the LLM what a query means (A24).

The text is a function of the query alone. BM25 and the EBR each give a ranking of the locale's
catalogue; the rankings are fused by reciprocal rank; going down the fused list, a title that is
nearly a title already taken is skipped, until ten candidates are taken; those whose cosine is below
the threshold are dropped, unless they hold every word of the query; the first k of the rest are
kept, cut to a number of reading units. The exception is for words that the encoder has not learnt:
its cosine says nothing of a new nickname, and a title that spells it is better evidence. Without it
an EBR that has seen no target query is worse than BM25 alone on just those queries that RQA is for.
Training, the nightly job and the online path all go through :class:`RqaRetriever` and :func:`keep`,
so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.analyser import tokens, truncate_title
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.exact import Vectors
from csrm_tasks.retrieval.index import ProductIndex
from csrm_tasks.text import normalise

if TYPE_CHECKING:  # a BM25-only build must not pay for torch and transformers
    from csrm_tasks.retrieval.encoder import BiEncoder

DEPTH = 50  # of each ranking that is fused
CANDIDATES = 10  # distinct titles that the threshold chooses from
RRF = 60.0  # the constant of reciprocal rank fusion (Cormack et al., 2009)
NEAR = 0.8  # Jaccard similarity of token sets from which two titles say the same


class Title(NamedTuple):
    """One retrieved title."""

    product_id: str
    title: str  # already cut
    score: float  # fused reciprocal rank
    cosine: float  # NaN without an EBR
    whole: bool = False  # the title has every token of the query


@dataclass(frozen=True)
class Dense:
    """The EBR's half; model and index must belong together."""

    model: BiEncoder
    index: ProductIndex

    def nearest(self, vectors: Vectors, depth: int) -> list[list[str]]:
        """Return the product ids nearest to each vector (Q, dim), best first."""
        rows, _ = self.index.search(vectors, depth)
        return [[self.index.ids[r] for r in row if r >= 0] for row in rows.tolist()]

    def check(self, digest: str) -> None:
        """Raise :class:`ArtifactError` when the index was built by another encoder."""
        info = self.index.info
        if info.encoder_digest != digest or info.dim != self.model.dim:
            raise ArtifactError(
                f"the {info.locale} index was built by encoder {info.encoder_digest[:12]} "
                f"(dim {info.dim}), the EBR given is {digest[:12]} (dim {self.model.dim}); "
                "run build_index with this EBR"
            )


class RqaRetriever:
    """Titles for queries of one locale; without ``dense`` it is BM25 alone."""

    def __init__(
        self,
        titles: Mapping[str, str],
        bm25: Bm25Index,
        dense: Dense | None,
        title_tokens: int,
    ) -> None:
        """``titles`` maps the live product ids to titles; others are never returned."""
        self._titles, self._bm25, self._dense = titles, bm25, dense
        self._title_tokens = title_tokens
        self._row = {p: i for i, p in enumerate(dense.index.ids)} if dense else {}
        self._terms = {p: frozenset(tokens(t)) for p, t in titles.items()}

    def without_dense(self) -> RqaRetriever:
        """Return BM25 alone over the same titles."""
        return RqaRetriever(self._titles, self._bm25, None, self._title_tokens)

    def retrieve(self, queries: Sequence[str]) -> list[list[Title]]:
        """Return at most :data:`CANDIDATES` of each query, best first; :func:`keep` comes next.

        A query without a token (empty, punctuation) means nothing and gets [].
        """
        texts = [normalise(q) for q in queries]
        lexical = self._bm25.ranked(texts, DEPTH)
        if self._dense is None:
            taken = zip(texts, lexical, strict=True)
            return [self._take(text, fuse([ranking]), None) for text, ranking in taken]
        vectors = self._dense.model.encode_queries(texts)
        semantic = self._dense.nearest(vectors, DEPTH)
        return [
            self._take(text, fuse([lexical[i], semantic[i]]), vectors[i])
            for i, text in enumerate(texts)
        ]

    def _take(
        self, query: str, fused: list[tuple[str, float]], vector: Vectors | None
    ) -> list[Title]:
        asked = frozenset(tokens(query))
        taken: list[Title] = []
        seen: list[frozenset[str]] = []
        for product, score in fused:
            if len(taken) == CANDIDATES or not asked:
                break
            terms = self._terms.get(product)  # None for a product that is gone
            if not terms or any(jaccard(terms, other) >= NEAR for other in seen):
                continue
            seen.append(terms)
            text = truncate_title(self._titles[product], self._title_tokens)
            cosine = self._cosine(product, vector)
            taken.append(Title(product, text, score, cosine, asked <= terms))
        return taken

    def _cosine(self, product: str, vector: Vectors | None) -> float:
        if self._dense is None or vector is None or product not in self._row:
            return float("nan")
        return float(self._dense.index.vectors[self._row[product]] @ vector)


def keep(candidates: Sequence[Title], threshold: float, k: int) -> list[Title]:
    """Return the first ``k`` whose cosine is not below ``threshold``.

    Without a cosine (NaN), or with every word of the query, a title passes.
    """
    return [t for t in candidates if t.whole or not t.cosine < threshold][:k]


def fuse(rankings: Sequence[Sequence[str]]) -> list[tuple[str, float]]:
    """Fuse rankings of ids by reciprocal rank, ``sum 1 / (60 + rank)`` with ranks from 1.

    Best first; ties by id, so that the order of the rankings cannot matter.
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, identifier in enumerate(ranking, 1):
            scores[identifier] = scores.get(identifier, 0.0) + 1.0 / (RRF + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the share of all words that both have; two without a word have nothing in common."""
    return len(a & b) / max(1, len(a | b))
