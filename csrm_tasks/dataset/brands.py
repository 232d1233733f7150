"""Which brand a query names: a dictionary of the catalogue's brands and their translations.

The longest form wins. Chinese and Japanese forms match anywhere, for those scripts run words
together; a form that begins or ends in another script (Latin, Hangul, digits) must begin or end at
a word boundary there, as "mi" is no brand in "mini". A form of one character counts only as a
whole word.

A column is matched at once: polars finds every occurrence of every form (Aho-Corasick, in Rust),
and which of them stand alone is decided over arrays of code points, without a loop over queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.text import normalise

Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
SEPARATOR = "\n"  # between texts; stands for "nothing here"


class BrandDictionary:
    """Forms of brands, all looked for together."""

    def __init__(self, forms: Mapping[str, str]) -> None:
        """Take normalised form → brand as it is to be reported."""
        self._forms = pl.Series("form", list(forms), dtype=pl.String)
        self._brands = pl.Series("brand", list(forms.values()), dtype=pl.String)

    def match(self, norms: pl.Series) -> pl.Series:
        """Return the brand of the longest form (the first of equals) in each norm, or ""."""
        empty = pl.Series(norms.name, [""], dtype=pl.String).new_from_index(0, norms.len())
        hits = self._hits(norms)
        if hits.is_empty():
            return empty
        joined = SEPARATOR + norms.str.join(SEPARATOR).item() + SEPARATOR
        start = _characters(joined)[_texts(norms)[hits["row"].to_numpy()] + hits["byte"].to_numpy()]
        length = hits["form"].str.len_chars().to_numpy().astype(np.int64)
        points = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        alone = _stands_alone(points, start, start + length)
        best = (
            hits.with_columns(pl.Series("start", start), pl.Series("length", length))
            .filter(pl.Series(alone))
            .sort("row", "length", "start", descending=[False, True, False])
            .unique("row", keep="first", maintain_order=True)
        )
        brands = best["form"].replace_strict(self._forms, self._brands, return_dtype=pl.String)
        return empty.scatter(best["row"], brands)

    def _hits(self, norms: pl.Series) -> pl.DataFrame:
        """Return row, form and byte (offset in the text) of every occurrence."""
        text = pl.col("text")
        return (
            norms.alias("text").to_frame().with_row_index("row")
            .select(
                "row",
                text.str.extract_many(self._forms.implode(), overlapping=True).alias("form"),
                text.str.find_many(self._forms.implode(), overlapping=True).alias("byte"),
            )
            .filter(pl.col("form").list.len() > 0)
            .explode("form", "byte")
        )  # fmt: skip


def build_brands(names: Iterable[str], aliases: Iterable[tuple[str, str]]) -> BrandDictionary:
    """Build a locale's dictionary from its catalogue's brand names and pairs of equal names.

    An alias leads to the catalogue's spelling of its partner where there is one, else to its
    partner as given; a catalogue name leads to itself. The result does not depend on any order.
    """
    own: dict[str, str] = {}
    for name in sorted(set(names)):
        own.setdefault(normalise(name), name)
    forms: dict[str, str] = {}
    for alias, partner in sorted(set(aliases)):
        forms.setdefault(normalise(alias), own.get(normalise(partner), partner))
    forms |= own
    forms.pop("", None)
    return BrandDictionary(forms)


def _characters(joined: str) -> Places:
    """Return, for every byte of the UTF-8 text, the place of its character."""
    begins = (np.frombuffer(joined.encode(), np.uint8) & 0xC0) != 0x80  # no continuation byte
    return np.cumsum(begins, dtype=np.int64) - 1


def _texts(norms: pl.Series) -> Places:
    """Return the byte of the joined text at which each norm begins."""
    sizes = norms.str.len_bytes().to_numpy().astype(np.int64) + 1
    return np.asarray(np.cumsum(sizes) - sizes + 1)


def _stands_alone(points: npt.NDArray[np.uint32], start: Places, end: Places) -> Flags:
    """Return which forms between two places are not part of a longer word."""
    single = end - start == 1
    left = _boundary(points[start], points[start - 1], single)
    return np.asarray(left & _boundary(points[end - 1], points[end], single))


def _boundary(
    inside: npt.NDArray[np.uint32], outside: npt.NDArray[np.uint32], single: Flags
) -> Flags:
    # A change between a run-together script and another is a boundary: "lg冰箱".
    change = _run_together(inside) | _run_together(outside)
    return np.asarray(~_words()[outside] | (change & ~single))


@cache
def _words() -> Flags:
    """Return by code point whether it is a letter or a digit."""
    return np.fromiter((chr(c).isalnum() for c in range(0x110000)), bool, 0x110000)


def _run_together(points: npt.NDArray[np.uint32]) -> Flags:
    """Return which code points are Han, Hiragana, Katakana or Bopomofo."""
    low = (points >= 0x2E80) & (points <= 0x312F)
    return np.asarray(low | ((points >= 0x31A0) & (points <= 0x9FFF)) | (points >= 0x20000))
