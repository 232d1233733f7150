"""What people judge next, as steps: the queue of unsure pairs, its way back, the label budget."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.artifacts import Artifact
from csrm_tasks.curation.budget import land_budget
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.evaluation.report import page
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import BEHAVIOUR, SCORED, write_table
from csrm_tasks.sections.review import Review
from csrm_tasks.settings import Settings
from csrm_tasks.spreadsheets import write_sheet
from csrm_tasks.steps import run_step
from csrm_tasks.steps.release import _budget
from csrm_tasks.steps.review import BUDGET, COLUMNS, QUEUE, label_budget
from tests.evaluation_fixtures import LOCALE, tables
from tests.release_fixtures import market, publish, store_of, write_snapshot

NEW = [f"n{i}" for i in range(60)]  # queries of the traffic, of which no pair is judged


def config(**keys: int) -> MarketConfig:
    return market().model_copy(update={"review": Review(**({"pairs": 25} | keys))})


def snapshot(settings: Settings) -> Artifact:
    """Gold, dev and train as elsewhere; every query was shown ten products, and so were NEW."""

    def write(folder: Path) -> None:
        write_snapshot(folder)
        queries = pl.read_parquet(folder / "queries.parquet")
        more = [(q, LOCALE, f"搜尋{i}", f"搜尋{i}", "", "log", 500 - i) for i, q in enumerate(NEW)]
        pl.concat([queries, pl.DataFrame(more, queries.schema, orient="row")]).write_parquet(
            folder / "queries.parquet"
        )
        names = [*queries["query_id"], *NEW]
        rows = [(q, f"p{(7 * i + k) % 60}", LOCALE, 1 + (i + k) % 9, 0, 0, 0, 1.0)
                for i, q in enumerate(names) for k in range(10)]  # fmt: skip
        shown = pl.DataFrame(rows, BEHAVIOUR, orient="row")
        write_table(shown, BEHAVIOUR, folder / "behaviour.parquet")

    return publish(settings, "snapshot", "s", write)


def said(pairs: pl.DataFrame, rng: np.random.Generator, right: float) -> pl.DataFrame:
    """Add probabilities that see the grade (of none: any) with some doubt."""
    grade = (
        pairs["grade"].to_numpy() if "grade" in pairs.columns else rng.integers(0, 3, len(pairs))
    )
    logits = right * np.eye(3)[grade] + rng.normal(size=(len(pairs), 3))
    chance = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    return pairs.with_columns(**{f"p{k}": pl.Series(chance[:, k]) for k in range(3)})


def queued(settings: Settings, made_by: str = "llm", **keys: int) -> Artifact:
    """Run the step on what a teacher says of dev and of all that was shown."""
    frozen, rng = snapshot(settings), np.random.default_rng(0)
    pairs, _, _ = tables(80)
    dev = said(pairs.filter(pl.col("split") == "dev"), rng, 4.0)
    dev = dev.with_columns(consensus=pl.col("grade"))
    dev = dev.select("pair_id", "grade", "consensus", "p0", "p1", "p2")  # as calibrate writes it

    def scores(folder: Path) -> None:
        dev.write_parquet(folder / "dev_scores.parquet")

    def nothing(folder: Path) -> None:
        (folder / "note").write_text("x")

    llm = publish(settings, "select_llm", "l", scores if made_by == "llm" else nothing)
    teacher = publish(
        settings, "choose_teacher", "t", nothing if made_by == "llm" else scores,
        {"taught_by": made_by},
    )  # fmt: skip
    shown = pl.read_parquet(frozen.file("behaviour.parquet"))
    traffic = said(shown.select("query_id", "product_id", "locale"), rng, 3.0).cast(SCORED)  # type: ignore[arg-type]
    soft = publish(
        settings, "score_pairs", "t",
        lambda f: write_table(traffic, SCORED, f / "scored.parquet"),
    )  # fmt: skip
    given = {"snapshot": frozen.ref, "llm": llm.ref, "teacher": teacher.ref, "scored": soft.ref}
    return store_of(settings).open(run_step("review_queue", config(**keys), given, {}, settings))


@pytest.mark.parametrize("made_by", ["llm", "stack"])
def test_unsure_pairs_of_the_traffic_are_asked_by_worth_and_never_of_a_gold_query(
    settings: Settings, made_by: str
) -> None:
    made = queued(settings, made_by)
    asked = pl.read_parquet(made.file(QUEUE))
    pairs, _, _ = tables(80)
    gold = set(pairs.filter(pl.col("split") == "gold")["query_id"])
    assert asked.height == made.facts["queue"] == 25
    assert not gold & set(asked["query_id"])
    assert asked.join(pairs, on=["query_id", "product_id"], how="semi").is_empty()
    assert asked["value"].is_sorted(descending=True)
    assert (asked["grades"].str.len_chars() != 1).all()  # none is left, or "0 2"
    sheet = made.file(f"review-{LOCALE}.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(sheet.splitlines()))
    titles = {p: t for p, t in tables(80)[2].select("product_id", "title").iter_rows()}
    assert [r["title"] for r in rows] == [titles[p] for p in asked["product_id"]]
    assert all(not r["grade"] and not r["rater_id"] for r in rows)
    assert 0 < made.facts["unsure_shown"] < 1 and sum(made.facts["dev_pairs"]) > 50


def test_a_market_without_a_queue_is_refused(settings: Settings) -> None:
    given = queued(settings).inputs
    with pytest.raises(ConfigError, match=r"review\.pairs is 0"):
        run_step("review_queue", config(pairs=0), dict(given), {}, settings)


def test_a_refused_teacher_was_asked_nothing_so_there_is_no_queue(settings: Settings) -> None:
    given = dict(queued(settings).inputs)
    stopped = {"stopped": "dev refuses the teacher: x", "pairs": 0}
    none = publish(settings, "score_pairs", "none", lambda _: None, stopped)
    given |= {"scored": none.ref}
    made = store_of(settings).open(run_step("review_queue", config(), given, {}, settings))
    assert (made.facts["queue"], made.facts["served"], made.facts["unsure_shown"]) == (0, 0, 0.0)


def context(out: Path) -> Any:
    out.mkdir()
    return SimpleNamespace(out=out, ref="tiny/gate/g")


def test_the_budget_draws_unjudged_traffic_for_what_is_open_and_the_report_says_so(
    settings: Settings, tmp_path: Path
) -> None:
    review = queued(settings)
    frozen = store_of(settings).open(review.inputs["snapshot"])
    ctx = context(tmp_path / "a")
    told = label_budget(ctx, review, frozen, {"micro_f1": 12, "floor em_f1": 3})
    assert [one["claim"] for one in told] == ["micro_f1", "floor em_f1"]
    assert told[0]["queries"] == 40 and told[0]["inside"] == 12 and told[0]["decided"]
    sheet = (ctx.out / BUDGET).read_text(encoding="utf-8-sig").splitlines()
    rows = list(csv.DictReader(sheet))
    assert len(rows) == 12 * 8  # the most shown products of twelve queries
    assert len({r["query"] for r in rows}) == 12 and all(r["query"][:2] == "搜尋" for r in rows)
    assert len({r["label_id"] for r in rows}) == len(rows)
    assert {(r["held_out"], r["grade"], r["rater_id"]) for r in rows} == {("1", "", "")}
    again = context(tmp_path / "b")
    label_budget(again, review, frozen, {"micro_f1": 12, "floor em_f1": 3})
    assert (again.out / BUDGET).read_bytes() == (ctx.out / BUDGET).read_bytes()
    few = queued(settings, budget=40)
    (one,) = label_budget(context(tmp_path / "c"), few, frozen, {"micro_f1": 12})
    assert (one["inside"], one["decided"]) == (5, False)
    none = context(tmp_path / "d")
    assert label_budget(none, review, frozen, {"micro_f1 in nowhere": 12}) == []
    assert not (none.out / BUDGET).exists()
    summary = {"review": dict(review.facts), "budget": told}
    html = page.review_part(json.loads(json.dumps(summary))["review"], told)
    assert "label_budget.csv" in html and "To be judged next" in html


def test_a_budget_that_was_filled_in_lands_as_gold_under_its_own_identifiers(
    tmp_path: Path,
) -> None:
    """Spreadsheets get an apostrophe before what they would retype; it is no part of an id."""
    sent, folder = tmp_path / "label_budget.csv", tmp_path / "landing"
    rows = [
        {"label_id": f"budget-{n}", "query": query, "product_id": product, "title": "신발"}
        for n, (query, product) in enumerate([("+size", "10023"), ("신발", "mar1"), ("x", "p2")])
    ]
    write_sheet(sent, COLUMNS, rows, keys=("label_id", "product_id"))
    assert b"'10023" in sent.read_bytes()
    back = tmp_path / "back.csv"
    text = sent.read_text(encoding="utf-8-sig").splitlines()
    empty = ",,,,,"  # brand, category, grade, rater_id, held_out
    filled = [text[0], *(t.replace(empty, f",,,2,ann{n},") for n, t in enumerate(text[1:3]))]
    back.write_text("\n".join([*filled, text[3]]), encoding="utf-8-sig")
    config = market().ingest
    path, new, count = land_budget(back, sent, folder, "2026-01-05", LOCALE, config)
    assert (new, count) == (True, 2)
    landed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = ("query", "product_id", "grade", "rater_id", "held_out")
    assert [tuple(row[k] for k in keys) for row in landed] == [
        ("+size", "10023", 2, "ann0", 1),
        ("신발", "mar1", 2, "ann1", 1),
    ]
    assert land_budget(back, sent, folder, "2026-01-05", LOCALE, config) == (path, False, 2)
    for wrong, said in (
        (filled[1].replace("budget-0", "budget-9"), r"row 2: label_id 'budget-9' is none that was"),
        (filled[1].replace(",2,", ",5,"), "row 2: grade '5'"),
        (filled[1].replace("ann0", ""), "field 'rater_id' is empty"), (text[1], "no grade yet"),
    ):  # fmt: skip
        back.write_text(f"{text[0]}\n{wrong}\n", encoding="utf-8-sig")
        with pytest.raises(DataError, match=said):
            land_budget(back, sent, folder, "2026-01-05", LOCALE, config)


def test_claims_of_other_tasks_are_no_claims_on_grades(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []

    def spent(ctx: object, review: object, frozen: object, needed: dict[str, int]) -> None:
        asked.append(needed)

    monkeypatch.setattr("csrm_tasks.steps.review.label_budget", spent)
    ctx: Any = context(tmp_path / "c")
    ctx.inputs, ctx.store = {"review": queued(settings)}, store_of(settings)
    ctx.market = SimpleNamespace(binary_tasks=("qc",))
    _budget(ctx, {"micro_f1": 12, "qc F1": 3})
    assert _budget(ctx, {"qc F1": 3}) is None
    assert asked == [{"micro_f1": 12}]
