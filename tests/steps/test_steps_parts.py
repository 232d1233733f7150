"""Parts that a step puts together: all, once each, in order, and made of what it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import DataError
from csrm_tasks.steps.parts import check_parts, shards

CALLED = "shard {shard} of {of} of this snapshot; give them all, in order"


def part(shard: int, of: int, snapshot: str) -> Artifact:
    return Artifact(
        f"m/s/{shard}-{of}-{snapshot}", "d", Path(), {"shard": shard, "of": of, "pairs": 3},
        {"snapshot": snapshot}, {},
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from("ab")), max_size=5),
    st.integers(1, 4),
)
def test_only_the_whole_in_order_passes(rows: list[tuple[int, int, str]], of: int) -> None:
    parts = [part(*row) for row in rows]
    whole = rows == [(k, of, "a") for k in range(of)]
    try:
        check_parts(parts, shards(of), lambda x: x.inputs["snapshot"] == "a", CALLED)
    except DataError as e:
        assert not whole and "give them all, in order" in str(e)
        wrong = next((k for k, r in enumerate(rows[:of]) if r != (k, of, "a")), None)
        if wrong is not None:
            assert str(e) == (
                f"{parts[wrong].ref} is not shard {wrong} of {of} of this snapshot; give them all, "
                "in order"
            )
    else:
        assert whole


def test_a_part_without_its_facts_is_none() -> None:
    bare = Artifact("m/s/x", "d", Path(), {}, {}, {})
    with pytest.raises(DataError, match="m/s/x is not shard 0 of 1 of this"):
        check_parts([bare], shards(1), lambda _: True, CALLED)
    check_parts([], [], lambda _: True, CALLED)
