"""Figures and gate of the yes-or-no tasks, each against a slow reference or by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.errors import RefusedError
from csrm_tasks.evaluation.report import model_card
from csrm_tasks.evaluation.report import tasks as report
from csrm_tasks.evaluation.task_gate import TaskEvidence, decide_tasks
from csrm_tasks.evaluation.tasks import SAID, TaskCounts, counts_of, figures, summarise_tasks
from csrm_tasks.sections import Gate

ROW = st.tuples(st.sampled_from("abcd"), st.sampled_from(("ko-KR", "zh-TW")),
                st.integers(0, 1), st.integers(0, 1))  # fmt: skip


def said(rows: list[tuple[str, str, int, int]], model: str = "candidate", task: str = "qc") -> Any:
    return pl.DataFrame(
        [
            {"model": model, "task": task, "pair_id": f"{task}{i}", "query_id": q, "locale": where,
             "grade": truth, "p": 0.5, "said": answer}
            for i, (q, where, truth, answer) in enumerate(rows)
        ], SAID,
    )  # fmt: skip


def f1(rows: list[tuple[str, str, int, int]]) -> float | None:
    hits = sum(t and a for *_, t, a in rows)
    there, claimed = sum(t for *_, t, _ in rows), sum(a for *_, a in rows)
    return 2 * hits / (there + claimed) if there else None


@given(st.lists(ROW, min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
def test_f1_of_yes_is_that_of_a_loop_over_all_and_by_language(rows: list[Any]) -> None:
    frame = said(rows)
    found = figures(frame)
    assert found["f1"]["value"] == (None if f1(rows) is None else pytest.approx(f1(rows)))
    assert found["queries"] == len({q for q, *_ in rows}) and found["pairs"] == len(rows)
    counts = counts_of(frame)
    for query, table in zip(counts.queries, counts.counts, strict=True):
        for truth in (0, 1):
            for answer in (0, 1):
                n = sum((q, t, a) == (query, truth, answer) for q, _, t, a in rows)
                assert table[truth, answer] == n
    languages = summarise_tasks(frame, ["qc"])["by_task"]["qc"]["models"]["candidate"]["languages"]
    locales = sorted({where for _, where, *_ in rows})
    assert list(languages) == (locales if len(locales) > 1 else [])
    for where, one in languages.items():
        own = f1([r for r in rows if r[1] == where])
        assert one["f1"]["value"] == (None if own is None else pytest.approx(own))


def test_the_mean_is_of_models_that_have_learnt_every_task() -> None:
    rows = [("a", "ko-KR", 1, 1), ("b", "ko-KR", 1, 0), ("c", "ko-KR", 0, 0)]
    both = pl.concat([said(rows), said(rows[:1], task="qi"), said(rows, "champion")])
    found = summarise_tasks(both, ["qc", "qi"])
    assert found["mean_f1"] == {"candidate": pytest.approx((2 / 3 + 1) / 2)}
    again = summarise_tasks(both.sample(fraction=1, shuffle=True, seed=1), ["qc", "qi"])
    for task in ("qc", "qi"):
        assert found["by_task"][task]["digest"] == again["by_task"][task]["digest"]


def counts(right: float, queries: int = 200, seed: int = 0) -> TaskCounts:
    rng = np.random.default_rng(seed)
    rows = [
        (f"{q:04d}", "ko-KR", truth, truth if rng.random() < right else 1 - truth)
        for q in range(queries)
        for truth in (0, 1, 1)
    ]
    return counts_of(said(rows))


POLICY = Gate(margin=0.05, slice_min=100)
FLOOR = POLICY.model_copy(update={"task_floors": {"qc": 0.7}})


@pytest.mark.parametrize(
    ("candidate", "champion", "policy", "outcome", "reason"),
    [
        (counts(0.9), counts(0.85), POLICY, "PASS", "qc F1: no worse by 0.050 than the champion"),
        (counts(0.6), counts(0.9), POLICY, "FAIL", "qc F1: not no worse by 0.050 than"),
        (counts(0.85), counts(0.87, seed=1), POLICY, "INCONCLUSIVE", "qc F1: not decided whether"),
        (counts(0.9), None, POLICY, "INCONCLUSIVE", "gate.task_floors does not name it"),
        (counts(0.9), None, FLOOR, "PASS", "floor qc F1: 0.9"),
        (counts(0.6), None, FLOOR, "FAIL", "floor qc F1: 0.6"),
        (counts(0.6), counts(0.6), FLOOR, "FAIL", "floor qc F1: 0.6"),
        (counts(0.9), TaskCounts((), np.zeros((0, 2, 2))), POLICY, "INCONCLUSIVE", "no live rel"),
        (counts(0.9), TaskCounts((), np.zeros((0, 2, 2))), FLOOR, "PASS", "floor qc F1: 0.9"),
        (TaskCounts((), np.zeros((0, 2, 2))), counts(0.9), FLOOR, "INCONCLUSIVE", "0 judged pairs"),
        (counts(0.9, 20), counts(0.9, 20), POLICY, "INCONCLUSIVE", "60 judged pairs, 100 are need"),
        (counts(0.9, 150), counts(0.9), POLICY, "INCONCLUSIVE", "not judged on the same queries"),
    ],
)  # fmt: skip
def test_the_gate_of_a_task(
    candidate: TaskCounts, champion: TaskCounts | None, policy: Gate, outcome: str, reason: str
) -> None:
    other = None if champion is None else {"qc": champion}
    verdict = decide_tasks(TaskEvidence({"qc": candidate}, other), policy)
    assert verdict.outcome == outcome
    assert any(reason in r for r in verdict.reasons), verdict.reasons


def test_one_task_that_fails_fails_all_and_no_policy_is_refused() -> None:
    good, bad = counts(0.9), counts(0.5)
    evidence = TaskEvidence({"qc": good, "qi": bad}, {"qc": good, "qi": good})
    assert decide_tasks(evidence, POLICY).outcome == "FAIL"
    with pytest.raises(RefusedError, match="no gate policy"):
        decide_tasks(evidence, None)
    assert decide_tasks(TaskEvidence({}, None), POLICY).outcome == "INCONCLUSIVE"


def test_a_gate_that_would_miss_a_planted_regression_is_void() -> None:
    loose = POLICY.model_copy(update={"margin": 0.9})
    verdict = decide_tasks(TaskEvidence({"qc": counts(0.9)}, {"qc": counts(0.9)}), loose)
    assert verdict.outcome == "INCONCLUSIVE" and "void: a planted" in verdict.reasons[0]


def test_report_and_card_show_every_task_with_its_threshold() -> None:
    rows = [("a", "ko-KR", 1, 1), ("b", "zh-TW", 1, 0), ("<c>", "ko-KR", 0, 0)] * 3
    dev = {"threshold": 0.2345, "reported": figures(said(rows)), "languages": {}}
    summary = {
        "market": "m<", "snapshot": "s", "generated": True, "dev": {"candidate": {"qc": dev}},
        **summarise_tasks(said(rows), ["qc"]),
    }  # fmt: skip
    verdict = {"outcome": "FAIL", "reasons": ["a < b"], "digest": "d", "llm": "m/train_llm/1"}
    page = report.page(summary, verdict)
    assert "Query-category" in page and "a &lt; b" in page and "m&lt;" in page
    assert "0.234" in page or "0.235" in page
    assert "zh-TW" in page and report.GENERATED in page
    card = report.card(summary, verdict)
    assert "| qc | candidate | 9 | 0.667" in card and "There is nothing to serve" in card
    assert model_card.card_lines is report.card_lines
