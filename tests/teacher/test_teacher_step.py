"""The step ``choose_teacher``: what it decides, from dev alone, and again after a kill."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import RefusedError
from csrm_tasks.evaluation.baselines import CharacterModel
from csrm_tasks.sections import Gate
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from csrm_tasks.teacher import stack
from csrm_tasks.teacher.applying import stacked
from csrm_tasks.teacher.evidence import JudgedTexts
from tests.release_fixtures import market, store_of
from tests.teacher_fixtures import scored, tables, week

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    monkeypatch.setattr(stack, "STRENGTHS", (0.1, 1.0))


def choose(
    settings: Settings, given: dict[str, str], gate: Gate | None = None, **towers: Any
) -> Artifact:
    own = market(gate)
    asked = {"stacked_teacher": True} | towers
    own = own.model_copy(update={"towers": own.towers.model_copy(update=asked)})
    return store_of(settings).open(run_step("choose_teacher", own, given, {}, settings))


def test_a_stack_that_dev_keeps_teaches_and_says_what_it_said(settings: Settings) -> None:
    given = week(settings, "a", 0.6)
    made = choose(settings, given)
    assert made.facts["taught_by"] == "stack" and made.facts["refused"] == []
    assert made.facts["stack"].startswith("kept: ")
    snapshot = store_of(settings).open(given["snapshot"]).path
    gold = tables()["pairs"].filter(split="gold")
    llm = scored(gold, 0.6, seed=9)
    better = stacked(made.path, snapshot, llm)
    assert better.columns == llm.columns and better["pair_id"].equals(llm["pair_id"])
    right = [
        float((f.select("p0", "p1", "p2").to_numpy().argmax(1) == gold["grade"].to_numpy()).mean())
        for f in (llm, better)
    ]
    assert right[1] > right[0] + 0.1
    halves = [stacked(made.path, snapshot, part) for part in (llm[:50], llm[50:])]
    assert np.allclose(
        pl.concat(halves).select("p0", "p1", "p2"), better.select("p0", "p1", "p2"), atol=1e-6
    )


def test_the_ngram_model_is_kept_whole(settings: Settings) -> None:
    given = week(settings, "a", 0.6)
    texts = JudgedTexts.of(store_of(settings).open(given["snapshot"]).path)
    model, dev = texts.fit_ngrams("zh-TW"), texts.pairs.filter(split="dev")
    kept = CharacterModel.load(choose(settings, given).path)
    assert kept.strength == model.strength
    assert np.array_equal(texts.said_by(kept, dev), texts.said_by(model, dev))


def test_neither_gold_nor_dev_is_learnt_by_the_ngrams_and_gold_decides_nothing(
    settings: Settings,
) -> None:
    made = tables()
    other = made["pairs"].with_columns(
        grade=pl.when(pl.col("split") == "gold").then(2 - pl.col("grade")).otherwise("grade")
    ).cast({"grade": pl.Int8})  # fmt: skip
    one = choose(settings, week(settings, "one", 0.6, made))
    two = choose(settings, week(settings, "two", 0.6, made | {"pairs": other}))
    assert dict(one.facts) == dict(two.facts)
    for name in ("stack.json", "ngrams.json", "ngrams.npz", "dev_scores.parquet"):
        assert one.file(name).read_bytes() == two.file(name).read_bytes(), name
    turned = made["pairs"].with_columns(
        grade=pl.when(pl.col("split") == "dev").then(2 - pl.col("grade")).otherwise("grade")
    ).cast({"grade": pl.Int8})  # fmt: skip
    found = [
        JudgedTexts(pairs, made["queries"], made["products"]).fit_ngrams("zh-TW")
        for pairs in (made["pairs"], turned)
    ]
    assert found[0].model is not None and found[1].model is not None
    assert np.array_equal(found[0].model.coef_, found[1].model.coef_)


def test_without_dev_of_the_target_there_is_no_stack(settings: Settings) -> None:
    made = tables()
    abroad = made["pairs"].with_columns(
        locale=pl.when(pl.col("split") == "dev").then(pl.lit("ko-KR")).otherwise("locale")
    )
    found = choose(settings, week(settings, "a", 0.2, made | {"pairs": abroad}))
    assert found.facts["taught_by"] == "llm" and not list(found.path.glob("stack*"))
    assert "no judged dev pair of zh-TW" in found.facts["stack"]


def test_one_dev_query_makes_no_stack(settings: Settings) -> None:
    made = tables(train=60, dev=1)
    found = choose(settings, week(settings, "a", 0.6, made))
    assert found.facts["taught_by"] == "llm"
    assert found.facts["stack"] == "none: 1 judged dev queries are too few for 5 folds"


@pytest.mark.parametrize(("policy", "by"), [("hard", "labels"), ("distil", "llm")])
def test_a_refused_teacher_gives_way_or_not_as_the_market_says(
    settings: Settings, caplog: pytest.LogCaptureFixture, policy: str, by: str
) -> None:
    given = week(settings, "a", 0.35)
    gate = Gate(not_below=("tfidf",), slice_min=50)
    with caplog.at_level(logging.WARNING, "csrm"):
        made = choose(settings, given, gate, stacked_teacher=False, refused_teacher=policy)
    assert made.facts["taught_by"] == by
    (reason,) = made.facts["refused"]
    assert reason.startswith("micro_f1 is -0.") and reason.endswith("against tfidf")
    told = [r.message for r in caplog.records if "dev refuses the LLM" in r.message]
    assert len(told) == 1 and reason in told[0]


def test_a_refused_teacher_may_stop_the_run(settings: Settings) -> None:
    gate = Gate(not_below=("tfidf",), slice_min=50)
    with pytest.raises(RefusedError, match=r"dev refuses the LLM .* against tfidf.*stops here"):
        choose(
            settings, week(settings, "a", 0.35), gate, stacked_teacher=False, refused_teacher="stop"
        )


def test_what_the_llm_lacks_alone_the_stack_may_have(settings: Settings) -> None:
    """The LLM would be refused; what teaches is the stack, and that is what is judged."""
    gate = Gate(not_below=("tfidf",), slice_min=50)
    made = choose(settings, week(settings, "a", 0.35), gate)
    assert made.facts["taught_by"] == "stack" and made.facts["refused"] == []


def test_a_killed_choice_is_made_again_and_is_the_same(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = week(settings, "a", 0.6)
    fit, calls = stack.fit, []

    def killed(*args: Any) -> stack.Stack:
        calls.append(args)
        if len(calls) == 37:
            raise KeyboardInterrupt
        return fit(*args)

    monkeypatch.setattr(stack, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        choose(settings, given)
    assert len(calls) == 37
    again = choose(settings, given)
    monkeypatch.setattr(stack, "fit", fit)
    elsewhere = load_settings({"CSRM_HOME": str(tmp_path / "other")})
    other = choose(elsewhere, week(elsewhere, "a", 0.6))
    assert (again.ref, again.digest) == (other.ref, other.digest)
    assert dict(again.facts) == dict(other.facts)
    made = len(calls)
    assert choose(settings, given).ref == again.ref and len(calls) == made  # found
