"""The gate's truth table: what passes, what fails, and everything that must never pass."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from csrm_tasks.errors import RefusedError
from csrm_tasks.evaluation import checks, gate
from csrm_tasks.evaluation.checks import Claim, Compared, Verdict, compare, decided
from csrm_tasks.evaluation.gate import (
    TOWER_MEASURES,
    ColdStart,
    GateEvidence,
    decide,
    decide_cold_start,
)
from csrm_tasks.evaluation.metrics import confusion_by_query, micro_f1
from csrm_tasks.evaluation.paired import Interval
from csrm_tasks.sections import Gate
from tests.evaluation_fixtures import evidence_of

POLICY = Gate()
STRICT = Gate(mode="superiority")
GOOD = evidence_of("good", 0.9, seed=1)
BAD = evidence_of("bad", 0.6, seed=2)


def without(evidence: GateEvidence, family: str) -> GateEvidence:
    return replace(evidence, counts={k: v for k, v in evidence.counts.items() if k != family})


@pytest.mark.parametrize("policy", [POLICY, STRICT])
def test_better_passes_and_swapped_fails(policy: Gate) -> None:
    assert decide(GOOD, BAD, policy).outcome == "PASS"
    assert decide(BAD, GOOD, policy).outcome == "FAIL"


def test_identical_models_never_win_and_are_never_worse() -> None:
    for policy in (STRICT, POLICY):
        verdict = decide(GOOD, GOOD, policy)
        assert verdict.outcome == "INCONCLUSIVE"
        assert "answers exactly as the champion" in verdict.reasons[-1]


def test_a_pass_lists_every_reason_with_its_interval() -> None:
    verdict = decide(GOOD, BAD, POLICY)
    assert [c.name for c in verdict.checks] == ["micro_f1", "em_f1", "defect_f1"]
    assert all("[" in r for r in verdict.reasons) and len(verdict.reasons) == 3
    assert verdict.as_json()["outcome"] == "PASS"


def taught(evidence: GateEvidence, n: int) -> GateEvidence:
    """Make the towers right wherever they were taught the query: in the first ``n``."""
    counts = dict(evidence.counts)
    for family in ("em", "defect"):
        right = counts[family].copy()
        right[:n] = right[:n].sum(-1, keepdims=True) * np.eye(2)
        counts[family] = right
    seen = np.arange(len(evidence.queries)) < n
    return replace(evidence, counts=counts, seen=seen)


def towers_of(verdict: Verdict) -> list[tuple[str, str]]:
    return [(c.name, c.outcome) for c in verdict.checks if c.name in TOWER_MEASURES]


def test_a_live_release_that_was_taught_gold_queries_is_given_no_allowance() -> None:
    """Its advantage counts against the candidate: a claim that holds all the same does hold."""
    new, live = evidence_of("new", 0.9, seed=1), taught(evidence_of("live", 0.7, seed=2), 40)
    assert towers_of(decide(new, live, POLICY)) == [("em_f1", "PASS"), ("defect_f1", "PASS")]
    assert (
        decide(new, live, POLICY).as_json()
        == decide(new, replace(live, seen=None), POLICY).as_json()
    )


def test_what_is_refuted_only_by_what_the_live_towers_were_taught_is_undecided() -> None:
    new, live = evidence_of("new", 0.8, seed=1), taught(evidence_of("live", 0.8, seed=2), 100)
    assert towers_of(decide(new, replace(live, seen=None), POLICY)) == [
        ("em_f1", "FAIL"), ("defect_f1", "FAIL"),
    ]  # fmt: skip
    verdict = decide(new, live, POLICY)
    assert towers_of(verdict) == [("em_f1", "INCONCLUSIVE"), ("defect_f1", "INCONCLUSIVE")]
    said = {c.name: c.reason for c in verdict.checks}["em_f1"]
    assert "the champion's towers were taught 100 of these 200 queries" in said
    worse = evidence_of("new", 0.6, seed=1)  # also over the others
    assert towers_of(decide(worse, live, POLICY)) == [("em_f1", "FAIL"), ("defect_f1", "FAIL")]


def test_a_candidate_wins_nothing_by_gold_queries_that_it_was_taught() -> None:
    live, cheat = evidence_of("live", 0.8, seed=2), taught(evidence_of("new", 0.6, seed=1), 100)
    assert towers_of(decide(cheat, live, POLICY)) == [("em_f1", "FAIL"), ("defect_f1", "FAIL")]
    by_hand = [
        replace(e, queries=e.queries[100:], counts={k: v[100:] for k, v in e.counts.items()},
                seen=None)
        for e in (cheat, live)
    ]  # fmt: skip
    wanted, found = decide(*by_hand, POLICY), decide(cheat, live, POLICY)
    assert [c for c in found.checks if c.name in TOWER_MEASURES] == [
        c for c in wanted.checks if c.name in TOWER_MEASURES
    ]
    assert towers_of(decide(taught(GOOD, 200), BAD, POLICY)) == [
        ("em_f1", "INCONCLUSIVE"), ("defect_f1", "INCONCLUSIVE"),
    ]  # fmt: skip


def test_no_policy_is_refused() -> None:
    with pytest.raises(RefusedError, match="no gate policy"):
        decide(GOOD, BAD, None)
    with pytest.raises(RefusedError, match="no gate policy"):
        decide_cold_start(ColdStart(1, 0.9), None, None)


@pytest.mark.parametrize("family", ["relevance", "em", "defect"])
@pytest.mark.parametrize("side", ["candidate", "champion"])
def test_what_was_not_measured_is_inconclusive(family: str, side: str) -> None:
    one, other = GOOD, BAD
    if side == "candidate":
        one = without(GOOD, family)
    else:
        other = without(BAD, family)
    verdict = decide(one, other, POLICY)
    assert verdict.outcome == "INCONCLUSIVE"
    assert f"the {side} was not measured" in verdict.reasons[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_that_are_not_finite_never_pass(value: float) -> None:
    broken = GOOD.counts["relevance"].copy()
    broken[3, 1, 1] = value
    bad = replace(GOOD, counts={**GOOD.counts, "relevance": broken})
    assert decide(bad, BAD, POLICY).outcome == "INCONCLUSIVE"
    assert decide(GOOD, replace(BAD, counts=bad.counts), POLICY).outcome == "INCONCLUSIVE"


def test_empty_and_different_gold_never_pass() -> None:
    empty = GateEvidence("e", (), {k: v[:0] for k, v in GOOD.counts.items()})
    assert decide(empty, empty, POLICY).outcome == "INCONCLUSIVE"
    other = replace(BAD, queries=tuple(f"x{i}" for i in range(200)))
    assert "not judged on the same queries" in decide(GOOD, other, POLICY).reasons[0]
    fewer = BAD.counts["relevance"].copy()
    fewer[0] = 0
    part = replace(BAD, counts={**BAD.counts, "relevance": fewer})
    assert "different pairs" in decide(GOOD, part, POLICY).reasons[0]


def test_too_few_pairs_say_how_many_queries_are_missing() -> None:
    small = [evidence_of("s", right, queries=5, per_query=10) for right in (0.95, 0.3)]
    verdict = decide(small[0], small[1], POLICY)
    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.needed["micro_f1"] == 5  # 50 more pairs at 10 a query


def test_undecided_says_about_how_many_queries_would_settle_it() -> None:
    near = [evidence_of("n", r, queries=60, seed=s) for r, s in ((0.8, 5), (0.8, 6))]
    verdict = decide(near[0], near[1], POLICY)
    assert verdict.outcome == "INCONCLUSIVE"
    assert all(n > 0 for n in verdict.needed.values())
    assert "more judged queries" in verdict.reasons[0]


def test_needed_follows_the_square_root_law_and_is_capped() -> None:
    # Half width 0.04 at 100 queries must shrink to 0.02: four times the queries.
    assert checks.more_queries(Interval(0.01, -0.03, 0.05), -0.01, 100) == 300
    assert checks.more_queries(Interval(-0.01, -0.05, 0.03), -0.01, 100) == 2400


def test_worse_towers_stop_a_better_llm() -> None:
    mixed = replace(GOOD, counts={**GOOD.counts, "defect": BAD.counts["defect"]})
    champion = replace(BAD, counts={**BAD.counts, "defect": GOOD.counts["defect"]})
    verdict = decide(mixed, champion, STRICT)
    assert verdict.outcome == "FAIL" and verdict.reasons[0].startswith("defect_f1")


def test_floors_fail_below_and_unknown_measures_are_refused() -> None:
    high = Gate(floors={"micro_f1": 0.99})
    assert decide(GOOD, BAD, high).outcome == "FAIL"
    assert decide(GOOD, BAD, Gate(floors={"micro_f1": 0.8})).outcome == "PASS"
    with pytest.raises(ValidationError, match="micro_f1"):
        Gate.model_validate({"floors": {"f1": 0.1}})


@pytest.mark.parametrize("queries", [20, 320])
def test_a_floor_says_how_sure_its_figure_is(queries: int) -> None:
    judged = evidence_of("f", 0.8, queries=queries)
    judged = replace(judged, baselines={"tfidf": judged.counts})
    policy = Gate(floors={"micro_f1": 0.1}, not_below=("tfidf",), slice_min=1)
    widths = []
    for check in decide(judged, None, policy).checks[:2]:
        said = rf"(0\.\d+) \[(0\.\d+), (\d\.\d+)\] over {queries} queries"
        found = re.search(said, check.reason)
        assert found is not None, check.reason
        value, lo, hi = map(float, found.groups())
        assert lo <= value <= hi
        widths.append(hi - lo)
    assert widths[0] == widths[1]
    assert widths[0] > 0.05 if queries == 20 else 0.0 < widths[0] < 0.05


def test_without_a_live_release_floors_decide() -> None:
    assert decide(GOOD, None, Gate(floors={"micro_f1": 0.8, "em_f1": 0.5})).outcome == "PASS"
    assert decide(BAD, None, Gate(floors={"micro_f1": 0.8})).outcome == "FAIL"
    assert decide(GOOD, None, POLICY).outcome == "INCONCLUSIVE"
    assert decide(without(GOOD, "em"), None, Gate(floors={"em_f1": 0.1})).outcome == "INCONCLUSIVE"


def test_slices_are_checked_and_a_missing_one_never_passes() -> None:
    policy = Gate(slices=("brand",))
    good = evidence_of("g", 0.9, seed=1, slices={"brand": lambda said: said})
    same = replace(BAD, slices=good.slices)
    assert decide(good, same, policy).outcome == "PASS"
    assert decide(GOOD, BAD, policy).outcome == "INCONCLUSIVE"
    wrong = evidence_of("w", 0.9, seed=1, slices={"brand": lambda said: (said + 1) % 3})
    verdict = decide(wrong, same, policy)
    assert verdict.outcome == "FAIL" and verdict.reasons[0].startswith("micro_f1 in brand")


def test_a_gate_that_lets_the_champion_beat_itself_voids_its_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # A47
    def generous(found: list[object]) -> list[checks.GateCheck]:
        return [checks.GateCheck("x", "PASS", "anything goes") for _ in found]

    monkeypatch.setattr(gate, "decided", generous)
    verdict = decide(GOOD, BAD, POLICY)
    assert verdict.outcome == "INCONCLUSIVE"
    assert any("won against itself" in r for r in verdict.reasons)
    assert any("planted regression was not caught" in r for r in verdict.reasons)


def test_a_planted_regression_keeps_the_pairs_and_loses_half_the_hits() -> None:
    before = GOOD.counts["relevance"]
    after = gate.planted_regression(before)
    assert np.array_equal(after.sum(-1), before.sum(-1))
    assert np.trace(after[::2].sum(0)) == 0
    assert np.array_equal(after[1::2], before[1::2])


def test_the_llm_must_reach_the_baselines_that_the_policy_names() -> None:
    policy = Gate(not_below=("tfidf",), floors={"micro_f1": 0.1})
    poor, rich = (evidence_of("b", right).counts["relevance"] for right in (0.5, 0.95))
    for champion in (BAD, None):
        assert (
            decide(
                replace(GOOD, baselines={"tfidf": {"relevance": poor}}), champion, policy
            ).outcome
            == "PASS"
        )
        worse = decide(replace(GOOD, baselines={"tfidf": {"relevance": rich}}), champion, policy)
        assert worse.outcome == "FAIL" and worse.reasons[0].startswith("micro_f1 not below tfidf")
        missing = decide(GOOD, champion, policy)
        assert missing.outcome == "INCONCLUSIVE"
        assert "the tfidf was not measured" in missing.reasons[0]


EVERYTHING = ("micro_f1", "em_f1", "defect_f1", "em_at_1")


def judged(right: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Return all families of counts that baselines and teachers have."""
    found = evidence_of("any", right, seed=seed).counts
    hits = np.random.default_rng(seed).random(200) < right
    return {**found, "em_at_1": np.stack([hits, np.ones(200)], 1).astype(float)}


def rival(towers: float, teacher: float, by: str = "llm", baseline: float = 0.7) -> GateEvidence:
    """Return a candidate whose teacher and towers are right as given, beside one baseline."""
    own = judged(towers, 1) | {"relevance": judged(teacher, 2)["relevance"]}
    mine = {} if by == "labels" else judged(teacher, 2)
    beside = {"tfidf": judged(baseline, 3), "majority": judged(0.99, 4)}
    return replace(GOOD, counts=own, baselines=beside, taught_by=by, teacher=mine)


@pytest.mark.parametrize("measure", EVERYTHING)
@pytest.mark.parametrize(
    ("towers", "teacher", "outcome"),
    [(0.9, 0.9, "PASS"), (0.5, 0.9, "FAIL"), (0.9, 0.5, "FAIL")],
)
def test_teacher_and_towers_must_reach_a_baseline_in_the_figures_that_are_named(
    measure: str, towers: float, teacher: float, outcome: str
) -> None:
    verdict = decide(rival(towers, teacher), None, Gate(not_below={"tfidf": (measure,)}))
    names = {c.name: c.outcome for c in verdict.checks}
    expected = {f"{measure} not below tfidf": "PASS" if teacher > 0.7 else "FAIL"}
    if measure != "micro_f1":  # towers have none
        expected[f"{measure} of the towers not below tfidf"] = "PASS" if towers > 0.7 else "FAIL"
    assert names == expected
    assert verdict.outcome == ("PASS" if set(expected.values()) == {"PASS"} else "FAIL")
    assert verdict.outcome == outcome or measure == "micro_f1"


def test_the_old_form_is_of_micro_f1_alone() -> None:
    old, new = Gate(not_below=("tfidf",)), Gate(not_below={"tfidf": ("micro_f1",)})
    assert old.compared == new.compared == {"tfidf": ("micro_f1",)}
    for evidence in (rival(0.5, 0.9), rival(0.9, 0.5)):
        assert decide(evidence, None, old) == decide(evidence, None, new)
    assert decide(rival(0.5, 0.9), None, old).outcome == "PASS"


def test_a_figure_that_was_not_measured_does_not_pass() -> None:
    missing = replace(rival(0.9, 0.9), teacher=judged(0.9, 2) | {"em_at_1": np.zeros((0, 2))})
    verdict = decide(missing, None, Gate(not_below={"tfidf": ("em_at_1",)}))
    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.reasons == ["em_at_1 not below tfidf: the candidate was not measured"]


def test_the_stack_is_judged_where_it_taught_and_nothing_where_labels_did() -> None:
    policy = Gate(not_below=("tfidf",), floors={"em_f1": 0.1})
    poor_llm = rival(0.9, 0.5)
    assert decide(poor_llm, None, policy).outcome == "FAIL"
    stacked = replace(poor_llm, taught_by="stack", teacher=judged(0.9, 2))
    assert decide(stacked, None, policy).outcome == "PASS"
    unjudged = replace(stacked, teacher={})  # the LLM does not stand in for it
    assert decide(unjudged, None, policy).outcome == "INCONCLUSIVE"
    by_labels = decide(replace(poor_llm, taught_by="labels", teacher={}), None, policy)
    assert by_labels.outcome == "PASS"
    assert any("tfidf is better than the LLM in micro-F1" in n for n in by_labels.notes)


def test_the_market_is_told_what_a_linear_model_is_better_at_whatever_it_claims() -> None:
    verdict = decide(rival(0.5, 0.9), None, Gate(floors={"micro_f1": 0.1}))
    assert verdict.outcome == "PASS"
    told = [n.split(":")[0] for n in verdict.notes]
    figures = ("EM F1", "defect F1", "EM@1")
    assert told == [f"tfidf is better than the towers in {f}" for f in figures]  # no majority
    assert re.fullmatch(
        r".*: 0\.\d+ against 0\.\d+, \+0\.\d+ \[\+0\.\d+, \+0\.\d+\] over 200 queries",
        verdict.notes[0],
    )
    assert verdict.as_json()["notes"] == list(verdict.notes)
    better = decide(rival(0.9, 0.9), None, Gate(floors={"micro_f1": 0.1}))
    assert better.notes == () and "notes" not in better.as_json()
    close = decide(rival(0.9, 0.69), None, Gate(floors={"micro_f1": 0.1}))
    assert any(n.startswith("tfidf is perhaps better than the LLM") for n in close.notes)


def test_power_is_said_of_the_slice_and_in_its_own_queries() -> None:
    def near(said):  # two in a hundred other answers
        return np.where(np.arange(len(said)) % 50 == 0, (said + 1) % 3, said)

    slices = {"brand": lambda said: said}
    one = evidence_of("n", 0.8, queries=60, seed=5, slices={"brand": near})
    other = evidence_of("n", 0.8, queries=60, seed=5, slices=slices)
    policy = Gate(slices=("brand",), slice_margin=0.015, slice_min=50)
    found = {c.name: c for c in decide(one, other, policy).checks}["micro_f1 in brand"]
    assert found.outcome == "INCONCLUSIVE" and found.needed is not None
    assert f"needs about {found.needed:,} more judged queries in brand" in found.reason
    judged = int((one.slices["brand"].sum((1, 2)) > 0).sum())
    assert judged == 30 and found.needed <= 24 * judged


def test_slices_are_refuted_by_holm_and_confirmed_each_by_itself() -> None:
    truth = np.random.default_rng(0).integers(0, 3, 600)

    def told(wrong: int) -> np.ndarray:
        said = np.where(np.arange(600) < wrong, (truth + 1) % 3, truth)
        return confusion_by_query(truth, said, np.arange(600) % 100, 100, 3)

    claim = Claim(micro_f1, 0.02, False, 0.05, 100)
    slightly = compare("x", claim, told(21), told(0))
    assert isinstance(slightly, Compared) and slightly.refuted > 0.025 / 50
    alone = replace(slightly, refuted=0.02)
    well = compare("y", claim, told(1), told(0))
    assert [c.outcome for c in decided([alone])] == ["FAIL"]
    both = decided([alone, replace(alone, refuted=0.02)])
    assert [c.outcome for c in both] == ["INCONCLUSIVE", "INCONCLUSIVE"]  # 2 x 0.02 > 0.025
    assert [c.outcome for c in decided([well] * 20 + [alone])][:20] == ["PASS"] * 20


def test_every_run_tests_its_own_slices(monkeypatch: pytest.MonkeyPatch) -> None:  # A47
    policy = Gate(slices=("brand",))
    good = evidence_of("g", 0.9, seed=1, slices={"brand": lambda said: said})
    champion = replace(BAD, slices=good.slices)
    monkeypatch.setattr(gate, "planted_regression", lambda counts: counts)
    verdict = decide(good, champion, policy)
    assert verdict.outcome == "INCONCLUSIVE"
    for name, margin in (("brand", policy.slice_margin), ("all", policy.margin)):
        said = [r for r in verdict.reasons if f"planted regression was not caught (in {name})" in r]
        assert len(said) == 1 and said[0].startswith("void: ")
        assert f"by a margin of {margin:.3f} on this gold; a smaller margin, or more" in said[0]
    alone = decide(good, None, Gate(floors={"micro_f1": 0.1}))  # nothing live: tested on itself
    assert any("not caught" in r for r in alone.reasons)


def test_a_floor_that_lets_everything_through_voids_a_cold_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = checks.GateCheck("floor", "PASS", "anything goes")
    monkeypatch.setattr(gate, "floor_value", lambda *args: passes)
    verdict = decide_cold_start(ColdStart(1, 0.9), None, POLICY)
    assert verdict.outcome == "INCONCLUSIVE" and verdict.reasons[0].startswith("void")


def test_cold_start_has_a_floor_on_source_dev() -> None:
    assert decide_cold_start(ColdStart(1, 0.41), None, POLICY).outcome == "PASS"
    assert decide_cold_start(ColdStart(1, 0.39), None, POLICY).outcome == "FAIL"
    for unknown in (None, float("nan")):
        assert decide_cold_start(ColdStart(1, unknown), None, POLICY).outcome == "INCONCLUSIVE"


def test_a_cold_start_follows_another_but_never_a_retrained_release() -> None:
    assert decide_cold_start(ColdStart(1, 0.7), ColdStart(1, 0.7), POLICY).outcome == "PASS"
    assert decide_cold_start(ColdStart(1, 0.6), ColdStart(1, 0.7), POLICY).outcome == "FAIL"
    late = decide_cold_start(ColdStart(1, 0.9), ColdStart(2, 0.5), POLICY)
    assert late.outcome == "INCONCLUSIVE" and "retrain instead" in late.reasons[0]
