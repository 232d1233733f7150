"""What a study says of a claim once its intervals are there: one rule, set before the seeds ran.

::

    rule      holds where all intervals are  does not hold where all are
    gain      above 0                        below the smallest that matters
    no loss   above minus the smallest       below 0
    bar       at the bar or above            below the bar

Anything else is *not decided*.
"""

from __future__ import annotations

from typing import Literal

from csrm_tasks.evaluation.paired import Interval

Rule = Literal["gain", "no loss", "bar"]
SMALLEST = 0.005  # RQA* over RQA in paper 1, table 2: half a point
OPEN = "not decided"


def verdict(rule: Rule, *intervals: Interval, smallest: float = SMALLEST, bar: float = 0.0) -> str:
    """Return what the intervals together decide; an interval without ends decides nothing."""
    if rule == "bar":
        holds, fails = all(x.lo >= bar for x in intervals), all(x.hi < bar for x in intervals)
    else:
        least, most = (0.0, smallest) if rule == "gain" else (-smallest, 0.0)
        holds, fails = all(x.lo > least for x in intervals), all(x.hi < most for x in intervals)
    if holds:
        return "holds"
    return "does not hold" if fails else OPEN
