"""Terms of texts as numbers: what of a product is kept beside its vector, and of a query asked.

A term is a 31-bit hash of its kind and its letters (CRC-32, the same for ever). Kinds: a search
token of :mod:`csrm_tasks.lexical.analyser`; a character n-gram inside a piece (single characters of
Han, kana and Hangul, whose bigrams are tokens already; trigrams of other words with their borders);
a quantity, and that its unit occurs at all; a brand, and that any brand occurs. A product's term is
twice its hash, plus 1 where the title has it: the title is what stands before the first
separator of :func:`csrm_tasks.towers.serving.texts.product_text`, the rest is brand and category.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from csrm_tasks.lexical.analyser import pieces
from csrm_tasks.lexical.brands import BrandForms
from csrm_tasks.ragged import map_rows
from csrm_tasks.text import normalise

Hashes = npt.NDArray[np.uint32]
Places = npt.NDArray[np.int64]

FILES = ("terms.bin", "term_ends.npy")  # of ProductTerms, beside the products' vectors
SEPARATOR = " | "  # between a product's title and the fields that stand behind it
TOKEN, GRAM, QUANTITY, UNIT, BRAND = range(5)  # kinds of terms
MOST = 128  # distinct terms kept of a product, 512 bytes: half of its vectors at the paper's width
_QUANTITY = re.compile(r"([\d.,]+)(.*)", re.DOTALL)
# Units that are one and the same, with how many of the right one the left one is.
_SAME_UNIT = {
    "公斤": ("g", 1000.0), "kg": ("g", 1000.0), "公克": ("g", 1.0), "mg": ("g", 0.001),
    "公升": ("ml", 1000.0), "l": ("ml", 1000.0), "毫升": ("ml", 1.0), "cl": ("ml", 10.0),
    "dl": ("ml", 100.0), "m": ("cm", 100.0), "mm": ("cm", 0.1), "lbs": ("lb", 1.0),
    "inch": ("in", 1.0), "吋": ("in", 1.0), "tb": ("gb", 1000.0), "個": ("개", 1.0),
}  # fmt: skip


class Term(NamedTuple):
    """One occurrence of a term in a text."""

    kind: int
    hash: int
    place: int  # of the piece in the normalised text


def term_hash(kind: int, letters: str) -> int:
    """Return the hash, 31 bits, of a term."""
    # The kind stands before the letters: as the checksum's start it would cancel out against one.
    return zlib.crc32(bytes([kind]) + letters.encode()) & 0x7FFFFFFF


ANY_BRAND = term_hash(BRAND, "")


def terms_of(norm: str, brands: BrandForms) -> Iterator[Term]:
    """Yield the terms of a normalised text, in order of kind and place; repetitions are kept."""
    for start, _, brand in brands.find(norm):
        yield Term(BRAND, term_hash(BRAND, brand), start)
    for kind, place, tokens in pieces(norm):
        for token in tokens:
            yield Term(TOKEN, term_hash(TOKEN, token), place)
        for gram in _grams(kind, tokens):
            yield Term(GRAM, term_hash(GRAM, gram), place)
        if kind in ("unit", "number"):
            value, unit = quantity(tokens[0])
            yield Term(QUANTITY, term_hash(QUANTITY, f"{value:.9g} {unit}"), place)
            yield Term(UNIT, term_hash(UNIT, unit), place)


def quantity(token: str) -> tuple[float, str]:
    """Return the value and unit of a number with its unit, in one unit of several that are equal.

    A comma before three digits at the end separates thousands, else decimals.
    """
    found = _QUANTITY.fullmatch(token)
    assert found is not None, token
    number, unit = found.groups()
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", number):
        number = number.replace(",", "")
    whole, *rest = re.split("[.,]", number)
    value = float(f"{whole}.{''.join(rest)}")
    unit, factor = _SAME_UNIT.get(unit, (unit, 1.0))
    return value * factor, unit


def _grams(kind: str, tokens: Sequence[str]) -> Iterable[str]:
    if kind in ("han", "hangul"):
        return [token[0] for token in tokens] + ([tokens[-1][1]] if len(tokens[-1]) > 1 else [])
    padded = f"^{tokens[0]}$"
    return [padded[i : i + 3] for i in range(len(padded) - 2)]


@dataclass(frozen=True)
class ProductTerms:
    """Terms of N products, one behind the other."""

    values: Hashes  # (T,) 2 × hash + in the title, distinct by hash and sorted within a product
    ends: Places  # (N,)

    def __len__(self) -> int:
        """Return N."""
        return len(self.ends)

    @classmethod
    def of(cls, texts: Sequence[str], brands: BrandForms) -> ProductTerms:
        """Read the terms of product texts, as the product tower reads them."""
        return cls.joined([product_terms(text, brands) for text in texts])

    @classmethod
    def joined(cls, parts: Sequence[Hashes]) -> ProductTerms:
        """Return the terms of products, each as :func:`product_terms` gives them."""
        ends = np.cumsum([len(values) for values in parts], dtype=np.int64)
        return cls(np.concatenate(parts) if parts else np.zeros(0, np.uint32), ends)

    @classmethod
    def load(cls, folder: Path) -> ProductTerms | None:
        """Open what :meth:`save` wrote, mapped from disk; None where there is nothing."""
        mapped = map_rows(folder / FILES[0], folder / FILES[1], np.uint32)
        return cls(*mapped) if mapped else None

    def save(self, folder: Path) -> None:
        """Write both files."""
        values, ends = (folder / name for name in FILES)
        self.values.astype("<u4", copy=False).tofile(values)
        np.save(ends, self.ends)

    def of_row(self, row: int) -> Hashes:
        """Return the terms of one product."""
        return self.values[self.ends[row - 1] if row else 0 : self.ends[row]]

    @cached_property
    def starts(self) -> Places:
        """Where each product's terms begin (N,): 8 bytes a product in memory."""
        return np.concatenate([np.zeros(1, np.int64), self.ends])[: len(self.ends)]

    def lengths(self, rows: Places) -> tuple[Places, Places]:
        """Return where the terms of products begin and how many they have, (n,) both."""
        start = self.starts.take(rows)
        return start, self.ends.take(rows) - start


def product_terms(text: str, brands: BrandForms) -> Hashes:
    """Return the distinct terms of a product text, sorted; see :class:`ProductTerms`.

    At most :data:`MOST`: those of the title first, and all others before character n-grams.
    """
    title, _, rest = text.partition(SEPARATOR)
    parts = ((title, 1), (rest, 0))
    read = [(term, i) for part, i in parts for term in terms_of(normalise(part), brands)]
    found: dict[int, int] = {}  # hash → in the title
    for term, inside in sorted(read, key=lambda one: one[0].kind == GRAM):
        if term.kind == BRAND:
            found.setdefault(ANY_BRAND, inside)
        found.setdefault(term.hash, inside)
    kept = list(found.items())[:MOST]
    return np.sort(np.array([2 * h + inside for h, inside in kept], dtype=np.uint32))


class TermWeights(NamedTuple):
    """Inverse document frequencies of terms; a term that is not there weighs ``rarest``."""

    hashes: Hashes  # (V,) sorted
    idf: npt.NDArray[np.float32]  # (V,)
    rarest: float

    def of(self, hashes: Hashes) -> npt.NDArray[np.float32]:
        """Return the weight of each of ``hashes``."""
        if not len(self.hashes):
            return np.full(len(hashes), self.rarest, np.float32)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        found: npt.NDArray[np.float32] = np.where(
            self.hashes[at] == hashes, self.idf[at], np.float32(self.rarest)
        )
        return found


@dataclass(frozen=True)
class Lexicon:
    """What a market's catalogue says about terms: how rare they are, and which are brands."""

    weights: TermWeights
    brands: BrandForms

    @classmethod
    def fit(cls, texts: Sequence[str], forms: Mapping[str, str]) -> Lexicon:
        """Count the terms of the distinct product ``texts``; ``forms`` maps a brand's forms to it.

        A term of one product alone is left out: its weight is that of a term unheard of.
        """
        brands = BrandForms(forms)
        products = ProductTerms.of(sorted(set(texts)), brands)
        hashes, counts = np.unique(products.values >> 1, return_counts=True)
        several = counts > 1
        n = len(products)
        idf = np.log((n + 1.0) / (counts[several] + 0.5)).astype(np.float32)
        weights = TermWeights(hashes[several], np.maximum(idf, 0.05), float(np.log((n + 1) / 1.5)))
        return cls(weights, brands)
