"""Team-draft interleaving: one list from the rankings of two releases (A57).

Radlinski, Kurup and Joachims 2008, "How does clickthrough data reflect retrieval quality?": in each
round a fair coin says which release picks first; each picks its best result that is not in the list
yet, and gets the credit for what shoppers do with it. The results that both rankings begin with are
shown in the same place whoever picks first: nobody picks them, and they give no credit. Nor does
what is left when one release, as the second to pick, could find no more: a longer list is no better
for being longer, and over the coins both have every place equally often.

The coins are bits of SHA-256 over seed, session and query, so a search that is asked again (another
page, a reload) shows the same list, in every process. Nothing but the standard library: copy this
file into a search server, as :mod:`.assignment`; ``docs/ROUTING.md`` says how it is used.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, TypeVar

Team = Literal["stable", "next"]
Item = TypeVar("Item", str, int)
BITS = 256  # of one digest


def coins(seed: str, session_id: str, query: str) -> Iterator[bool]:
    """Yield one fair coin per round: whether ``next`` picks first.

    Round r is bit r modulo 256, the most significant first, of SHA-256 over UTF-8
    ``"{seed}:interleave:{r // 256}:{session_id}:{query}"``.
    """
    block = 0
    while True:
        text = f"{seed}:interleave:{block}:{session_id}:{query}"
        bits = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
        yield from (bool(bits >> (BITS - 1 - n) & 1) for n in range(BITS))
        block += 1


def draft(
    stable: Sequence[Item], following: Sequence[Item], flips: Iterator[bool]
) -> dict[Item, Team | None]:
    """Interleave two rankings, best first; ``flips``: :func:`coins`.

    Returns every result of either once, in the order in which they are shown, and which release has
    the credit for it (None: neither).
    """
    picked: dict[Item, Team | None] = dict.fromkeys(stable[: _prefix(stable, following)])
    left: deque[Item] = deque(dict.fromkeys(stable))
    right: deque[Item] = deque(dict.fromkeys(following))
    while True:
        theirs, ours = _best_two(left, picked), _best_two(right, picked)
        if not _both_can(ours, theirs):
            for rest in (left, right):
                for item in rest:
                    picked.setdefault(item, None)
            return picked
        if next(flips):
            picked[ours[0]] = "next"
            picked[next(i for i in theirs if i not in picked)] = "stable"
        else:
            picked[theirs[0]] = "stable"
            picked[next(i for i in ours if i not in picked)] = "next"


def _both_can(ours: Sequence[Item], theirs: Sequence[Item]) -> bool:
    """Whether each release has something to pick, whichever picks first: else places are unfair."""
    if not ours or not theirs:
        return False
    return ours[0] != theirs[0] or len(ours) == len(theirs) == 2


def _best_two(left: deque[Item], picked: Mapping[Item, Team | None]) -> list[Item]:
    """Return the first two that are not picked; what was picked leaves the front for good."""
    while left and left[0] in picked:
        left.popleft()
    return list(islice((i for i in left if i not in picked), 2))


def _prefix(one: Sequence[Item], other: Sequence[Item]) -> int:
    """Return how many results both begin with, in the same order."""
    for n, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return n
    return min(len(one), len(other))
