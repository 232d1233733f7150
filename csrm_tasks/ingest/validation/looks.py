"""A look at a whole column of texts, which tells what hardly any column needs.

Trimming and checking value by value costs ten times as much as looking through all bytes at once,
and in most columns of most files there is nothing to trim and nothing wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

LINE = "\n"
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """What may be in a column; that it *may* be there says nothing of how many values."""

    trimmed: bool  # printable ASCII only, no space at either end, nothing empty
    nul: bool  # a NUL character
    decimal: bool  # a whole number written as a decimal: 7.0
    longest: int  # bytes


def look(texts: pl.Series) -> Look:
    """Look through a column of strings; nulls are not seen."""
    joined = texts.str.join(LINE).cast(pl.Binary).item() or b""
    codes = np.frombuffer(b"\n%b\n" % joined, np.uint8)
    points = np.flatnonzero(codes == ord("."))
    return Look(
        trimmed=_trimmed(codes, texts.len() - texts.null_count()),
        nul=bool(codes.min() == 0),
        decimal=bool((codes[points + 1] == ord("0")).any()),
        longest=int(texts.str.len_bytes().max() or 0),  # type: ignore[arg-type]
    )


def _trimmed(codes: Codes, values: int) -> bool:
    """``codes``: the bytes of all values, a line feed before and behind each."""
    odd = (codes < ord(" ")) | (codes > ord("~"))
    lines = np.flatnonzero(codes == ord(LINE))
    if np.count_nonzero(odd) != lines.size or lines.size > values + 1:
        return False
    spaces = np.flatnonzero(codes == ord(" "))
    around = np.concatenate([codes[spaces - 1], codes[spaces + 1], codes[lines[:-1] + 1]])
    return bool((around != ord(LINE)).all())
