"""The ledger: append-only, chained, conditional, idempotent; who was live when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from csrm_tasks.errors import RefusedError
from csrm_tasks.release import ledger
from csrm_tasks.release.ledger import Entry, Precondition
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, writing
from csrm_tasks.store.models import LedgerEntry


def add(
    settings: Settings, action: ledger.Action, release: str, market: str = "m", **more: object
) -> Entry:
    given = {"actor": "tester", "reason": "test", "payload": {"bundle": f"b/{release}"}, **more}
    return ledger.append(settings, market, action, release, **given)  # type: ignore[arg-type]


def test_rows_chain_from_genesis_per_market(settings: Settings) -> None:
    first = add(settings, "registered", "r1")
    second = add(settings, "promoted", "r1", expected=Precondition(None))
    other = add(settings, "registered", "x1", market="other")
    assert (first.seq, first.prev_hash) == (1, ledger.GENESIS)
    assert (second.seq, second.prev_hash) == (2, first.hash)
    assert (other.seq, other.prev_hash) == (1, ledger.GENESIS)
    assert ledger.verified(settings, "m") == [first, second]


def test_saying_the_same_twice_is_one_row(settings: Settings) -> None:
    assert add(settings, "registered", "r1") == add(settings, "registered", "r1")
    one = add(settings, "promoted", "r1", expected=Precondition(None))
    again = add(
        settings, "promoted", "r1", expected=Precondition(None), payload={"verdict": "other"}
    )
    assert again == one
    assert len(ledger.history(settings, "m")) == 2


def test_a_new_verdict_is_a_new_registration(settings: Settings) -> None:
    add(settings, "registered", "r1", payload={"verdict": "a"})
    add(settings, "registered", "r1", payload={"verdict": "b"})
    rows = ledger.history(settings, "m")
    assert [e.payload["verdict"] for e in rows] == ["a", "b"]
    assert ledger.find(rows, "registered", "r1", verdict="b") == rows[1]
    assert ledger.find(rows, "registered", "r1", verdict="c") is None


def test_of_two_promoters_one_wins_and_the_other_is_told(settings: Settings) -> None:
    add(settings, "promoted", "r1", expected=Precondition(None))
    add(settings, "promoted", "r2", expected=Precondition("r1"))
    with pytest.raises(RefusedError, match="expected r1 to be live in m, but r2 is"):
        add(settings, "promoted", "r3", expected=Precondition("r1"))
    assert ledger.live(ledger.verified(settings, "m")) == "r2"


def test_live_follows_promotions_and_rollbacks_through_time(settings: Settings) -> None:
    assert ledger.live([]) is None
    rows = [add(settings, "promoted", r) for r in ("r1", "r2")]
    rows.append(add(settings, "rolled_back", "r1"))
    rows.append(add(settings, "promoted", "r3"))
    rows.append(add(settings, "rolled_back", "r1"))
    assert len(ledger.verified(settings, "m")) == 5  # the second way back to r1 is a row as well
    assert [ledger.live(rows, e.at) for e in rows] == ["r1", "r2", "r1", "r3", "r1"]
    assert ledger.live(rows, "2001-01-01") is None
    assert ledger.live_stack(rows[:4]) == ["r1", "r3"]
    with pytest.raises(RefusedError, match="is not a time"):
        ledger.live(rows, "yesterday")


def test_a_release_that_was_rolled_back_is_not_promoted_by_a_rerun(settings: Settings) -> None:
    add(settings, "promoted", "r1")
    first = add(settings, "promoted", "r2")
    add(settings, "rolled_back", "r1")
    assert add(settings, "promoted", "r2") == first
    assert ledger.live(ledger.verified(settings, "m")) == "r1"


@pytest.mark.parametrize(
    ("seq", "change"),
    [(1, {"reason": "better"}), (2, {"release_id": "r9"}), (2, {"payload": {}}), (3, {"at": "x"})],
)
def test_a_changed_row_is_found_and_nothing_is_appended(
    settings: Settings, seq: int, change: dict[str, object]
) -> None:
    for release in ("r1", "r2", "r3"):
        add(settings, "promoted", release)
    table = LedgerEntry.__table__
    with writing(open_store(settings.db_url), "m") as connection:
        connection.execute(sa.update(table).where(table.c.seq == seq).values(**change))
    with pytest.raises(RefusedError, match=f"row {seq} was changed"):
        ledger.verified(settings, "m")
    with pytest.raises(RefusedError, match=f"row {seq} was changed"):
        add(settings, "promoted", "r4")


def test_a_removed_or_reordered_row_is_found(settings: Settings) -> None:
    rows = [add(settings, "promoted", r) for r in ("r1", "r2", "r3")]
    with pytest.raises(RefusedError, match="row 2 is missing"):
        ledger.verify([rows[0], rows[2]])
    with pytest.raises(RefusedError, match="row 1 is missing"):
        ledger.verify(rows[1:])
    renumbered = [rows[0], replace(rows[2], seq=2)]
    with pytest.raises(RefusedError, match="row 2 was changed"):
        ledger.verify(renumbered)
