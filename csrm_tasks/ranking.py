"""The one order of results: of a search, of an audit by raters, of EM@1 and Defect@5.

It lies below all rooms, since the service, ``release.online`` and ``evaluation`` rank by it, and
``release`` stands above ``evaluation`` (numpy only).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TOP = 5  # results of Defect@5  # A43


def best_first(scores: Floats | Sequence[float | None], groups: Ints | None = None) -> Ints:
    """Return the positions (N,) of ``scores`` (N,), best first; ties keep the order given.

    NaN or None is no score: it comes last, in the order given, after -inf. With ``groups`` (N,),
    each group is ranked by itself, and groups follow each other by their number.
    """
    falling = -np.asarray(scores, np.float64)  # numpy sorts NaN last
    return np.lexsort((falling,) if groups is None else (falling, groups)).astype(np.int64)


def places(groups: Ints) -> Ints:
    """Return the place (N,), from 0, of each row within its group; ``groups`` (N,) ascending."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)
