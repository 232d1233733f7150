"""Gold from people outside: what of a judged set can be held out, and what has to be settled first.

A pair that its raters judge alike is gold; one that they do not is settled by a named adjudicator,
whose word alone then counts, or left out until there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csrm_tasks.judgements.formats.book import Judgement
from csrm_tasks.text import normalise

DECIDED_QUERIES, DECIDED_MARGIN = 300, 0.03  # docs/GATE.md; intervals narrow with the root


@dataclass(frozen=True)
class Settled:
    """Positions of the judgements that are no gold; the others are."""

    disputed: list[int]  # the raters differ, and no adjudicator has spoken
    overruled: list[int]  # an adjudicator has spoken for them


def settle(judgements: Sequence[Judgement], adjudicator: str | None) -> Settled:
    """Return what of judgements (with grades) cannot be gold."""
    pairs: dict[tuple[str, str], list[int]] = {}
    for n, one in enumerate(judgements):
        pairs.setdefault((normalise(one.query), one.product_id), []).append(n)
    found = Settled([], [])
    for positions in pairs.values():
        if len({judgements[n].grade for n in positions}) > 1:
            last = [n for n in positions if judgements[n].rater == adjudicator]
            others = [n for n in positions if n not in last]
            (found.overruled if last else found.disputed).extend(others)
    return Settled(sorted(found.disputed), sorted(found.overruled))


def margin(queries: int) -> float:
    """Return from about which difference of F1 on so many gold queries can decide."""
    return float(DECIDED_MARGIN * (DECIDED_QUERIES / queries) ** 0.5)
