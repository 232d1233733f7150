"""The report: self-contained, well-formed, complete, and honest about what is not decided."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from csrm_tasks.evaluation.gold import gold_set
from csrm_tasks.evaluation.measures import MEASURES
from csrm_tasks.evaluation.report import model_card
from csrm_tasks.evaluation.report import page as report
from csrm_tasks.evaluation.report.parts import number
from csrm_tasks.evaluation.summary import against, headline, summarise
from tests.evaluation_fixtures import DATA, gold, models, tables

RIVALS = [("final", "champion"), ("towers", "champion_towers")]
VOID = {"meta", "line", "circle", "br"}


class Strict(HTMLParser):
    """Checks nesting and collects links to anything outside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Accept <line …/>: it opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def verdict_of(outcome: str, reason: str) -> dict[str, Any]:
    check = {"name": "x<y>", "outcome": outcome, "reason": reason, "needed": None}
    return {"outcome": outcome, "reasons": [reason], "checks": [check], "digest": "d0"} | {
        "release": "demo-1"
    }


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    judged = gold(120)
    return {
        "market": "demo", "snapshot": "demo/snapshot/1", "champion": "demo-<script>",
        "generated": True, **summarise(models(judged), judged, RIVALS),
        "rqa": {"demo/build_rqa/1": {"k": 3, "locales": {"zh-TW": {"rqa_accuracy": 0.81}}}},
        "data": DATA, "training": TRAINING,
    }  # fmt: skip


TRAINING: dict[str, Any] = {
    "champion": {"facts": {"dev_micro_f1": 0.7}},
    "round1": {
        "facts": {
            "transfer_pairs": 180, "transfer_gap": 1.234, "transfer_gap_median": 1.1,
            "transfer_gap_symmetric": 1.2, "translation_accuracy": 0.345,
        },
        "soft": {
            "cross_fitted": True, "train_fit": 0.931, "agreement": 0.75,
            "agreement_by_locale": {"zh-TW": 0.75},
        },
        "changes": {
            "flips": {"zh-TW": [[3, 1, 4], [0, 5, 0], [0, 2, 6]]},
            "categories": [{"locale": "zh-TW", "category": "", "pairs": 20, "flips": 7}],
            "examples": [{
                "locale": "zh-TW", "query": "孕婦", "title": "<i>孕哺媽咪</i>", "human": 0,
                "p": [0.0432, 0.179, 0.7777],
            }],
        },
    },
    "round2": {"facts": {}, "soft": {"stopped": "dev micro-F1 0.7 after", "pairs": 0}},
}  # fmt: skip


def test_figures_are_those_of_the_answers(summary: dict[str, Any]) -> None:
    judged = gold(120)
    for answers, found in zip(models(judged), summary["models"], strict=True):
        figures = {k: v["value"] for k, v in found["figures"].items()}
        assert figures["em_f1"] == pytest.approx(f1_score(judged.grade == 2, answers.em))
        defect = accuracy_score(judged.grade == 0, answers.defect)
        assert figures["defect_accuracy"] == pytest.approx(defect)
        if answers.predicted is not None:
            exact = accuracy_score(judged.grade, answers.predicted)
            assert figures["micro_f1"] == pytest.approx(exact)
        for figure in found["figures"].values():
            assert figure["lo"] <= figure["value"] <= figure["hi"]


def test_comparisons_go_both_ways_and_say_what_is_decided(
    summary: dict[str, Any],
) -> None:
    found = against(summary, "micro_f1")
    assert len(found) == 6
    assert found["final vs champion"]["verdict"] == "better"
    assert found["champion vs final"]["verdict"] == "worse"
    assert found["champion vs final"]["lo"] == pytest.approx(-found["final vs champion"]["hi"])
    values = {m["name"]: m["figures"]["micro_f1"]["value"] for m in summary["models"][:3]}
    expected = values["final"] - values["tfidf"]
    assert found["final vs tfidf"]["value"] == pytest.approx(expected)
    assert "towers vs final" in against(summary, "em_f1")


def test_slice_figures_are_those_of_the_slice(summary: dict[str, Any]) -> None:
    judged = gold(120)
    final = models(judged)[2]
    assert {s["name"] for s in summary["slices"]} == set(judged.slices)
    for found in summary["slices"]:
        mask = judged.slices[found["name"]]
        exact = accuracy_score(judged.grade[mask], final.predicted[mask])  # type: ignore[attr-defined]
        assert found["figures"]["final"]["micro_f1"]["value"] == pytest.approx(exact)
        assert found["pairs"] == mask.sum()


def test_every_measure_of_a_slice_is_that_of_its_pairs(summary: dict[str, Any]) -> None:
    judged = gold(120)
    final = models(judged)[2]
    (tail,) = [s for s in summary["slices"] if s["name"] == "tail"]
    mask = judged.slices["tail"]
    query, grade, score = (a[mask] for a in (judged.query, judged.grade, final.score))  # type: ignore[attr-defined]
    first, five = [], []
    for q in np.unique(query):  # the slow way
        order = np.argsort(-score[query == q], kind="stable")
        ranked = grade[query == q][order]
        first.append(ranked[0] == 2)
        five.append((ranked[:5] == 0).any())
    figures = tail["figures"]["final"]
    assert set(figures) == set(MEASURES)
    assert figures["em_at_1"]["value"] == pytest.approx(np.mean(first))
    assert figures["defect_at_5"]["value"] == pytest.approx(np.mean(five))
    assert tail["queries"] == len(first)
    assert "micro_f1" not in tail["figures"]["towers"]


def test_differences_by_slice_are_paired_and_decided_together(summary: dict[str, Any]) -> None:
    by_measure: dict[str, list[dict[str, Any]]] = {}
    for found in summary["slices"]:
        for d in found["differences"]:
            one, other = (found["figures"][d[side]][d["measure"]]["value"] for side in "ab")
            if one is not None and other is not None:
                assert d["value"] == pytest.approx(one - other)
            assert (d["a"], d["b"]) in RIVALS
            by_measure.setdefault((d["a"], d["measure"]), []).append(d)  # type: ignore[call-overload]
    (micro, defect) = (by_measure["final", m] for m in ("micro_f1", "defect_at_5"))  # type: ignore[index]
    assert {d["verdict"] for d in micro} >= {"better"}
    for d in [*micro, *defect]:
        clear = d["p"] <= 0.05
        assert (d["verdict"] != "not decided") == clear
        lower = d["measure"] == "defect_at_5"
        if clear:
            assert d["verdict"] == ("better" if (d["value"] < 0) == lower else "worse")
    hit = [d["p"] for d in defect if d["p"] < 1]
    assert all(p >= 2 / 2001 for p in hit)


def test_a_slice_without_exact_products_has_no_em_f1_and_decides_nothing(
    summary: dict[str, Any],
) -> None:
    judged = gold(120)
    more = replace(judged, slices={"none exact": judged.grade != 2, **judged.slices})
    first, *others = summarise(models(judged), more, RIVALS)["slices"]
    assert first["figures"]["towers"]["em_f1"] == {"value": None, "lo": None, "hi": None}
    assert first["figures"]["towers"]["defect_f1"]["value"] > 0
    decided = [
        [d for d in one["differences"] if d["measure"] == "em_f1"] for one in (first, *others)
    ]
    assert {d["verdict"] for d in decided[0]} == {"not decided"}
    alone = [d for one in summary["slices"] for d in one["differences"] if d["measure"] == "em_f1"]
    assert [d for of in decided[1:] for d in of] == alone  # the same p-values, by Holm
    page = report.render({**summary, "slices": [first]})
    row = page.split("minus champion_towers, paired by query: ▲")[1].split("none exact")[1]
    assert row.split("</tr>")[0].count("<td>–</td>") == 1


def test_the_report_says_what_towers_were_taught_and_compares_on_the_rest_as_well(
    summary: dict[str, Any],
) -> None:
    judged = gold(120)
    known = judged.query_ids[:40]
    given: list[Any] = models(judged)
    live, towers = given[3:]
    everything = np.ones(judged.pairs, bool)
    control = replace(towers, name="seen", kind="control", seen=everything)
    mask = judged.frame["query_id"].is_in(list(known)).to_numpy()
    live = replace(live, seen=mask)
    found = summarise([control, live, towers], judged, [("towers", "champion_towers")])

    def difference(one: Any, other: Any, of: Any) -> float:
        f1 = [f1_score(judged.grade[of] == 0, m.defect[of]) for m in (one, other)]
        return f1[0] - f1[1]

    rival = against(found, "defect_f1")
    assert rival["towers vs champion_towers"]["value"] == pytest.approx(
        difference(towers, live, everything)
    )
    (beside,) = (d for d in found["new_to_both"] if d["measure"] == "defect_f1")
    assert (beside["a"], beside["b"], beside["queries"]) == ("towers", "champion_towers", 20)
    assert beside["value"] == pytest.approx(difference(towers, live, ~mask))
    assert beside["lo"] < beside["value"] < beside["hi"]
    page = report.render({**summary, **found})
    assert "champion_towers: towers that were taught 40 of the 60 gold queries" in page
    assert "over the 20 queries that are new to both: towers minus champion_towers" in page
    assert "seen is a control: its towers were taught 60 of the 60 gold queries" in page


def test_where_lower_is_better_the_verdict_says_so(summary: dict[str, Any]) -> None:
    found = against(summary, "ece")["final vs tfidf"]
    assert found["value"] < 0 and found["verdict"] == "better"
    assert against(summary, "ece")["tfidf vs final"]["verdict"] == "worse"


def test_slices_show_gains_and_losses_and_generated_data_say_so(summary: dict[str, Any]) -> None:
    page = report.render(summary, verdict_of("PASS", "because"))
    assert "Micro-F1 by slice: final minus champion" in page
    assert "All figures of towers by slice" in page
    assert "This market’s data are generated" in page
    assert "All 1 checks of the gate" in page and "x&lt;y&gt;" in page
    assert "generated" not in report.render(summary | {"generated": False})


def test_the_model_card_says_the_same(summary: dict[str, Any]) -> None:
    about = {
        "generated": True, "locale": "zh-TW", "source_dev_micro_f1": 0.61,
        "parts": {"llm": "demo/select_llm/1"},
    }  # fmt: skip
    card = model_card.render(about, verdict_of("FAIL", "worse"), summary)
    assert card.startswith("# demo-1\n") and "data are generated" in card
    value = next(m for m in summary["models"] if m["name"] == "final")["figures"]["micro_f1"]
    assert f"| final | {value['value']:.3f} [{value['lo']:.3f}, {value['hi']:.3f}] |" in card
    assert "Gate: **FAIL**, `d0`" in card and "- worse" in card
    assert "| no brand |" in card and "`demo/select_llm/1`" in card
    cold = model_card.render(about | {"generated": False}, verdict_of("PASS", "enough"), None)
    assert "dev set: 0.610" in cold and "not known" in cold and "generated" not in cold


def test_a_zero_has_no_minus(summary: dict[str, Any]) -> None:
    assert number(-0.0, signed=True) == number(-0.0004, signed=True) == "+0.000"
    assert number(-0.0006) == "−0.001"
    page = report.render(summary)
    assert "−0.000" not in page


def test_headline_holds_finite_numbers_only(summary: dict[str, Any]) -> None:
    found = headline(summary)
    assert np.isfinite(list(found.values())).all()
    assert {"final.micro_f1", "final.micro_f1_lo", "final.micro_f1_hi"} <= set(found)
    json.dumps(summary, allow_nan=False)


def test_the_page_is_well_formed_and_loads_nothing(summary: dict[str, Any]) -> None:
    page = report.render(summary, verdict_of("FAIL", "worse <b>by far</b>"))
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    assert parser.outside == []
    assert "@import" not in page and "url(" not in page


def test_what_comes_from_outside_is_escaped(summary: dict[str, Any]) -> None:
    page = report.render(summary, verdict_of("FAIL", "worse <b>by far</b>"))
    assert "<script" not in page and "<b>" not in page
    assert "demo-&lt;script&gt;" in page


def test_models_slices_matrices_and_retrieval_are_all_shown(summary: dict[str, Any]) -> None:
    page = report.render(summary)
    for name in ("tfidf", "champion", "final", "towers", "champion_towers"):
        assert f'<th scope="row">{name}</th>' in page
    for name in ("no brand", "unseen category", "head"):
        assert f'<th scope="row">{name}</th>' in page
    assert page.count('class="matrix"') == 3 + 2 * 2 + 1  # graded models, heads of towers, a round
    assert "k 3, zh-TW rqa_accuracy 0.810" in page
    assert re.search(r'aria-label="better">▲</span> \+0\.\d{3}', page)


def test_data_health_and_raters_are_shown(summary: dict[str, Any]) -> None:
    page = report.render(summary)
    text = re.sub(r"<[^>]+>", " ", page)
    assert "0 50.0%, 2 50.0%" in text and "limit 0.1" in text
    assert "a&lt;b&gt;" in page  # of each measure what is furthest off, and only that
    assert not re.search(r">\s*c\s*<", page)
    assert "nothing earlier to compare with: new queries (impressions)" in text
    assert '<span class="chip open"><span aria-hidden="true">!</span> warn</span>' in page
    assert "0.812" in text and "tw-x&lt;0&gt;" in page and "90 · 5 · 5" in text
    assert re.search(r"ko-KR\s+–\s+0\s+0", text)
    assert re.search(r"zh-TW 2026-01-05\s+12,345\s+2\s+3,456\s+78\s+9\s", text)
    assert "zh-TW 2026-01-04" not in text  # a day of people only


def test_rounds_say_what_they_changed_and_where_they_ended(summary: dict[str, Any]) -> None:
    page = report.render(summary)
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(
        r"round1\s+cross-fitted\s+teacher’s fit 93.1%\s+75.0%\s+zh-TW 75.0%\s+7 ", text
    )
    assert "none: dev micro-F1 0.7 after" in text
    assert re.search(r"zh-TW none\s+20\s+7\s+35%", text)
    assert re.search(
        r"孕婦\s+&lt;i&gt;孕哺媽咪&lt;/i&gt;\s+0 irrelevant\s+77.8% · 17.9% · 4.3%", text
    )
    assert re.search(r"round1\s+180\s+1.234\s+1.100\s+1.200\s+0.345", text)
    assert "<h2>Calibration" not in page  # nothing was calibrated


def test_reliability_shows_a_model_before_and_after_its_temperature(
    summary: dict[str, Any],
) -> None:
    models = {m["name"]: m for m in summary["models"]}
    before, after = models["champion"], models["final"]
    facts = {
        "temperature": 1.25, "ece_before": 0.101, "ece_after": 0.05, "consensus_pairs": 60,
        "calibration": "it helps on <60> pairs", "chosen_ref": before["source"],
    }  # fmt: skip
    page = report.render(summary | {"training": {"final": {"facts": facts}}})
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(r"final\s+it helps on &lt;60&gt; pairs\s+1.250\s+60\s+0.101\s+0.050", text)
    (spoken,) = re.findall(r'aria-label="(final: reliability[^"]*)"', page)
    for when, model in (("before", before), ("after", after)):
        points = [(c / n, h / n) for n, c, h in model["calibration"] if n]
        assert f"{when}: " + ", ".join(f"{y:.2f} right at {x:.2f}" for x, y in points) in spoken
    assert before["source"] != after["source"]


@pytest.mark.parametrize(
    ("outcome", "tone"), [("PASS", "good"), ("FAIL", "bad"), ("INCONCLUSIVE", "open")]
)
def test_the_verdict_is_in_words_and_absent_before_the_gate(
    summary: dict[str, Any], outcome: str, tone: str
) -> None:
    page = report.render(summary, verdict_of(outcome, "because of this"))
    assert f'class="banner {tone}"' in page and f"Gate: {outcome}." in page
    assert "because of this" in page
    assert "Gate:" not in report.render(summary)


def test_an_empty_gold_set_makes_a_page_of_dashes() -> None:
    pairs, queries, products = tables()
    none = gold_set(pairs.filter(pairs["split"] != "gold"), queries, products)
    empty = {
        "market": "demo", "snapshot": "s", "champion": None, "generated": False,
        **summarise(models(none), none, RIVALS),
        "rqa": {}, "training": {},
        "data": {"health": {"verdict": "first", "checks": [], "traffic": []}, "raters": {}},
    }  # fmt: skip
    json.dumps(empty, allow_nan=False)
    assert headline(empty) == {}
    assert {c["verdict"] for c in empty["comparisons"]} == {"not decided"}
    assert "–" in report.render(empty)
