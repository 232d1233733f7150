"""Lexical features of a query and products (A50): one function for training, audit and serving.

Every feature is read off two tables, (n, Q): which of the query's Q distinct terms occur in each
product's text, and which in its title. So a query against the hundred products of a request costs
one look-up of their terms and a few small matrix products, on numpy alone.

The query is a list of words (by its spaces); a brand is a word of its own, and found where the
product names the same brand in any of its forms. Terms are weighted by how rare they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csrm_tasks.lexical.terms import (
    ANY_BRAND,
    BRAND,
    GRAM,
    QUANTITY,
    TOKEN,
    UNIT,
    Hashes,
    Lexicon,
    Places,
    ProductTerms,
    Term,
    terms_of,
)
from csrm_tasks.text import normalise

Floats = npt.NDArray[np.float32]

NAMES = (
    "terms_in_title",  # share of the query's terms, by weight
    "terms_in_text",  # likewise in title, brand and category
    "letters_in_title",  # share of its character n-grams
    "letters_in_text",
    "words_in_title",  # share of its words that are found whole
    "words_in_text",
    "weakest_word",  # share of the terms found of the word of which least is found, in the text
    "last_word",  # share of the terms found of the last word, in the text
    "whole_query",  # 1 where every word is found whole, in the text
    "brand_equal",  # share of the query's brands that the product is of
    "brand_other",  # 1 where the product is of brands, but of none of the query's
    "quantity_equal",  # share of the query's numbers that the product has, with their unit
    "quantity_other",  # share of those that it has not, though it has another with that unit
    "length",  # log of the product's terms over the query's
)


@dataclass(frozen=True)
class QueryTerms:
    """A query's distinct terms, and which of them make up what; made once for each query."""

    hashes: Hashes  # (Q,) sorted
    shares: Floats  # (Q, 2) of tokens (by weight), of character n-grams; each sums to 1 or 0
    words: Floats  # (Q, W) share of each term in its word; each column sums to 1
    brands: Floats  # (Q,) share of each brand; sums to 1 or 0
    any_brand: int  # row of ANY_BRAND, or -1
    quantities: Places  # (K, 2) rows of a quantity and of its unit
    size: int  # distinct terms of all kinds that a product's are compared with

    @classmethod
    def of(cls, query: str, lexicon: Lexicon) -> QueryTerms:
        """Read a query, normalised or as typed."""
        norm = normalise(query)
        spans = lexicon.brands.find(norm)
        rest = _without(norm, spans)
        brands = [t for t in terms_of(norm, lexicon.brands) if t.kind == BRAND]
        plain = [t for t in terms_of(rest, lexicon.brands) if t.kind != BRAND]
        asked = {t.hash for t in (*brands, *plain)} | ({ANY_BRAND} if brands else set())
        hashes = np.array(sorted(asked), dtype=np.uint32)
        row = {int(h): i for i, h in enumerate(hashes)}
        weight = lexicon.weights.of(hashes)
        tokens, grams = ([t for t in plain if t.kind == kind] for kind in (TOKEN, GRAM))
        shares = [_share([*brands, *tokens], row, weight), _share(grams, row, None)]
        words = [_share(word, row, weight) for word in _words(norm, brands, tokens)]
        return cls(
            hashes, np.stack(shares, 1),
            np.stack(words, 1) if words else np.zeros((len(row), 0), np.float32),
            _share(brands, row, None), row[ANY_BRAND] if brands else -1, _quantities(plain, row),
            len(asked),
        )  # fmt: skip


def _without(norm: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """Return the text with the brands blanked, every other character in its place."""
    for start, end, _ in spans:
        norm = norm[:start] + " " * (end - start) + norm[end:]
    return norm


def _share(found: Sequence[Term], row: dict[int, int], weight: Floats | None) -> Floats:
    """Return (Q,): the distinct terms of ``found``, by weight or alike, over their sum."""
    share: Floats = np.zeros(len(row), np.float32)
    at = sorted({row[t.hash] for t in found})
    share[at] = 1.0 if weight is None else weight[at]
    return share / share.sum() if at else share


def _words(norm: str, brands: Sequence[Term], tokens: Sequence[Term]) -> list[list[Term]]:
    """Return the terms of every word, in the order of the query; a brand is a word."""
    words: dict[tuple[int, int], list[Term]] = {}
    for term in brands:
        words[term.place, 0] = [term]
    for term in tokens:
        start = norm.rfind(" ", 0, term.place) + 1
        words.setdefault((start, 1), []).append(term)
    # A word of which a brand is the beginning stands behind the brand.
    return [words[key] for key in sorted(words)]


def _quantities(terms: Sequence[Term], row: dict[int, int]) -> Places:
    amounts = [t for t in terms if t.kind == QUANTITY]
    units = [t for t in terms if t.kind == UNIT]  # one behind each amount
    pairs = {(row[a.hash], row[u.hash]) for a, u in zip(amounts, units, strict=True)}
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def occurrences(query: QueryTerms, products: ProductTerms, rows: Places) -> tuple[Floats, Floats]:
    """Return which of the query's terms occur in products ``rows`` (n,): text, title; (n, Q)."""
    shape = len(rows), len(query.hashes)
    text, title = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    if 0 in shape:
        return text, title
    start, length = products.lengths(rows)
    owner = np.repeat(np.arange(len(rows)), length)
    first = np.cumsum(length) - length  # where a product's terms begin among those taken
    values = products.values[np.arange(len(owner)) + np.repeat(start - first, length)]
    at = np.searchsorted(query.hashes, values >> 1)
    at[at == len(query.hashes)] = 0
    hit = query.hashes[at] == values >> 1
    text[owner[hit], at[hit]] = 1.0
    title[owner[hit], at[hit]] = values[hit] & 1
    return text, title


def features(query: QueryTerms, products: ProductTerms, rows: Places) -> Floats:
    """Return the features (n, len(NAMES)) of one query against products ``rows`` (n,)."""
    text, title = occurrences(query, products, rows)
    made: Floats = np.zeros((len(rows), len(NAMES)), np.float32)
    made[:, 0], made[:, 2] = (title @ query.shares).T
    made[:, 1], made[:, 3] = (text @ query.shares).T
    if query.words.shape[1]:
        in_text, in_title = text @ query.words, title @ query.words  # (n, W)
        made[:, 4], made[:, 5] = _whole(in_title).mean(1), _whole(in_text).mean(1)
        made[:, 6], made[:, 7] = in_text.min(1), in_text[:, -1]
        made[:, 8] = _whole(in_text).all(1)
    if query.any_brand >= 0:
        made[:, 9] = text @ query.brands
        made[:, 10] = (text[:, query.any_brand] > 0) & (made[:, 9] == 0)
    if len(query.quantities):
        there, unit = (text[:, query.quantities[:, i]] for i in range(2))  # (n, K)
        made[:, 11], made[:, 12] = there.mean(1), (unit * (1 - there)).mean(1)
    _, length = products.lengths(rows)
    made[:, 13] = np.log((length + 1.0) / (query.size + 1.0))
    return made


def _whole(shares: Floats) -> npt.NDArray[np.bool_]:
    return shares > 1 - 1e-4  # sums of float32


def pair_features(
    queries: Sequence[str], products: Sequence[str], query: Places, product: Places,
    lexicon: Lexicon,
) -> Floats:  # fmt: skip
    """Return the features (P, len(NAMES)) of pairs, rows of two lists of texts (P,) each."""
    known = ProductTerms.of(products, lexicon.brands)
    made: Floats = np.zeros((len(query), len(NAMES)), np.float32)
    order = np.argsort(query, kind="stable")
    cuts = np.flatnonzero(np.diff(query[order])) + 1
    for rows in np.split(order, cuts) if len(order) else ():
        asked = QueryTerms.of(queries[query[rows[0]]], lexicon)
        made[rows] = features(asked, known, product[rows])
    return made
