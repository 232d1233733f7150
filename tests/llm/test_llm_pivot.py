"""Prompts with a translation behind the original: the same in training and scoring (A52)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from csrm_tasks import tracking
from csrm_tasks.errors import ArtifactError
from csrm_tasks.llm.augmented import misspelt_rows
from csrm_tasks.llm.data import load_fields, load_pairs, relevance_rows
from csrm_tasks.llm.network.identity import read_card
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import (
    RELEVANCE,
    ProductFields,
    QueryFields,
    relevance_prompt,
)
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.llm.training.merge import why_not
from csrm_tasks.llm.training.tasks import DROP_PIVOT, NO_PIVOT, LabelTask
from csrm_tasks.markets import MarketConfig
from csrm_tasks.options import options_on, without
from csrm_tasks.records import TRANSLATIONS, write_table
from csrm_tasks.settings import Settings
from csrm_tasks.text import normalise
from tests.llm_fixtures import SOURCE, TARGET, make_base, make_given
from tests.steps.test_steps_llm import Installation

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


def translate(snapshot: Path) -> list[tuple[str, str, str, str]]:
    """Give most queries and titles of the target a translation, some of them two; return them."""
    rows = []
    for kind, name, column in (("query", "queries", "query"), ("title", "products", "title")):
        texts = pl.read_parquet(snapshot / f"{name}.parquet").filter(locale=TARGET)[column]
        for i, text in enumerate(texts.unique().sort()):
            if i % 5:
                rows += [(kind, f"soup {i % 3}{n}", f"  {text.upper()} ", "train")
                         for n in range(1 + i % 2)]  # fmt: skip
    rows += [("brand", "milk", "牛奶", "train"), ("query", "라면", "拉麵拉麵", "dev")]
    directed = [(*row, SOURCE, TARGET) for row in rows[::-1]]
    frame = pl.DataFrame(directed, TRANSLATIONS, orient="row")
    write_table(frame, TRANSLATIONS, snapshot / "translations.parquet")
    return rows


def test_a_translation_stands_behind_its_original_and_nothing_else_changes() -> None:
    query = QueryFields("安城", "農心", ("湯麵", "泡麵"))
    product = ProductFields("拉麵", "農心", "食品 > 泡麵", "好吃")
    plain = relevance_prompt(RELEVANCE, query, product)
    assert (
        plain == "relevance\nQ:安城\nB:農心\nR:湯麵|泡麵\nT:拉麵\nM:農心\nC:食品 > 泡麵\nD:好吃\nL:"
    )
    both = relevance_prompt(
        RELEVANCE, replace(query, pivot=" 안성\nL:2"), replace(product, pivot="라면")
    )
    assert both == plain.replace("Q:安城", "Q:安城|안성 L:2").replace("T:拉麵", "T:拉麵|라면")
    blank = relevance_prompt(RELEVANCE, replace(query, pivot=" "), product)
    assert blank == plain


@pytest.mark.parametrize("pivot", [SOURCE, TARGET])
def test_texts_are_looked_up_once_each_in_the_other_language_only(
    tmp_path: Path, pivot: str
) -> None:
    snapshot = make_given(tmp_path).snapshot
    rows = translate(snapshot)
    fields = load_fields(snapshot, None, pivot)
    plain = load_fields(snapshot)
    queries = pl.read_parquet(snapshot / "queries.parquet")

    def expected(kind: str, locale: str, text: str) -> str:
        if locale == pivot:
            return ""
        pairs = [(s, t) if locale == SOURCE else (t, s) for k, s, t, _ in rows if k == kind]
        return min((to for of, to in pairs if normalise(of) == normalise(text)), default="")

    found = [fields.queries[i].pivot for i in queries["query_id"]]
    assert found == [
        expected("query", loc, q) for loc, q in queries.select("locale", "query").rows()
    ]
    for (locale, _), product in fields.products.items():
        assert product.pivot == expected("title", locale, product.title)
    assert any(found) == (pivot == SOURCE)
    stripped = {i: replace(q, pivot="") for i, q in fields.queries.items()}
    assert stripped == plain.queries and not any(p.pivot for p in plain.products.values())


def test_a_tenth_of_the_samples_lose_their_translations_by_query(tmp_path: Path) -> None:
    given = make_given(tmp_path)
    snapshot = given.snapshot
    translate(snapshot)
    pairs = pl.concat([load_pairs(snapshot, "train")] * 40)
    target = pl.read_parquet(snapshot / "queries.parquet").filter(locale=TARGET)["query_id"]
    pairs = pairs.with_columns(
        query_id=pl.Series([target[i % len(target)] for i in range(len(pairs))]),
        product_id=pl.Series([f"p{i % 48}" for i in range(len(pairs))]), locale=pl.lit(TARGET),
    )  # fmt: skip
    model = load_base(str(make_base(tmp_path / "base")))
    encoder = PromptEncoder(model.tokenizer, 96)

    def task(pivot: str | None) -> LabelTask:
        rows = relevance_rows(load_fields(snapshot, given.rqa, pivot), pairs)
        return LabelTask(model, rows, encoder, rqa_dropout=0.2, siblings=4, seed=3)

    plain, pivoted = task(None), task(SOURCE)
    one, other = plain.start_epoch(1), pivoted.start_epoch(1)
    assert np.array_equal(one.order, other.order)
    assert np.array_equal(one.variants, other.variants & ~NO_PIVOT)  # the rest is drawn as before
    assert not (one.variants & NO_PIVOT).any()
    lost = (other.variants & NO_PIVOT) > 0
    assert DROP_PIVOT / 2 < lost.mean() < 2 * DROP_PIVOT
    for i, v, length in zip(other.order, other.variants, other.lengths, strict=True):
        query, product = pivoted._query(i, v), pivoted._product(i, v)
        whole, bare = pivoted._rows.queries[i], plain._query(i, v & ~NO_PIVOT)
        dropped = bool(v & NO_PIVOT)
        assert query.pivot == ("" if dropped else whole.pivot)
        assert product.pivot == ("" if dropped else pivoted._rows.products[i].pivot)
        assert replace(query, pivot="") == bare
        assert length == len(encoder.prompt(RELEVANCE, query, product))
    assert other.groups is not None
    for group in np.unique(other.groups):
        assert len(set(lost[other.groups == group])) == 1


def test_a_misspelt_copy_has_no_translation(tmp_path: Path) -> None:
    snapshot = make_given(tmp_path).snapshot
    translate(snapshot)
    fields = load_fields(snapshot, None, SOURCE)
    ids = [i for i, q in fields.queries.items() if q.pivot]
    pairs = load_pairs(snapshot, "train").head(len(ids))
    pairs = pairs.with_columns(query_id=pl.Series(ids), locale=pl.lit(TARGET))
    copies = misspelt_rows(fields, pairs, relevance_rows(fields, pairs), 1.0, 0)
    assert len(copies) > 0 and not any(q.pivot for q in copies.queries)


@pytest.fixture
def tiny(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    made = Installation(settings, tmp_path, steps=4, evaluate_every=4, pivot=SOURCE)
    translate(tmp_path / "snapshot")
    made.snapshot = made.store.publish(
        "tiny/snapshot/translated", tmp_path / "snapshot", facts={}, inputs={}, about={}
    ).ref
    return made


def test_a_model_is_scored_with_the_prompts_that_it_was_trained_with(tiny: Installation) -> None:
    """What training said of dev is what scoring says; and it is not what plain prompts give."""
    trained = tiny.train(rqa=tiny.rqa)
    assert read_card(trained.path).pivot == SOURCE
    given: dict[str, object] = {"snapshot": tiny.snapshot, "llm": trained.ref, "rqa": tiny.rqa}
    found = pl.read_parquet(tiny.run("score_pairs", given, split="dev").file("scored.parquet"))
    told = pl.read_parquet(trained.file("dev_scores.parquet"))
    told = told.join(found, on="pair_id", suffix="_scored")
    p, scored = (
        told.select(*(f"p{k}{end}" for k in range(3))).to_numpy() for end in ("", "_scored")
    )
    assert len(told) > 0 and np.abs(p - scored).max() < 1e-3
    scorer = RelevanceScorer.load(trained.path)
    snapshot = tiny.store.open(tiny.snapshot).path
    pairs, rqa = load_pairs(snapshot, "dev"), tiny.store.open(tiny.rqa).path
    with pytest.raises(ArtifactError, match=r"reads the pivot language ko-KR.*with no pivot lang"):
        scorer.score(RELEVANCE, load_fields(snapshot, rqa), pairs)
    bare = replace(load_fields(snapshot, rqa), pivot=SOURCE)
    plain = scorer.score(RELEVANCE, bare, pairs).select("p0", "p1", "p2").to_numpy()
    assert np.abs(plain - found.select("p0", "p1", "p2").to_numpy()).max() > 1e-3

    chosen = tiny.run("select_llm", {"snapshot": tiny.snapshot, "llms": [trained.ref]})
    assert read_card(chosen.path).pivot == read_card(trained.path).pivot
    tiny.market = without(tiny.market, ["llm.pivot"])
    other = tiny.train(rqa=tiny.rqa)
    assert read_card(other.path).pivot is None
    assert why_not(trained.path, other.path) == "it has another pivot language (llm.pivot)"


def test_rounds_and_exports_read_it_too(tiny: Installation) -> None:
    distillation = tiny.market.llm.distillation.model_copy(update={"memorised": 0.0})
    llm = tiny.market.llm.model_copy(update={"distillation": distillation})
    tiny.market = tiny.market.model_copy(update={"llm": llm})
    trained = tiny.train()
    given: dict[str, object] = {"snapshot": tiny.snapshot, "llm": trained.ref}
    soft = tiny.run("score_pairs", given, split="train")
    assert soft.facts["cross_fitted"]
    exported = tiny.run("export_llm", given)
    assert read_card(exported.path).pivot == read_card(trained.path).pivot
    folded = {"snapshot": tiny.snapshot, "llms": [trained.ref, tiny.train(soft=soft.ref).ref]}
    merged = tiny.run("merge_llms", folded, method="linear")
    assert read_card(merged.path).pivot == read_card(trained.path).pivot


def test_a_pivot_is_one_of_the_markets_locales_and_an_option_on_trial(tmp_path: Path) -> None:
    market = MarketConfig.model_validate({
        "market": "tiny", "source_locale": SOURCE, "target_locale": TARGET,
        "llm": {"base": "./b", "pivot": TARGET}, "retrieval": {"ebr": {"encoder": "./e"}},
        "towers": {"encoder": "./e"},
    })  # fmt: skip
    assert options_on(market) == ("llm.pivot",)
    assert without(market, ["llm.pivot"]).llm.pivot is None
    keys = market.model_dump()
    keys["llm"]["pivot"] = "en-US"
    with pytest.raises(ValidationError, match="'en-US' is none of the market's locales"):
        MarketConfig.model_validate(keys)
