"""Team-draft interleaving: the list, its fairness, the always-valid preference, and the check."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import islice, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from csrm_tasks.release.interleaving import coins, draft
from csrm_tasks.release.online.checks import PLANNED, OnlineEvidence, evaluate_step, share_of_alpha
from csrm_tasks.release.online.preference import Preferences, preference
from csrm_tasks.release.online.sequential import boundary, rho_for
from csrm_tasks.sections import Rollout, Step

RANKING = st.lists(st.integers(0, 7), max_size=8)
FLIPS = st.lists(st.booleans(), min_size=12, max_size=12)


def textbook(stable: list[int], following: list[int], flips: list[bool]) -> list[tuple]:
    """Round by round, with lists that are searched from the front each time."""
    shown: list[tuple] = []
    for a, b in zip(stable, following, strict=False):
        if a != b:
            break
        if (a, None) not in shown:
            shown.append((a, None))
    for flip in flips:
        orders = []
        for order in (("next", "stable"), ("stable", "next")):
            picks: list[tuple] = []
            for name in order:
                ranking = following if name == "next" else stable
                free = [i for i in ranking if i not in [s for s, _ in shown + picks]]
                picks += [(free[0], name)] if free else []
            orders.append(picks)
        if min(map(len, orders)) < 2:
            break
        shown += orders[0 if flip else 1]
    for item in stable + following:
        if item not in [s for s, _ in shown]:
            shown.append((item, None))
    return shown


@settings(max_examples=500)
@given(RANKING, RANKING, FLIPS)
def test_the_draft_is_the_textbooks(stable: list, following: list, flips: list) -> None:
    found = draft(stable, following, iter(flips))
    assert list(found.items()) == textbook(stable, following, flips)
    assert set(found) == {*stable, *following}


@settings(max_examples=200)
@given(RANKING, RANKING, FLIPS)
def test_swapping_rankings_and_coins_swaps_the_teams(one: list, other: list, flips: list) -> None:
    swapped = draft(other, one, (not f for f in flips))
    names = {"next": "stable", "stable": "next", None: None}
    credited = {i: t for i, t in draft(one, other, iter(flips)).items() if t}
    assert {i: names[t] for i, t in swapped.items() if t} == credited


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(5)), st.permutations(range(6)))
def test_who_clicks_by_place_alone_prefers_neither(stable: list, following: list) -> None:
    """Over all coins each release has each place equally often: lists of other lengths, too."""
    at_place = np.zeros(6)
    for flips in product((False, True), repeat=4):
        teams = list(draft(stable, following, iter(flips)).values())
        at_place += [{"next": 1, "stable": -1, None: 0}[t] for t in teams]
    assert not at_place.any()


def test_what_both_begin_with_gives_no_credit_and_identical_rankings_none_at_all() -> None:
    found = draft(["a", "b", "c", "d"], ["a", "b", "d", "c"], iter([True, True]))
    assert found == {"a": None, "b": None, "d": "next", "c": "stable"}
    same = ["a", "b", "c"]
    assert draft(same, same, coins("s", "u", "q")) == dict.fromkeys(same)


def test_coins_are_the_bits_of_the_digest_and_the_same_for_the_same_search() -> None:
    expected = "".join(
        f"{int(hashlib.sha256(f'm:r2:interleave:{n}:s1:紅色 茶壺'.encode()).hexdigest(), 16):0256b}"
        for n in (0, 1)
    )
    drawn = islice(coins("m:r2", "s1", "紅色 茶壺"), 512)
    assert "".join(str(int(flip)) for flip in drawn) == expected
    other = islice(coins("m:r2", "s2", "紅色 茶壺"), 512)
    assert "".join(str(int(flip)) for flip in other) != expected
    first = [next(coins("m:r2", f"s{n}", "q")) for n in range(4_000)]
    assert abs(sum(first) - 2_000) < 4 * np.sqrt(1_000)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_preferences_are_means_over_sessions_that_have_one(credits_: list) -> None:
    total, squares, sessions = 0.0, 0.0, 0
    for ours, theirs in credits_:
        if ours or theirs:
            d = (ours - theirs) / (ours + theirs)
            total, squares, sessions = total + d, squares + d * d, sessions + 1
    found = preference(Preferences.of(credits_), 0.05, 100)
    swapped = preference(Preferences.of([(b, a) for a, b in credits_]), 0.05, 100)
    if found is None or swapped is None:
        assert sessions == 0 and found is swapped
        return
    half = boundary(squares, rho_for(100, 0.05), 0.05) / sessions
    assert found.value == pytest.approx(total / sessions)
    assert (found.lo, found.hi) == pytest.approx((found.value - half, found.value + half))
    assert (swapped.lo, swapped.hi) == pytest.approx((-found.hi, -found.lo))
    middle = len(credits_) // 2
    parts = Preferences.of(credits_[:middle]) + Preferences.of(credits_[middle:])
    assert preference(parts, 0.05, 100).value == pytest.approx(found.value)  # type: ignore[union-attr]


def test_equal_releases_are_called_different_at_most_alpha_of_the_time_at_every_session() -> None:
    """Heavy and light sessions, small samples, a look after each one."""
    rng, alpha, wrong = np.random.default_rng(3), 0.05, 0
    for _ in range(2_000):
        clicks = rng.geometric(0.5, 200)
        ours = rng.binomial(clicks, 0.5)
        d = (2 * ours - clicks) / clicks
        total, squares = np.cumsum(d), np.cumsum(d * d)
        rho = rho_for(100, alpha)
        bound = np.sqrt((squares + rho) * np.log((squares + rho) / (rho * alpha**2)))
        wrong += bool((np.abs(total) >= bound).any())
    assert 0 < wrong <= 2_000 * alpha


INTERLEAVED = Step(weight=0, interleave=20, sessions=500)
PLAN = Rollout(steps=(INTERLEAVED,), error_margin=None, latency_ratio=None)


@pytest.mark.parametrize(
    ("preferences", "outcome", "checks"),
    [
        (Preferences(), "ERROR", {"interleaved": "ERROR"}),
        (Preferences(3_000, 300, 2_500), "SUCCESS", {"preference": "SUCCESS"}),
        (Preferences(3_000, -20, 2_500), "SUCCESS", {"preference": "SUCCESS"}),
        (Preferences(3_000, -900, 2_500), "FAILURE", {"preference": "FAILURE"}),
        (Preferences(500, -50, 400), "INCONCLUSIVE", {"preference": "INCONCLUSIVE"}),
        (Preferences(499, 480, 499), "INCONCLUSIVE", {"interleaved": "INCONCLUSIVE"}),
    ],
)
def test_truth_table(preferences: Preferences, outcome: str, checks: dict) -> None:
    evidence = OnlineEvidence(preferences=preferences)
    total, found = evaluate_step(INTERLEAVED, PLAN, evidence)
    assert total == outcome
    assert checks.items() <= {c.name: c.outcome for c in found}.items()


def test_the_bounds_of_a_check_are_those_of_the_preference() -> None:
    seen = Preferences(3_000, -20, 2_500)
    found = evaluate_step(INTERLEAVED, PLAN, OnlineEvidence(preferences=seen))[1]
    assert found[-1].found == preference(seen, share_of_alpha(PLAN), PLANNED)


def test_six_checks_share_alpha_only_where_a_plan_interleaves() -> None:
    assert share_of_alpha(PLAN) == pytest.approx(2 * 0.05 / 6)
    assert share_of_alpha(Rollout()) == 2 * 0.05 / 5
    split = INTERLEAVED.model_copy(update={"interleave": 0})
    plan = PLAN.model_copy(update={"steps": (split,)})
    assert evaluate_step(split, plan, OnlineEvidence()) == ("SUCCESS", [])
    later = evaluate_step(split, PLAN, OnlineEvidence(preferences=Preferences(3_000, -900, 2_500)))
    assert later[0] == "FAILURE"  # what a step before it has shown counts on


def test_a_step_shares_out_all_sessions_and_steps_rise() -> None:
    assert Step(weight=10, interleave=20).share == 10 / 80
    assert Step(weight=0, interleave=100).share == 0.0
    assert Step(weight=1).share == 1 / 100
    Rollout(steps=(Step(weight=0), INTERLEAVED, Step(weight=1), Step(weight=1, interleave=5)))
    with pytest.raises(ValidationError, match="keep them below 100 together"):
        Step(weight=50, interleave=50)
    with pytest.raises(ValidationError, match="must be above the one before"):
        Rollout(steps=(Step(weight=1), INTERLEAVED))
    with pytest.raises(ValidationError, match="must be above the one before"):
        Rollout(steps=(INTERLEAVED, replace_weight(INTERLEAVED)))


def replace_weight(step: Step) -> Step:
    """The same step with fewer interleaved sessions."""
    return step.model_copy(update={"interleave": step.interleave - 1})


def test_evidence_without_interleaving_is_judged_as_before() -> None:
    evidence = OnlineEvidence()
    assert replace(evidence, preferences=Preferences()) == evidence
