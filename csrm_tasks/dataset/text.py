"""One meaning of "the same text": what queries are grouped, hashed and matched by.

Normalisation is NFKC (which also folds full-width Latin and half-width kana), case folding,
removal of invisible characters, and runs of white space as one space. It is idempotent, so that an
identifier made from a normalised query equals the one made from the query as typed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import polars as pl

from csrm_tasks.blobs import text_digest

# Zero-width characters, direction marks, soft hyphen, byte order mark: typed by nobody, copied by
# many, and two queries that differ only by them are one query.
INVISIBLE = dict.fromkeys([0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF])


def normalise(text: str) -> str:
    """Return the canonical form of ``text``; ``normalise(normalise(t)) == normalise(t)``."""
    folded = unicodedata.normalize("NFKC", text.translate(INVISIBLE)).casefold()
    # Case folding may leave a sequence that NFKC composes (ǰ), and NFKC may make a space (U+00A8).
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def query_id(locale: str, query: str) -> str:
    """Return the identifier of a query: the digest of its locale and its normalised text."""
    return text_digest(locale, normalise(query))


def pair_id(query_id: str, product_id: str) -> str:
    """Return the identifier of a query-product pair."""
    return text_digest(query_id, product_id)


def normalised(texts: pl.Series) -> pl.Series:
    """Normalise a column of strings; every distinct value is worked on once."""
    return _map_distinct(
        texts, [normalise(t) for t in texts.drop_nulls().unique(maintain_order=True)]
    )


def query_ids(locale: str, norms: pl.Series) -> pl.Series:
    """Return query identifiers of a column of *normalised* queries of one locale."""
    distinct = norms.drop_nulls().unique(maintain_order=True)
    return _map_distinct(norms, [text_digest(locale, n) for n in distinct])


def pair_ids(queries: pl.Series, products: pl.Series) -> pl.Series:
    """Return pair identifiers of two aligned columns."""
    made = (pair_id(q, p) for q, p in zip(queries, products, strict=True))
    return pl.Series("pair_id", list(made), dtype=pl.String)


def _map_distinct(values: pl.Series, mapped: Iterable[str]) -> pl.Series:
    distinct = values.drop_nulls().unique(maintain_order=True)
    if distinct.is_empty():
        return values
    made = pl.Series(list(mapped), dtype=pl.String)
    return values.replace_strict(distinct, made, return_dtype=pl.String)
