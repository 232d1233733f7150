"""From the towers' export to the verdict: who taught them decides of whom the gate claims."""

from __future__ import annotations

import json
from typing import Any

import pytest

from csrm_tasks import tracking
from csrm_tasks.evaluation.report import model_card, page
from csrm_tasks.release.judge import Sides, replay, verdict
from csrm_tasks.release.verdicts import FILE
from csrm_tasks.sections import Gate
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.evaluation_fixtures import gold, llm_frame, tower_frame
from tests.release_fixtures import market, parts, probed, publish, scores, store_of

POLICY = Gate(not_below={"tfidf": ("micro_f1", "em_f1")}, floors={"micro_f1": 0.1}, slice_min=50)


@pytest.fixture(autouse=True)
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")


def sides(settings: Settings, by: str, **more: str) -> Sides:
    """Publish a release with a poor LLM and good towers, and its evaluation with a good teacher."""
    part, judged = parts(settings, "a", 2), gold(80)
    snapshot, facts = part["snapshot"], {"taught_by": by, "teacher": "tiny/choose_teacher/a"}
    export = publish(
        settings, "export_towers", by, lambda f: (f / "x").write_text(""), facts,
        {"snapshot": snapshot},
    )  # fmt: skip
    part["export"] = export.ref
    of = {"snapshot": snapshot, "llm": part["llm"], "rqa": part["rqa"]}
    llm, _ = scores(settings, "a", part, snapshot, 0.4)
    choice = publish(settings, "choose_teacher", "a", lambda f: None, {"taught_by": by}, of)
    teacher = publish(
        settings, "score_pairs", f"teacher-{by}",
        lambda f: llm_frame(judged, 1.0, 5).write_parquet(f / "scored.parquet"),
        inputs=of | {"teacher": choice.ref},
    )  # fmt: skip
    towers = publish(
        settings, "score_towers", by,
        lambda f: tower_frame(judged, 1.0, 6).write_parquet(f / "scored.parquet"),
        inputs={"snapshot": snapshot, "export": export.ref},
    )  # fmt: skip
    champion = run_step("champion", market(), {}, {}, settings)
    given = {
        "snapshot": snapshot, "champion": champion, "llm_scores": [llm, teacher.ref],
        "baselines": run_step("baselines", market(), {"snapshot": snapshot}, {}, settings),
        "tower_scores": [towers.ref],
    }  # fmt: skip
    names = {"names": "final,teacher,towers"}
    evaluation = run_step("evaluate", market(), given, names, settings)
    bundle = publish(settings, "bundle", by, lambda f: None, {"stage": 2}, part | more)
    store = store_of(settings)
    return Sides(bundle, store.open(champion), probed(settings, bundle), store.open(evaluation))


def claimed(sealed: dict[str, Any]) -> dict[str, str]:
    return {c["name"]: c["outcome"] for c in sealed["checks"] if "not below" in c["name"]}


TOWERS = {"em_f1 of the towers not below tfidf": "PASS"}


@pytest.mark.parametrize(
    ("by", "claims"),
    [
        ("llm", {"micro_f1 not below tfidf": "FAIL", "em_f1 not below tfidf": "FAIL"} | TOWERS),
        ("stack", {"micro_f1 not below tfidf": "PASS", "em_f1 not below tfidf": "PASS"} | TOWERS),
        ("labels", TOWERS),
    ],
)
def test_the_gate_claims_of_who_taught_and_of_the_towers_and_replays(
    settings: Settings, by: str, claims: dict[str, str]
) -> None:
    judged, store = sides(settings, by), store_of(settings)
    sealed = verdict(store, judged, 2, POLICY)
    assert claimed(sealed) == claims
    assert any("learnt labels" in n for n in sealed.get("notes", ())) == (by == "labels")
    told = [
        n
        for n in sealed.get("notes", ())
        if n.startswith("tfidf is better than the LLM in micro-F1")
    ]
    assert len(told) == (by != "stack")
    assert judged.evaluation is not None
    kept = publish(
        settings, "gate", by, lambda f: (f / FILE).write_text(json.dumps(sealed)),
        {"digest": sealed["digest"]},
        {"bundle": judged.candidate.ref, "champion": judged.champion.ref,
                "servability": judged.servability.ref, "evaluation": judged.evaluation.ref},
    )  # fmt: skip
    assert replay(store, kept) == sealed


def test_an_llm_that_others_serve_answers_for_itself(settings: Settings) -> None:
    export = publish(settings, "export_llm", "a", lambda f: (f / "x").write_text(""))
    judged = sides(settings, "labels", llm_export=export.ref)
    found = claimed(verdict(store_of(settings), judged, 2, POLICY))
    assert found["micro_f1 not below tfidf"] == "FAIL"


def test_report_and_card_show_the_teacher_and_what_a_linear_model_is_better_at(
    settings: Settings,
) -> None:
    judged = sides(settings, "llm")
    assert judged.evaluation is not None
    summary = json.loads(judged.evaluation.file("metrics.json").read_text())
    kinds = {m["name"]: m["kind"] for m in summary["models"]}
    assert kinds == {"majority": "baseline", "tfidf": "baseline", "final": "llm",
                     "teacher": "teacher", "towers": "towers"}  # fmt: skip
    assert set(summary["training"]) == {"final"}
    assert "teacher: what teaches the towers" in judged.evaluation.file("report.html").read_text()
    found = verdict(store_of(settings), judged, 2, POLICY)
    about = {"locale": "zh-TW", "generated": True, "parts": {}, "stage": 2}
    shown = (page.render(summary, found), model_card.render(about, found, summary))
    assert found["notes"] and all(note in text for note in found["notes"] for text in shown)
