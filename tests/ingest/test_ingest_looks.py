"""A look at a column tells what a slow look at every value tells, or less: never that all is well
when it is not.
"""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.ingest.validation.looks import Look, look
from csrm_tasks.ingest.validation.validate import UNSEEN

ODD = st.sampled_from(
    ["", " ", "a", "7.0", ".", ".0", "\n", "\0", "\t", "é", "라면", "\u3000", "~"]
)
TEXT = st.one_of(st.none(), st.lists(ODD, max_size=3).map("".join), st.just("plain text"))


def slow(values: list[str | None]) -> Look:
    texts = [v for v in values if v is not None]
    return Look(
        trimmed=all(t.isascii() and t.isprintable() and t == t.strip(UNSEEN) != "" for t in texts),
        nul=any("\0" in t for t in texts),
        decimal=any(".0" in t for t in texts),
        longest=max((len(t.encode()) for t in texts), default=0),
    )


@settings(max_examples=2_000)
@given(st.lists(TEXT, max_size=5))
def test_a_look_is_what_a_loop_over_the_values_sees(values: list[str | None]) -> None:
    found, sure = look(pl.Series(values, dtype=pl.String)), slow(values)
    if not any(v is not None for v in values):
        return  # nothing is seen, whatever it says
    assert found == sure


def test_a_plain_column_is_seen_as_trimmed() -> None:
    assert look(pl.Series(["l0-1", None, "two words", "x"])) == Look(True, False, False, 9)
