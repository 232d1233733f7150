"""The order in which gold is served: places, figures, the gate's claims, what the pages say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.evaluation.gate import GateEvidence, decide
from csrm_tasks.evaluation.gold import Gold, Predictions, counts, tower_answers
from csrm_tasks.evaluation.ordering import ordered_pairs, places_after, places_of
from csrm_tasks.evaluation.report import page
from csrm_tasks.evaluation.report.second_stage import card_lines, second_stage_part
from csrm_tasks.evaluation.second_stage import told
from csrm_tasks.sections import Gate
from tests.evaluation_fixtures import evidence_of, gold, tower_frame

ROW = st.tuples(
    st.integers(0, 3), st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([-1.0, 0.0, 2.0]),
    st.booleans(), st.integers(0, 2),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=24), st.integers(0, 4))
def test_places_and_pairs_are_those_of_a_slow_sort(rows: list[Any], top: int) -> None:
    query, first, second, defect, grade = (np.array(c) for c in zip(*rows, strict=True))
    query = np.unique(query, return_inverse=True)[1]
    queries = int(query.max()) + 1
    place = places_after(query, first, second, defect, top)
    right = np.zeros((queries, 2))
    for q in range(queries):
        at = [i for i in range(len(rows)) if query[i] == q]
        shown = sorted((i for i in at if not defect[i]), key=lambda i: -first[i])
        rest = sorted((i for i in at if defect[i]), key=lambda i: -first[i])
        want = sorted(shown[:top], key=lambda i: -second[i]) + shown[top:] + rest
        assert sorted(at, key=lambda i: place[i]) == want
        better = [(i, j) for i in at for j in at if grade[i] > grade[j]]
        right[q] = sum(want.index(i) < want.index(j) for i, j in better), len(better)
    np.testing.assert_array_equal(ordered_pairs(query, place, grade, queries), right)
    np.testing.assert_array_equal(places_of(query, -place.astype(float)), place)


def at_1(share: float, seed: int, queries: int = 200) -> Any:
    hits = np.random.default_rng(seed).random(queries) < share
    return np.stack([hits.astype(float), np.ones(queries)], 1)


def release(name: str, right: float, seed: int, share: float, served: Any = None) -> GateEvidence:
    """Evidence of a release whose towers have EM@1 in ``share``; ``served`` of a second stage."""
    found = evidence_of(name, right, seed=seed)
    of = {**found.counts, "em_at_1": at_1(share, seed)}
    return replace(found, counts=of, served=served, second_stage=served is not None)


def outcomes(one: GateEvidence, other: GateEvidence | None) -> dict[str, str]:
    verdict = decide(one, other, Gate(margin=0.05))
    return {c.name: c.outcome for c in verdict.checks if "as served" in c.name}


OWN, LIVE = (
    f"em_at_1 as served, against {x}" for x in ("the release's own towers", "the champion")
)


def test_the_served_order_must_not_be_worse_than_the_towers_nor_than_the_live_one() -> None:
    live = release("old", 0.7, 2, 0.6)
    plain = release("new", 0.9, 1, 0.6)
    assert outcomes(plain, live) == {}  # nothing is claimed where neither has one
    good = release("new", 0.9, 1, 0.6, np.maximum(at_1(0.6, 1), at_1(0.3, 7)))
    assert outcomes(good, live) == {OWN: "PASS", LIVE: "PASS"}
    assert outcomes(good, None) == {OWN: "PASS"}
    bad = release("new", 0.9, 1, 0.9, at_1(0.5, 9))
    assert outcomes(bad, live)[OWN] == "FAIL"
    assert decide(bad, live, Gate(margin=0.05)).outcome == "FAIL"


def test_a_release_without_one_after_a_release_with_one_is_held_against_its_order() -> None:
    live = release("old", 0.7, 2, 0.5, at_1(0.95, 5))
    worse = release("new", 0.9, 1, 0.5)
    assert outcomes(worse, live) == {OWN: "PASS", LIVE: "FAIL"}
    better = release("new", 0.9, 1, 0.97)
    assert outcomes(better, live) == {OWN: "PASS", LIVE: "PASS"}


def test_a_second_stage_that_was_not_measured_never_passes() -> None:
    live = release("old", 0.7, 2, 0.6)
    lost = replace(release("new", 0.9, 1, 0.6), second_stage=True)
    assert outcomes(lost, live) == {OWN: "INCONCLUSIVE", LIVE: "INCONCLUSIVE"}
    old = replace(live, second_stage=True)  # of the live release, it cannot be compared
    assert outcomes(release("new", 0.9, 1, 0.6), old)[LIVE] == "INCONCLUSIVE"


def test_a_release_that_changes_the_order_alone_is_no_copy_of_the_live_one() -> None:
    live = release("old", 0.8, 1, 0.6)
    served = np.maximum(at_1(0.6, 1), at_1(0.3, 7))
    new = replace(live, release="new", served=served, second_stage=True)
    names = [c.name for c in decide(new, live, Gate(margin=0.05)).checks]
    assert "difference" not in names
    same = replace(live, release="new", second_stage=True, served=at_1(0.6, 1))
    assert "difference" in [c.name for c in decide(same, live, Gate(margin=0.05)).checks]


def both(judged: Gold) -> list[Predictions]:
    """Towers, and the same with a perfect order."""
    frame = tower_frame(judged, 0.7, 4)
    towers = tower_answers("towers", "m/export_towers/new", frame, judged)
    perfect = frame.with_columns(order=pl.Series(judged.grade.astype(float)))
    served = tower_answers("served", "m/second_stage/new", perfect, judged, "served")
    return [towers, served]


def test_gold_tells_the_order_with_and_without() -> None:
    judged = gold(120)
    towers, served = both(judged)
    np.testing.assert_array_equal(served.em, towers.em)
    (found,) = told([(served, towers)], judged)
    assert (found["name"], found["towers"]) == ("served", "towers")
    figures = found["figures"]
    assert figures["ordered"]["served"]["value"] == 1.0
    hits = counts(towers, judged)["em_at_1"]
    assert figures["em_at_1"]["towers"]["value"] == hits[:, 0].sum() / hits[:, 1].sum()
    for figure in figures.values():
        gain = figure["served"]["value"] - figure["towers"]["value"]
        assert abs(figure["difference"]["value"] - gain) < 1e-12
        assert figure["difference"]["lo"] > 0


def test_report_and_card_tell_what_dev_kept_and_gold_found() -> None:
    judged = gold(120)
    dev = {"served": {"kept": True, "top": 7, "reason": "EM@1 0.5 → 0.6 <on dev>"}}
    dev["champion_served"] = {"kept": False, "top": 7, "reason": "too few"}
    towers, served = both(judged)
    found = {"dev": dev, "gold": told([(served, towers)], judged)}
    made = second_stage_part(found)
    assert "served: re-ranks the first 7 products: EM@1 0.5 → 0.6 &lt;on dev&gt;" in made
    assert "champion_served: not kept on dev: too few" in made
    assert "pairs in the right order" in made and "1.000" in made
    card = "\n".join(card_lines(found))
    assert "- served: re-ranks the first 7 products" in card
    assert "- served, EM@1: " in card
    assert second_stage_part(None) == "" and card_lines(None) == []
    assert "second_stage_part" in page.render.__code__.co_names
