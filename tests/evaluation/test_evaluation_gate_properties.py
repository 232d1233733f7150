"""The gate against everything: no broken evidence passes, sides are symmetric, errors are rare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from csrm_tasks.evaluation.gate import GateEvidence, decide
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.evaluation.simulate import PLANTED, Scene, evidence, rates, scenes
from csrm_tasks.sections import Gate

MODES = st.sampled_from(["superiority", "non_inferiority"])
QUICK = hypothesis_settings(max_examples=60, deadline=None)


@st.composite
def sides(draw: st.DrawFn) -> tuple[GateEvidence, GateEvidence]:
    """Two models of any quality on the same pairs."""
    scene = Scene(
        queries=draw(st.integers(2, 80)),
        per_query=draw(st.integers(1, 8)),
        right=draw(st.floats(0.3, 1.0)),
        loss=draw(st.floats(-0.3, 0.3)),
        alike=draw(st.floats(0.0, 1.0)),
        slice_share=draw(st.floats(0.0, 1.0)),
        slice_loss=draw(st.floats(0.0, 0.3)),
    )
    return next(evidence(scene, 1, draw(st.integers(0, 2**32))))


@st.composite
def policies(draw: st.DrawFn) -> Gate:
    return Gate(
        mode=draw(MODES),
        margin=draw(st.sampled_from([0.0, 0.01, 0.1])),
        slices=draw(st.sampled_from([(), (PLANTED,)])),
        slice_min=draw(st.sampled_from([1, 50])),
        floors=draw(st.sampled_from([{}, {"micro_f1": 0.2}, {"em_f1": 0.5, "kappa": 0.1}])),
    )


@given(sides(), policies())
@QUICK
def test_swapping_the_sides_flips_the_verdict(
    both: tuple[GateEvidence, GateEvidence], policy: Gate
) -> None:
    one, other = both
    strict = policy.model_copy(update={"mode": "superiority", "floors": {}})
    if decide(one, other, strict).outcome == "PASS":
        assert decide(other, one, strict).outcome == "FAIL"
        assert decide(other, one, policy).outcome != "PASS" or policy.margin > 0
    lax = policy.model_copy(update={"margin": 0.0, "slice_margin": 0.0, "mode": "non_inferiority"})
    assert {decide(one, other, lax).outcome, decide(other, one, lax).outcome} != {"PASS"}


@given(sides(), policies())
@QUICK
def test_identical_models_never_win(both: tuple[GateEvidence, GateEvidence], policy: Gate) -> None:
    assert decide(both[0], replace(both[0], release="copy"), policy).outcome != "PASS"


@given(sides(), policies(), st.data())
@QUICK
def test_broken_evidence_never_passes(
    both: tuple[GateEvidence, GateEvidence], policy: Gate, data: st.DataObject
) -> None:
    """Lose or spoil one table of one side, whatever else is right."""
    tables = ["relevance", "em", "defect", *policy.slices]
    name = data.draw(st.sampled_from(tables))
    how = data.draw(st.sampled_from(["missing", "empty", "nan", "inf", "other pairs"]))
    which = data.draw(st.integers(0, 1))
    broken = list(both)
    broken[which] = spoilt(both[which], name, how)
    assert decide(broken[0], broken[1], policy).outcome != "PASS"


def spoilt(side: GateEvidence, name: str, how: str) -> GateEvidence:
    where = "slices" if name == PLANTED else "counts"
    found: dict[str, Floats] = dict(getattr(side, where))
    table = found.pop(name).copy()
    if how == "empty":
        table[:] = 0.0
    elif how in ("nan", "inf"):
        table[0, 0, 0] = float(how)
    else:
        table[0, 0, 0] += 1.0
    return replace(side, **{where: found if how == "missing" else found | {name: table}})


@given(sides(), policies())
@QUICK
def test_one_more_demand_never_turns_a_verdict_into_a_pass(
    both: tuple[GateEvidence, GateEvidence], policy: Gate
) -> None:
    more = policy.model_copy(
        update={
            "floors": {**policy.floors, "macro_f1": 0.4},
            "slices": (PLANTED,),
            "not_below": ("tfidf",),
        }
    )
    if decide(*both, more).outcome == "PASS":
        assert decide(*both, policy).outcome == "PASS"


@pytest.mark.parametrize("alike", [0.0, 0.7])
def test_of_a_thousand_useless_candidates_fewer_than_alpha_are_promoted(alike: float) -> None:
    found = rates(Scene(queries=100, per_query=5, alike=alike), Gate(mode="superiority"), 1000)
    assert found.passed <= found.superior <= Gate().alpha
    assert found.superior > 0  # the simulation can tell


def test_candidates_worse_by_the_margin_are_rarely_called_no_worse() -> None:
    policy = Gate(margin=0.03)
    found = rates(Scene(queries=100, per_query=5, loss=0.03), policy, 300, seed=1)
    assert found.passed <= found.superior <= policy.alpha


def test_two_points_lost_in_one_slice_are_caught() -> None:
    (question,) = [q for q in scenes(Gate(), 300) if "one slice" in q]
    found = rates(*scenes(Gate(), 300)[question], 100)
    assert found.passed == 0.0
    assert found.failed >= 0.95
    assert found.superior > 0.9  # the whole gold set would have let it through


def test_power_is_about_what_it_says() -> None:
    """With as many more queries as it asks for, most gates that were undecided are decided."""
    policy = Gate(margin=0.02)
    scene = Scene(queries=150, alike=0.5)
    asked = []
    for one, other in evidence(scene, 30, 3):
        check = next(c for c in decide(one, other, policy).checks if c.name == "micro_f1")
        if check.needed is not None and 100 <= check.needed <= 600:
            asked.append(check.needed)
    more = replace(scene, queries=150 + int(np.median(asked)))
    assert rates(more, policy, 40, seed=4).superior >= 0.5
