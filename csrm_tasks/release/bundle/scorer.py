"""Scoring with a release bundle: stored product vectors, or a title embedded on the spot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from csrm_tasks.errors import ArtifactError, DataError
from csrm_tasks.lexical.features import NAMES, QueryTerms, features, known_features
from csrm_tasks.lexical.terms import Lexicon, ProductTerms
from csrm_tasks.release.bundle.manifest import SECOND_STAGE, TOWERS, read_manifest
from csrm_tasks.text import composed_list, normalise
from csrm_tasks.towers.serving.embed import open_vectors
from csrm_tasks.towers.serving.product_tokens import ProductTokens

if TYPE_CHECKING:
    from csrm_tasks.towers.serving.second_stage import SecondStage

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Texts = Sequence[str | None]

LONGEST = 10_000  # characters of a text: five times the contracts' longest, for what was normalised


class Scored(NamedTuple):
    """Per pair (N,): probabilities, the defect decision and the score to rank by."""

    em: Floats
    defect: Floats
    is_defect: npt.NDArray[np.bool_]
    rank_score: Floats  # the EM probability; 0 where the pair is a defect (paper 1, section 3.6)


class Catalogue(dict[str, int]):
    """Product → its row; one object for all snapshots of the same products in the same order.

    A rollout loads two releases, and each is refreshed every night, of one catalogue: a million
    identifiers take more memory than all else that a release keeps for itself.
    """

    _kept: ClassVar[WeakValueDictionary[bytes, Catalogue]] = WeakValueDictionary()

    @classmethod
    def of(cls, products: Sequence[str]) -> Catalogue:
        """Return the rows of ``products``, identifiers that hold no NUL."""
        digest = hashlib.sha256("\0".join(products).encode()).digest()
        found = cls._kept.get(digest)
        if found is None:
            rows = zip(composed_list(products), range(len(products)), strict=True)
            found = cls._kept[digest] = cls(rows)
        return found


class ProductVectors:
    """An embedding snapshot: vectors of products by identifier, mapped from disk."""

    def __init__(self, folder: Path, dim: int) -> None:
        """Open the snapshot in ``folder``; raises :class:`ArtifactError` when it does not fit."""
        mapped, ids = open_vectors(folder, dim)
        self._vectors = np.asarray(mapped)  # (N, 2, dim); over the same pages, but read faster
        self._row = Catalogue.of(ids.to_list())
        self.terms = ProductTerms.load(folder)  # None where towers have no lexical evidence
        self.tokens = ProductTokens.load(folder)  # None where there is no second stage

    def __len__(self) -> int:
        """Return N."""
        return len(self._row)

    def rows(self, products: Texts) -> list[int | None]:
        """Return each product's row, None where the snapshot has no such product."""
        return list(map(self._row.get, composed_list([product or "" for product in products])))

    def take(self, rows: Sequence[int] | Rows) -> Floats:
        """Return the vectors (len(rows), 2, dim) of rows."""
        taken: Floats = self._vectors.take(np.asarray(rows, np.int64), axis=0)
        return taken


class ReleaseScorer:
    """The towers and product vectors of one release; onnxruntime only, safe to share by threads."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Load the bundle in ``folder``.

        Queries are encoded by the variant that :func:`choose_backend` finds best on this machine.
        Raises :class:`ArtifactError` when it is none, or one of its files was changed.
        """
        from csrm_tasks.towers.serving.backend import choose_backend
        from csrm_tasks.towers.serving.runtime import TowerRuntime
        from csrm_tasks.towers.serving.second_stage import SecondStage

        self.manifest = read_manifest(folder)
        self.backend = choose_backend(folder / TOWERS, threads)  # fp32 or int8
        self._towers: Any = TowerRuntime(folder / TOWERS, query=self.backend, threads=threads)
        self.em_threshold = float(self._towers.about["heads"]["em"]["threshold"])  # A33
        second = folder / SECOND_STAGE
        self.second: SecondStage | None = SecondStage(second, threads) if second.exists() else None
        self.products = self.snapshot(folder)

    def snapshot(self, folder: Path) -> ProductVectors:
        """Open an embedding snapshot of this release's towers.

        Raises :class:`ArtifactError` where it does not fit, or lacks the terms that evidence reads,
        or the tokens that the second stage reads.
        """
        products = ProductVectors(folder, self.dim)
        for name, needed, found in (
            ("terms", self.lexicon is not None, products.terms),
            ("tokens", self.second is not None, products.tokens),
        ):
            if needed and (found is None or len(found) != len(products)):
                raise ArtifactError(
                    f"{folder} has not the {name} of its {len(products)} products, which this "
                    "release scores with; embed the products again"
                )
        return products

    @property
    def lexicon(self) -> Lexicon | None:
        """What the lexical evidence is read with; None where these towers have none (A50)."""
        return self._towers.evidence.lexicon if self._towers.evidence else None

    @property
    def dim(self) -> int:
        """Width of one head's vector."""
        return int(self._towers.dim)

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Embed queries: (len(texts), 2, dim)."""
        encoded: Floats = self._towers.encode_queries(texts)
        return encoded

    def product_text(self, title: str, brand: str = "", category: str = "") -> str:
        """Return what this release's product tower reads of a product (A27)."""
        from csrm_tasks.towers.serving.texts import product_text

        return product_text(title, self._towers.product_fields, brand=brand, category=category)

    def encode_titles(self, titles: Sequence[str]) -> Floats:
        """Embed products by :meth:`product_text`: (len(titles), 2, dim)."""
        encoded: Floats = self._towers.encode_products(titles)
        return encoded

    def asked(self, query: str) -> QueryTerms | None:
        """Read a query's terms; None where these towers have no lexical evidence."""
        return None if self.lexicon is None else QueryTerms.of(query, self.lexicon)

    def title_terms(self, titles: Sequence[str]) -> ProductTerms | None:
        """Read the terms of products by :meth:`product_text`; None as in :meth:`asked`."""
        return None if self.lexicon is None else ProductTerms.of(titles, self.lexicon.brands)

    def listing_features(
        self, asked: QueryTerms | None, products: ProductVectors,
        rows: Rows | Sequence[int | None], titles: ProductTerms | None,
    ) -> Floats | None:  # fmt: skip
        """Return features (len(rows), F) of one query: by row, else the next of ``titles``.

        ``asked`` and ``titles`` are of :meth:`asked` and :meth:`title_terms`; None for no title.
        """
        if asked is None or products.terms is None:
            return None
        if titles is None:  # every product is known
            return features(asked, products.terms, np.asarray(rows, np.int64))
        found: Floats = np.empty((len(rows), len(NAMES)), np.float32)
        known = [i for i, row in enumerate(rows) if row is not None]
        lacking = [i for i, row in enumerate(rows) if row is None]
        at: Rows = np.array([row for row in rows if row is not None], np.int64)
        found[known] = features(asked, products.terms, at)
        found[lacking] = features(asked, titles, np.arange(len(titles)))
        return found

    def title_tokens(
        self, products: ProductVectors, rows: Sequence[int | None], titles: Texts
    ) -> list[list[int]]:
        """Return the tokens that the second stage reads: kept by row, else of ``titles``, (n,)."""
        if self.second is None or products.tokens is None:
            raise ArtifactError("this release has no second stage")
        lacking = [i for i, row in enumerate(rows) if row is None]
        read = self.second.cross.title_reader([titles[i] or "" for i in lacking])
        fresh = {i: read.ids_of(n) for n, i in enumerate(lacking)}
        kept = products.tokens
        return [fresh[i] if row is None else kept.of_row(row) for i, row in enumerate(rows)]

    def score_vectors(
        self, query_vectors: Floats, product_vectors: Floats, evidence: Floats | None = None
    ) -> Scored:
        """Score pairs of vectors (..., 2, dim) that broadcast, with features (..., F) of them."""
        scores = self._towers.score(query_vectors, product_vectors, evidence)
        decided = self._towers.decide(scores)
        rank_score = np.where(decided.defect, np.float32(0), scores.em)
        return Scored(scores.em, scores.defect, decided.defect, rank_score)

    def explain(
        self, query_vectors: Floats, product_vectors: Floats, evidence: Floats | None
    ) -> dict[str, Floats]:
        """Return by part what it adds to the logits of exact match and of defect, (n, 2) each.

        Takes what :meth:`score_vectors` takes of one query and n products; of every head the parts
        add up to the logit of its probability.
        """
        scaled = self._towers.scaled(query_vectors, product_vectors)
        parts: dict[str, Floats] = self._towers.contributions(scaled, evidence)
        return parts

    def score(self, queries: Sequence[str], products: Texts, titles: Texts) -> Scored:
        """Score N pairs; each names a product of the catalogue or brings its :meth:`product_text`.

        Raises :class:`DataError` for a pair that has neither, or no query, or a text beyond
        :data:`LONGEST`.
        """
        for name, texts in (("query", queries), ("title", titles)):
            _check_lengths(name, texts)
        empty = next((i for i, q in enumerate(queries) if not normalise(q)), None)
        if empty is not None:
            raise DataError(f"row {empty}: the query is empty; give its text")
        product_vectors = self._vectors(products, titles)
        query_vectors = _each_once(self.encode_queries, queries)
        return self.score_vectors(
            query_vectors, product_vectors, self._pair_features(queries, products, titles)
        )

    def _pair_features(
        self, queries: Sequence[str], products: Texts, titles: Texts
    ) -> Floats | None:
        """Return features (N, F) of pairs as :meth:`score` takes them; None without evidence."""
        if self.lexicon is None or self.products.terms is None:
            return None
        rows = self.products.rows(products)
        query_row = {text: i for i, text in enumerate(dict.fromkeys(queries))}
        query: Any = np.array([query_row[q] for q in queries], np.int64)
        lacking = np.array([row is None for row in rows], bool)
        row = {text: i for i, text in enumerate(dict.fromkeys(t or "" for t in titles))}
        fresh = ProductTerms.of(list(row) if lacking.any() else [], self.lexicon.brands)
        found: Floats = np.empty((len(rows), len(NAMES)), np.float32)
        for chosen, terms, at in (
            (~lacking, self.products.terms, [r or 0 for r in rows]),
            (lacking, fresh, [row[t or ""] for t in titles]),
        ):
            product: Any = np.array(at, np.int64)[chosen]
            found[chosen] = known_features(
                list(query_row), terms, query[chosen], product, self.lexicon
            )
        return found

    def _vectors(self, products: Texts, titles: Texts) -> Floats:
        """Return product vectors (N, 2, dim): stored where known, else embedded from the title."""
        rows = self.products.rows(products)
        lacking = [i for i, row in enumerate(rows) if row is None]
        for i in lacking:
            if not titles[i]:
                raise DataError(
                    f"row {i}: product {products[i]!r} is not in this release; give its title"
                )
        vectors = np.zeros((len(rows), 2, self.dim), np.float32)
        known = [i for i, row in enumerate(rows) if row is not None]
        vectors[known] = self.products.take([row for row in rows if row is not None])
        if lacking:
            vectors[lacking] = _each_once(self.encode_titles, [titles[i] or "" for i in lacking])
        return vectors


def _check_lengths(name: str, texts: Texts) -> None:
    for i, text in enumerate(texts):
        if text is not None and len(text) > LONGEST:
            raise DataError(f"row {i}: the {name} has {len(text)} characters, at most {LONGEST}")


def _each_once(encode: Callable[[Sequence[str]], Floats], texts: Sequence[str]) -> Floats:
    """Return vectors (len(texts), 2, dim); a text that is there twice is embedded once."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return encode(list(row))[[row[text] for text in texts]]
