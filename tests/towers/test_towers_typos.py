"""Misspelt copies of queries: same pairs, same targets, one slip."""

from __future__ import annotations

from collections import Counter

import numpy as np

from csrm_tasks.towers.examples import Examples
from csrm_tasks.towers.typos import with_typos
from csrm_tasks.training.misspelling import misspelt


def examples(queries: list[str]) -> Examples:
    rng = np.random.default_rng(0)
    query = np.repeat(np.arange(len(queries)), 3)
    targets = rng.random((2, len(query))).astype(np.float32)
    return Examples(queries, [f"p{i}" for i in range(9)], query, rng.integers(0, 9, len(query)),
                    *targets)  # fmt: skip


def test_copies_have_the_pairs_and_targets_of_what_was_meant() -> None:
    before = examples(["".join(chr(0x4E00 + 5 * i + k) for k in range(5)) for i in range(200)])
    after = with_typos(before, 0.3, seed=1)
    assert after.queries[:200] == before.queries
    assert 30 < len(after.queries) - 200 < 90
    assert (np.diff(after.query) >= 0).all()  # sorted by query, as batches need it
    meant = {}
    for text in after.queries[200:]:
        (meant[text],) = (q for q in before.queries if one_slip(q, text))

    def pairs(one: Examples, text: str) -> list[tuple[int, float, float]]:
        rows = one.query == one.queries.index(text)
        return list(zip(one.product[rows].tolist(), one.exact[rows].tolist(),
                        one.irrelevant[rows].tolist(), strict=True))  # fmt: skip

    for text, query in meant.items():
        assert pairs(after, text) == pairs(before, query)
    for query in before.queries:
        assert pairs(after, query) == pairs(before, query)


def one_slip(text: str, slip: str) -> bool:
    """Every single drop and every swap of neighbours, tried one by one."""
    dropped = {text[:i] + text[i + 1 :] for i in range(len(text))}
    swapped = {
        text[:i] + text[i + 1] + text[i] + text[i + 2 :] for i in range(len(text) - 1)
    }  # fmt: skip
    return slip in dropped | swapped


def test_seeded_and_nothing_where_none_is_wanted() -> None:
    before = examples(["紅色茶壺", "傘", "大 包"])
    assert with_typos(before, 0.0, seed=0).queries == before.queries
    assert with_typos(before, 1.0, seed=3).queries == with_typos(before, 1.0, seed=3).queries
    assert len(with_typos(before, 1.0, seed=0).queries) == 4  # two letters are too few for a slip


def test_no_copy_is_a_text_that_is_held_out() -> None:
    """A slip of a train query may be what gold asks: then there is no such copy."""
    before = examples(["紅色茶壺"] * 200)
    slips = set(with_typos(before, 1.0, seed=0).queries) - {"紅色茶壺"}
    barred = set(sorted(slips)[:3])
    after = with_typos(before, 1.0, seed=0, barred=barred)
    assert len(barred) == 3
    assert set(after.queries) == {"紅色茶壺"} | slips - barred
    assert after.query.max() == len(after.queries) - 1


def test_letters_slip_and_spaces_do_not() -> None:
    rng = np.random.default_rng(0)
    found = Counter(misspelt("ab cd", rng) for _ in range(400))
    assert set(found) == {"b cd", "a cd", "ab d", "ba cd", "ac bd", "ab dc"}
    assert min(found.values()) > 20
