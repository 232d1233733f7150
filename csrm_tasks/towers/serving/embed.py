"""Embedding a catalogue, where possible without the tower: equal content, equal vector (A35).

Where the towers come with lexical evidence (A50), the terms of every product stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.brands import BrandForms
from csrm_tasks.lexical.terms import ProductTerms, product_terms
from csrm_tasks.towers.serving.texts import product_digest

Floats = npt.NDArray[np.float32]

VECTORS, IDS = "embeddings.npy", "product_ids.parquet"  # (N, 2, dim); product_id and digest
RETRIEVAL = 0  # of the two heads, the one that a vector index is searched by: exact match
CHUNK = 16_384  # products copied or encoded at once


def open_vectors(folder: Path, dim: int) -> tuple[Floats, pl.Series]:
    """Map the vectors (N, 2, dim) of a snapshot, and read its products' identifiers (N,).

    Raises :class:`ArtifactError` where one does not fit the other, or ``dim``.
    """
    vectors = np.load(folder / VECTORS, mmap_mode="r")
    ids = pl.read_parquet(folder / IDS, columns=["product_id"])["product_id"]
    if vectors.dtype != np.float32 or vectors.shape != (len(ids), 2, dim):
        raise ArtifactError(
            f"{folder / VECTORS}: vectors {vectors.shape} of {vectors.dtype} are not those of "
            f"{len(ids)} products in 2 × {dim} float32; embed the products again"
        )
    return vectors, ids


@dataclass(frozen=True)
class Known:
    """Vectors made before by the same tower: a mapped array (N, 2, dim) and its rows by digest."""

    vectors: Floats
    row: dict[str, int]
    terms: ProductTerms | None = None

    @classmethod
    def load(cls, folder: Path) -> Known:
        """Open what :func:`embed_catalogue` wrote."""
        digests = pl.read_parquet(folder / IDS)["digest"].to_list()
        row = {digest: i for i, digest in enumerate(digests)}
        return cls(np.load(folder / VECTORS, mmap_mode="r"), row, ProductTerms.load(folder))


@dataclass(frozen=True)
class Embedded:
    """What an embedding of a catalogue came to."""

    products: int
    encoded: int  # distinct titles that the tower read
    stale: int  # products whose vector was not known
    covered: int  # products that have a sound vector now: both heads of length 1


def embed_catalogue(
    products: pl.DataFrame, encode: Callable[[Sequence[str]], Floats], dim: int, out: Path,
    known: Known | None = None, brands: BrandForms | None = None,
) -> Embedded:  # fmt: skip
    """Write the vectors of ``products`` (product_id, title; sorted) and their identifiers.

    A title that ``known`` has is copied, and one that several products share is encoded once.
    ``brands`` are those of the lexical evidence: with them products' terms are written, too.
    """
    titles = products["title"].to_list()
    digests = [product_digest(title) for title in titles]
    row = known.row if known else {}
    stale = [i for i, digest in enumerate(digests) if digest not in row]
    first = {digests[i]: i for i in reversed(stale)}  # digest → its first product
    shape = (len(titles), 2, dim)
    vectors: Any = np.lib.format.open_memmap(out / VECTORS, "w+", np.float32, shape)
    if known is not None:
        for part in _parts([i for i, digest in enumerate(digests) if digest in row]):
            vectors[part] = known.vectors[[row[digests[i]] for i in part]]
    fresh = sorted(first.values())
    for part in _parts(fresh):
        vectors[part] = encode([titles[i] for i in part])
    for part in _parts([i for i in stale if first[digests[i]] != i]):
        vectors[part] = vectors[[first[digests[i]] for i in part]]
    vectors.flush()
    if brands is not None:
        _terms(titles, digests, known, brands).save(out)
    covered = sum(_sound(vectors[part]) for part in _parts(list(range(len(titles)))))
    products.select("product_id").with_columns(
        digest=pl.Series(digests, dtype=pl.String)
    ).write_parquet(out / IDS)
    return Embedded(len(titles), len(fresh), len(stale), covered)


def _terms(
    titles: Sequence[str], digests: Sequence[str], known: Known | None, brands: BrandForms
) -> ProductTerms:
    """Return the terms of all products; what is known is copied, as the vectors are."""
    before, row = (known.terms, known.row) if known and known.terms else (None, {})
    made: dict[str, npt.NDArray[np.uint32]] = {}
    for title, digest in zip(titles, digests, strict=True):
        if digest not in made:
            at = row.get(digest)
            made[digest] = (
                product_terms(title, brands) if before is None or at is None else before.of_row(at)
            )
    return ProductTerms.joined([made[digest] for digest in digests])


def _parts(rows: list[int]) -> list[list[int]]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def _sound(vectors: Floats) -> int:
    lengths = np.linalg.norm(vectors, axis=2)  # (n, 2)
    return int(np.isclose(lengths, 1.0, atol=1e-3).all(axis=1).sum())
