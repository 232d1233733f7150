"""The tasks in a snapshot: answers agreed upon, one side a text in all tasks, gold held out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from csrm_tasks.artifacts import Artifact
from csrm_tasks.dataset.judged import judged_pairs
from csrm_tasks.dataset.tasks import WORDS, category_answers, item_answers, task_pairs
from csrm_tasks.errors import DataError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import Gate, Snapshot
from csrm_tasks.settings import Settings
from csrm_tasks.text import normalise, query_id
from tests.data_fixtures import (
    DAY0,
    DAY1,
    KO,
    ZH,
    ingest,
    label,
    land_lines,
    land_sessions,
    market,
    product,
    session,
    snapshot,
)

RULES = Snapshot(dev_share=0.4, gold_raters=3, gold_agree=3, qi_substitute="no")


def answer(n: int | str, query: str, category: str, said: Any, rater: str = "r1") -> dict[str, Any]:
    return {"label_id": f"c{n}", "query": query, "category": category, "label": said,
            "rater_id": rater}  # fmt: skip


def with_tasks(*tasks: str, **rules: Any) -> MarketConfig:
    return market(tasks=tasks, snapshot=RULES.model_copy(update=rules))


def land(settings: Settings) -> None:
    for locale in (KO, ZH):
        products = [product(i, f"상품 {i}", "", "a > b") for i in range(4)]
        land_lines(settings, DAY0, f"{locale}/catalogue.jsonl", products)
    words = [f"w{i}" for i in range(12)]
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [
        label(f"{q}{i}", q, f"p{i}", (0, 2, 1)[i]) for q in words[:8] for i in range(3)
    ])  # fmt: skip
    land_lines(settings, DAY0, f"{KO}/query_categories.jsonl", [
        answer(f"{q}{i}", q, f"a, b > c{i}", ("yes", "no")[i]) for q in words for i in range(2)
    ])  # fmt: skip
    shown = [session(f"v{q}", q, ["p1", "p2"], click="p2", purchase="p2") for q in words]
    land_sessions(settings, DAY0, KO, shown)
    # On the second day people agree: about w3 in qc, about "brand new" in relevance and in qi.
    gold = [answer(f"g{r}", "W3 ", "a, b > c0", 1, f"r{r}") for r in range(3)]
    fresh = [answer(f"n{r}", "newest", "a, b > c0", 1, f"r{r}") for r in range(3)]
    land_lines(settings, DAY1, f"{ZH}/query_categories.jsonl", [*gold, *fresh])
    both = [label(f"n{r}{g}", "brand new", f"p{g}", g, f"r{r}") for r in range(3) for g in (0, 2)]
    split = [label(f"s{r}", "halved", "p1", (1, 0, 0)[r], f"r{r}") for r in range(3)]
    alike = [label("k1", "newest", "p1", 2), label("k2", "brand new", "p1", 2)]
    land_lines(settings, DAY1, f"{ZH}/labels.jsonl", [*both, *split])
    land_lines(settings, DAY1, f"{KO}/labels.jsonl", alike)


@pytest.fixture
def landed(settings: Settings) -> Settings:
    land(settings)
    for day in (DAY0, DAY1):
        ingest(settings, day)
    return settings


def table(made: Artifact, name: str) -> pl.DataFrame:
    return pl.read_parquet(made.file(f"{name}.parquet"))


def test_answers_become_pairs_with_texts_and_gold_by_task(landed: Settings) -> None:
    made = snapshot(landed, 2, DAY1, with_tasks("relevance", "qc", "qi"))
    pairs = table(made, "task_pairs")
    qc = pairs.filter(task="qc")
    assert set(qc["item"]) == {"a, b > c0", "a, b > c1"}  # the comma is in a level
    assert set(qc.filter(locale=KO)["query"]) >= {"w0"}
    gold = pairs.filter(split="gold").select("task", "locale", "query", "item", "grade")
    assert sorted(gold.rows()) == [
        ("qc", ZH, "W3", "a, b > c0", 1),
        ("qc", ZH, "newest", "a, b > c0", 1),
        ("qi", ZH, "brand new", "상품 0", 0),
        ("qi", ZH, "brand new", "상품 2", 1),
        ("qi", ZH, "halved", "상품 1", 0),  # a substitute is a no here: then all agree
    ]
    about = json.loads(made.file("snapshot.json").read_text())
    assert about["tasks"]["qc"]["gold_pairs"] == 2 and len(about["tasks"]["qi"]["gold_digest"]) > 8
    assert made.facts["tasks"] == about["tasks"]


def test_a_text_is_on_one_side_in_all_tasks_and_locales(landed: Settings) -> None:
    made = snapshot(landed, 2, DAY1, with_tasks("relevance", "qc", "qi"))
    queries = table(made, "queries").select("query_id", "norm")
    relevance = table(made, "pairs").join(queries, on="query_id").select("norm", "split")
    others = table(made, "task_pairs").select("query", "split")
    sides: dict[str, set[str]] = {}
    for text, split in [*relevance.rows(), *others.rows()]:
        sides.setdefault(normalise(text), set()).add(split)
    assert all(len(found) == 1 for found in sides.values()), sides
    assert sides["newest"] == sides["w3"] == sides["brand new"] == sides["halved"] == {"gold"}
    # What is gold in qc is learnt from nowhere: not its relevance labels, not what was bought.
    assert "newest" not in set(relevance["norm"])
    learnt = set(table(made, "conversions")["query_id"])
    held = {query_id(KO, text) for text, side in sides.items() if side != {"train"}}
    assert learnt and not learnt & held


def test_what_one_task_has_held_to_learn_from_becomes_gold_in_none(landed: Settings) -> None:
    config = with_tasks("relevance", "qc", "qi")
    first = table(snapshot(landed, 2, DAY0, config), "task_pairs")
    side = first.filter(pl.col("query") == "w3")["split"].unique().to_list()
    assert side in (["train"], ["dev"])
    second = snapshot(landed, 2, DAY1, config)
    pairs = table(second, "task_pairs")
    again = pairs.filter(pl.col("query").is_in(["w3", "W3"]))
    assert again["split"].unique().to_list() == side
    assert second.facts["late_gold_pairs"] == 1
    for query, split in first.select("query", "split").unique().iter_rows():
        now = pairs.filter(pl.col("query") == query)["split"].unique().to_list()
        assert now == [split], query


def test_relevance_alone_reads_no_answer_and_splits_as_ever(landed: Settings) -> None:
    made = snapshot(landed, 2, DAY1, market(snapshot=RULES))
    assert table(made, "task_pairs").is_empty() and "tasks" not in made.facts
    assert "newest" in set(table(made, "queries").join(table(made, "pairs"), on="query_id")["norm"])


def test_tasks_without_relevance_have_no_pairs_of_it(landed: Settings) -> None:
    made = snapshot(landed, 2, DAY1, with_tasks("qc", "qi"))
    assert table(made, "pairs").is_empty() and table(made, "votes").is_empty()
    assert set(table(made, "task_pairs")["task"]) == {"qc", "qi"}


@pytest.mark.parametrize(
    ("tasks", "rules", "expected"),
    [
        (("qi",), {"qi_substitute": None}, "task qi: 9 labels are 'substitute', which is neither"),
        (("relevance", "qc"), {"dev_share": 0.0}, "task qc: after consensus no dev pair is 'no'"),
    ],
)
def test_what_a_task_lacks_is_said_in_one_line(
    landed: Settings, tasks: tuple[str, ...], rules: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        snapshot(landed, 2, DAY1, with_tasks(*tasks, **rules))


def test_a_task_that_nobody_has_judged_is_refused(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", [product(1, "상품")])
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [label("1", "q", "p1", 2)])
    ingest(settings, DAY0)
    with pytest.raises(DataError, match=f"task qc: no query_categories of {KO} or {ZH} up to"):
        snapshot(settings, 2, DAY0, with_tasks("relevance", "qc"))


def test_a_class_that_consensus_has_emptied_is_refused(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", [product(1, "상품")])
    said = [
        answer(f"{q}{r}", f"q{q}", "a", "yes" if r else "no", f"r{r}")
        for q in range(20)
        for r in range(3)
    ]
    land_lines(settings, DAY0, f"{KO}/query_categories.jsonl", said)
    ingest(settings, DAY0)
    with pytest.raises(DataError, match="task qc: after consensus no train pair is 'no'; judge"):
        snapshot(settings, 2, DAY0, with_tasks("qc"))


def test_an_answer_in_other_words_is_in_quarantine_and_a_correction_takes_its_place(
    settings: Settings,
) -> None:
    rows = [answer(1, "q", "a", "maybe"), answer(2, "q", "a", "YES"), answer(3, "q", "", "no")]
    land_lines(settings, DAY0, f"{KO}/query_categories.jsonl", rows)
    tolerant = market(ingest=market().ingest.model_copy(update={"tolerance": 1.0}))
    first = ingest(settings, DAY0, tolerant)["publish_day"].facts
    assert first["quarantined"] == 2
    reasons = {r["reason"] for r in first["reasons"]}
    assert reasons == {"unknown_value", "missing_value"}
    rows[0] = answer(1, "q", "a", "no")
    land_lines(settings, DAY0, f"{KO}/query_categories.jsonl", rows[:2])
    again = ingest(settings, DAY0)
    assert again["store"].facts["stored"] == 2 and again["publish_day"].facts["quarantined"] == 0
    known = [answer(9, "q", "a", "no"), answer(2, "q", "b", "yes"), answer(2, "q", "a", "yes")]
    land_lines(settings, DAY1, f"{ZH}/query_categories.jsonl", known)
    counts = ingest(settings, DAY1, tolerant)["store"].facts
    assert (counts["stored"], counts["quarantined"]) == (1, 2)  # identifiers are the market's


RATING = st.tuples(
    st.sampled_from((KO, ZH)), st.sampled_from("abcdef"), st.sampled_from("xy"),
    st.integers(0, 1), st.sampled_from(("r1", "r2", "r3")), st.sampled_from((DAY0, DAY1)),
)  # fmt: skip


@given(st.lists(RATING, min_size=1, max_size=40), st.lists(RATING, max_size=20))
@examples(max_examples=100, deadline=None)
def test_pairs_of_a_task_are_those_of_a_slow_reference(said: list[Any], graded: list[Any]) -> None:
    def frame(rows: list[Any]) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "locale": [r[0] for r in rows], "query": [r[1] for r in rows],
                "norm": [r[1] for r in rows], "query_id": [query_id(r[0], r[1]) for r in rows],
                "item": [r[2] for r in rows],
                "grade": pl.Series([r[3] for r in rows], dtype=pl.Int8),
                "rater_id": [r[4] for r in rows], "day": [r[5] for r in rows],
                "rated_at": pl.Series([None] * len(rows), dtype=pl.Datetime("us", "UTC")),
                "held_out": pl.Series([0] * len(rows), dtype=pl.Int8),
            }, {"locale": pl.String, "query": pl.String, "norm": pl.String, "query_id": pl.String,
                "item": pl.String, "grade": pl.Int8, "rater_id": pl.String, "day": pl.String,
                "rated_at": pl.Datetime("us", "UTC"), "held_out": pl.Int8},
        ).sort("day", maintain_order=True)  # fmt: skip

    products = pl.DataFrame({"locale": [KO, KO, ZH], "product_id": ["x", "y", "x"],
                             "title": ["X", "Y", "X"]})  # fmt: skip
    config = with_tasks("relevance", "qc", "qi", gold_raters=2, gold_agree=2)
    ratings = frame([(*r[:3], r[3] * 2, *r[4:]) for r in graded]).rename({"item": "product_id"})
    answers = {
        "relevance": ratings,
        "qc": category_answers(frame(said).rename({"item": "category"})),
        "qi": item_answers(ratings, products, None),
    }
    empty = pl.DataFrame(schema={"text": pl.String, "side": pl.String})
    judged = judged_pairs(answers, products, config, empty)  # type: ignore[arg-type]
    found = task_pairs(judged.others, {t: answers[t] for t in ("qc", "qi")})  # type: ignore[arg-type]

    def votes(rows: list[Any]) -> dict[Any, dict[str, tuple[str, int]]]:
        by_pair: dict[Any, dict[str, int]] = {}
        for locale, query, item, label_, rater, _ in sorted(rows, key=lambda r: r[5]):
            by_pair.setdefault((locale, query, item), {})[rater] = label_
        return by_pair  # type: ignore[return-value]

    there = set(products.select("locale", "product_id").rows())
    expected = {}
    for task, rows in (("qc", said), ("qi", [r for r in graded if (r[0], r[2]) in there])):
        for key, by_rater in votes(rows).items():
            yes = sum(by_rater.values())  # type: ignore[arg-type]
            expected[task, *key] = int(2 * yes > len(by_rater))  # a tie is a no
    golden = {
        q for q, s in zip(judged.sided["norm"], judged.sided["split"], strict=True) if s == "gold"
    }
    for task, locale, query, item, grade, split in found.select(
        "task", "locale", "query", "item", "grade", "split"
    ).iter_rows():
        key = (task, locale, query, item if task == "qc" else item.lower())
        if split != "gold":  # frozen on the day on which raters agreed
            assert grade == expected[key] and query not in golden
    learnt = {
        (task, locale, query, item if task == "qc" else item.lower())
        for task, locale, query, item in found.filter(pl.col("split") != "gold")
        .select("task", "locale", "query", "item").rows()
    }  # fmt: skip
    assert learnt == {key for key in expected if key[2] not in golden}
    by_text: dict[str, set[str]] = {}
    for text, split in judged.sided.rows():
        by_text.setdefault(text, set()).add(split)
    assert all(len(sides) == 1 for sides in by_text.values())
    assert WORDS == ("no", "yes")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tasks": ()}, "tasks is empty; name at least one of relevance, qc, qi"),
        ({"tasks": ("qc", "qc")}, "tasks names 'qc' twice"),
        ({"tasks": ("qx",)}, "Input should be 'relevance', 'qc' or 'qi'"),
        ({"gate": Gate(task_floors={"qi": 0.5})}, "gate.task_floors: qi is none of the market's"),
    ],
)
def test_a_markets_tasks_are_checked_when_its_file_is_read(
    given: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        market(**given)
    assert market(tasks=("qi", "qc")).binary_tasks == ("qc", "qi")


@pytest.mark.parametrize("wrong", [True, False])
def test_what_raters_say_of_gold_decides_no_other_pair(wrong: bool) -> None:
    """Dawid and Skene's model is fitted on all pairs at once: on those that are learnt from."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, str, str, int]] = []
    for n in range(40):
        truth = int(rng.integers(0, 3))
        worse = (truth + 1) % 3
        gold = {"r1": worse if wrong else truth, "r2": truth, "r3": truth, "r4": truth}
        rows += [("gold", f"p{n}", rater, grade) for rater, grade in gold.items()]
        rows += [(f"q{n}", f"p{n}", "r1", truth), (f"q{n}", f"p{n}", "r2", worse)]
        rows += [(f"q{n}", f"p{n}", "r3", int(rng.integers(0, 3)))] * (n % 4 == 0)
    queries, products, raters, grades = zip(*rows, strict=True)
    said = pl.DataFrame(
        {"locale": ZH, "query": queries, "norm": queries, "product_id": products,
         "query_id": [query_id(ZH, q) for q in queries], "rater_id": raters,
         "grade": pl.Series(grades, dtype=pl.Int8), "day": DAY0,
         "rated_at": pl.Series([None] * len(rows), dtype=pl.Datetime("us", "UTC")),
         "held_out": pl.Series([0] * len(rows), dtype=pl.Int8)}
    )  # fmt: skip
    goods = pl.DataFrame({"locale": ZH, "product_id": sorted(set(products)), "title": "X"})
    config = with_tasks("relevance", gold_raters=4, gold_agree=3, consensus="dawid_skene")
    empty = pl.DataFrame(schema={"text": pl.String, "side": pl.String})

    def learnt(frame: pl.DataFrame) -> pl.DataFrame:
        found = judged_pairs({"relevance": frame}, goods, config, empty).pairs
        return found.filter(pl.col("split") != "gold")

    whole = judged_pairs({"relevance": said}, goods, config, empty).pairs
    assert whole.filter(split="gold").height == 40
    assert learnt(said).equals(learnt(said.filter(pl.col("query") != "gold")))
