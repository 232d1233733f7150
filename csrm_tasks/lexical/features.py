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

from csrm_tasks.lexical.brands import BrandForms
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
Marks = npt.NDArray[np.bool_]

MASK = np.uint32(2**13 - 1)
TITLE = np.uint32(1)  # of a product's term: the title has it

WHOLE = 1 - 1e-4  # of a word; sums of float32
NO_BRANDS = BrandForms({})

VERSION = 2  # of terms, features and what is made of them; .evidence reads 1, too
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
    parts: Floats  # (Q, 2 + W + B): what share of a part each term is; a column sums to 1 or 0.
    # Tokens and brands by weight; character n-grams; W words by weight; and with brands (B = 2)
    # all of them, and that a product has any.
    words: int  # W
    brands: bool
    quantities: Places  # (K, 2) rows of a quantity and of its unit

    @classmethod
    def of(cls, query: str, lexicon: Lexicon) -> QueryTerms:
        """Read a query, normalised or as typed."""
        norm = normalise(query)
        spans = lexicon.brands.find(norm)
        brands = [t for t in terms_of(norm, lexicon.brands) if t.kind == BRAND] if spans else []
        plain = list(terms_of(_without(norm, spans), NO_BRANDS))
        anyone = [Term(BRAND, ANY_BRAND, 0)] if brands else []
        hashes = np.array(sorted({t.hash for t in (*brands, *plain, *anyone)}), dtype=np.uint32)
        row = {int(h): i for i, h in enumerate(hashes)}
        tokens, grams = ([t for t in plain if t.kind == kind] for kind in (TOKEN, GRAM))
        words = _words(norm, brands, tokens)
        weight, alike = lexicon.weights.of(hashes), np.ones(len(row), np.float32)
        columns = [_share([*brands, *tokens], row, weight), _share(grams, row, alike)]
        columns += [_share(word, row, weight) for word in words]
        columns += [_share(x, row, alike) for x in ((brands, anyone) if brands else ())]
        parts = np.stack(columns, 1)
        return cls(hashes, parts, len(words), bool(brands), _quantities(plain, row))


def _without(norm: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """Return the text with the brands blanked, every other character in its place."""
    for start, end, _ in spans:
        norm = norm[:start] + " " * (end - start) + norm[end:]
    return norm


def _share(found: Sequence[Term], row: dict[int, int], weight: Floats) -> Floats:
    """Return (Q,): the weights of the distinct terms of ``found``, over their sum."""
    share: Floats = np.zeros(len(row), np.float32)
    at = sorted({row[t.hash] for t in found})
    share[at] = weight[at]
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


def occurrences(query: QueryTerms, products: ProductTerms, rows: Places) -> tuple[Floats, Places]:
    """Return which of the query's terms occur in products ``rows`` (n,), and the products' sizes.

    (2, n, Q): in the text, in the title; (n,) distinct terms.
    """
    found: Floats = np.zeros((2, len(rows), len(query.hashes)), np.float32)
    start, length = products.lengths(rows)
    if not found.size:
        return found, length
    ends = np.cumsum(length)  # where a product's terms end among those taken
    values = products.values.take(np.arange(ends[-1]) + np.repeat(start - ends + length, length))
    # Nearly all terms are none of the query's: the last bits of their hashes tell most of it.
    marked: Marks = np.zeros(MASK + 1, bool)
    either = (query.hashes << 1) & MASK
    marked[either] = marked[either | TITLE] = True
    near = marked.take(values & MASK).nonzero()[0]
    values = values.take(near)
    hashes = values >> 1
    at = np.searchsorted(query.hashes[:-1], hashes)  # what is beyond all stands at the last
    hit = np.flatnonzero(query.hashes.take(at) == hashes)
    owner, at = np.searchsorted(ends, near[hit], side="right"), at[hit]
    found[0, owner, at] = 1.0
    found[1, owner, at] = values[hit] & 1
    return found, length


def features(query: QueryTerms, products: ProductTerms, rows: Places) -> Floats:
    """Return the features (n, len(NAMES)) of one query against products ``rows`` (n,).

    A request waits for it, so it takes few and whole steps: in a tight loop some 50 µs for 100.
    """
    n, w = len(rows), query.words
    found, length = occurrences(query, products, rows)
    # (2, n, 2 + W + B): of each part, the share that is in the text, in the title
    flat = found.reshape(2 * n, len(query.hashes))
    shares = (flat @ query.parts).reshape(2, n, query.parts.shape[1])
    text, title = shares
    made: Floats = np.zeros((n, len(NAMES)), np.float32)
    made[:, 0:4:2], made[:, 1:4:2] = title[:, :2], text[:, :2]
    if w:
        words = shares[:, :, 2 : 2 + w]
        whole = np.add.reduce(words > WHOLE, axis=2, dtype=np.float32)  # (2, n) words
        made[:, 4], made[:, 5] = whole[1] / w, whole[0] / w
        made[:, 6], made[:, 7] = np.minimum.reduce(words[0], axis=1), words[0, :, -1]
        made[:, 8] = whole[0] == w
    if query.brands:
        made[:, 9] = text[:, 2 + w]
        made[:, 10] = (text[:, 3 + w] > 0) & (text[:, 2 + w] == 0)
    if len(query.quantities):
        there, unit = found[0][:, query.quantities[:, 0]], found[0][:, query.quantities[:, 1]]
        made[:, 11], made[:, 12] = there.mean(1), (unit * (1 - there)).mean(1)
    made[:, 13] = np.log((length + 1.0) / (len(query.hashes) + 1.0))
    return made


def pair_features(
    queries: Sequence[str], products: Sequence[str], query: Places, product: Places,
    lexicon: Lexicon,
) -> Floats:  # fmt: skip
    """Return the features (P, len(NAMES)) of pairs, rows of two lists of texts (P,) each."""
    known = ProductTerms.of(products, lexicon.brands)
    return known_features(queries, known, query, product, lexicon)


def known_features(
    queries: Sequence[str], products: ProductTerms, query: Places, product: Places,
    lexicon: Lexicon,
) -> Floats:  # fmt: skip
    """Return the same (P, len(NAMES)) where the products' terms are there already."""
    made: Floats = np.zeros((len(query), len(NAMES)), np.float32)
    order = np.argsort(query, kind="stable")
    cuts = np.flatnonzero(np.diff(query[order])) + 1
    for rows in np.split(order, cuts) if len(order) else ():
        asked = QueryTerms.of(queries[query[rows[0]]], lexicon)
        made[rows] = features(asked, products, product[rows])
    return made
