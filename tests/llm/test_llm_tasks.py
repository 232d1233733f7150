"""The query-category and query-item tasks on the LLM: prompts, rows, thresholds, trainings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.errors import ArtifactError, DataError
from csrm_tasks.llm.network.identity import read_card
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import (
    CVR,
    LABEL_SLOT,
    QC,
    QI,
    RELEVANCE,
    TASK_SPACES,
    ProductFields,
    ProductForm,
    QueryFields,
    product_segments,
    query_segments,
    relevance_prompt,
)
from csrm_tasks.llm.scoring.predict import predict
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.llm.task_data import (
    HALVES,
    TaskTexts,
    halves,
    load_task_pairs,
    task_rows,
    training_task_pairs,
)
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.task_judge import TaskJudge, task_figures
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import PAIRS, TASK_PAIRS, WEIGHTS, write_table
from csrm_tasks.text import normalise
from tests.llm_fixtures import SOURCE, TARGET, make_base, make_market, run_as
from tests.task_fixtures import make_task_snapshot, pair, task_frame


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task_snapshot(tmp_path_factory.mktemp("snapshot"))


@pytest.fixture(scope="module")
def market(base: Path) -> MarketConfig:
    return make_market(base)


def inputs(snapshot: Path, **more: Any) -> FinetuneInputs:
    return replace(FinetuneInputs(snapshot, None, None, "plain", 0), **more)


def test_the_prompt_names_the_language_and_then_what_is_judged() -> None:
    pairs = pl.DataFrame(
        [
            pair("qc", "ko-KR", "빨간  주전자", "Home, Kitchen & Dining,Teapots", 1, "train"),
            pair("qc", "xx-XX", "q\nL:yes", "a > b", 0, "train"),
        ]
    )
    queries, items = TaskTexts("qc").of(pairs)
    assert relevance_prompt(QC, queries[0], items[0]) == (
        "Is the category right for this query? Answer yes or no."
        "\nQ:빨간 주전자\nG:Korean\nC:Home, Kitchen & Dining,Teapots\nL:"
    )
    text = relevance_prompt(QC, queries[1], items[1])
    assert text.endswith("\nQ:q L:yes\nG:xx\nC:a > b\nL:")  # a query forges no header
    assert text.count(LABEL_SLOT) == 1
    (query,), (title,) = TaskTexts("qi").of(
        pl.DataFrame([pair("qi", "ja-JP", "急須", "土瓶", 1, "")])
    )
    assert relevance_prompt(QI, query, title) == (
        "Is the product right for this query? Answer yes or no.\nQ:急須\nG:Japanese\nT:土瓶\nL:"
    )


def test_a_judged_path_is_read_whole_whatever_a_product_shows() -> None:
    bare = ProductForm((), 1)
    assert product_segments(ProductFields("", path="a > b > c"), bare) == ("\nC:a > b > c",)
    assert product_segments(ProductFields("t", category="a > b"), bare) == ("\nT:t",)


def test_prompts_of_relevance_are_as_they_were() -> None:
    query = QueryFields("우유", "서울", ("멸균 우유",), language="Korean")
    for space in (RELEVANCE, CVR):
        assert query_segments(space, query) == (
            space.instruction, "\nQ:우유", "\nB:서울", "\nR:멸균 우유",
        )  # fmt: skip


def test_every_space_is_read_from_its_own_two_rows(base: Path) -> None:
    model = load_base(str(base))
    encoder = PromptEncoder(model.tokenizer, 96)
    pairs = task_frame(n=6)
    for space in TASK_SPACES.values():
        own = pairs.filter(task=space.name)
        queries, items = TaskTexts(space.name).of(own)
        found = predict(model, encoder, space, queries, items)
        import torch

        for i, (query, item) in enumerate(zip(queries, items, strict=True)):
            ids = torch.from_numpy(encoder.prompt(space, query, item)).long()[None]
            with torch.no_grad():
                logits = model.causal(ids).logits[0, -1].double()
            two = [logits[model.tokenizer(t)["input_ids"][-1]] for t in ("no", "yes")]
            assert found[i, 1] == pytest.approx(
                float(torch.stack(two).softmax(0)[1]), abs=1e-5
            )  # eq. (2) of paper 2, with log-probabilities in the exponents


def test_rows_are_of_the_tasks_of_the_snapshot(snapshot: Path) -> None:
    train, dev = training_task_pairs(snapshot, None, None)
    rows = task_rows(train)
    assert [r.space.name for r in rows] == ["qc", "qi"]
    table = load_task_pairs(snapshot)
    for own in rows:
        wanted = table.filter(task=own.space.name, split="train")
        assert own.names == wanted["pair_id"].to_list()
        assert own.targets.argmax(1).tolist() == wanted["grade"].to_list()
        assert [q.query for q in own.queries] == wanted["query"].to_list()
    assert set(dev["split"]) == {"dev"} and set(train["split"]) == {"train"}
    soft = task_rows(train, 0.1)[0].targets
    assert np.unique(soft).tolist() == pytest.approx([0.05, 0.95])


def test_a_snapshot_of_before_has_no_tasks(tmp_path: Path) -> None:
    assert load_task_pairs(tmp_path).is_empty()
    assert task_rows(load_task_pairs(tmp_path)) == []


def test_a_label_that_is_neither_token_is_refused(tmp_path: Path) -> None:
    odd = task_frame(n=6).with_columns(grade=pl.lit(2, pl.Int8)).head(1)
    write_table(odd, TASK_PAIRS, tmp_path / "task_pairs.parquet")
    with pytest.raises(
        DataError, match=r"of task qc has label 2; known are 0 \(no\) and 1 \(yes\)"
    ):
        load_task_pairs(tmp_path)


def test_what_the_filter_leaves_out_of_relevance_is_left_out_of_query_item(tmp_path: Path) -> None:
    frame = task_frame(n=10)
    write_table(frame, TASK_PAIRS, tmp_path / "task_pairs.parquet")
    train = frame.filter(split="train")
    ids = train.filter(task="qi")["pair_id"]
    write_table(train.filter(task="qi"), PAIRS, tmp_path / "pairs.parquet")  # of relevance
    weights = pl.DataFrame({"pair_id": ids[:4], "weight": [0.0, 0.25, 1.0, 0.0]})
    more = train.filter(task="qc")["pair_id"][:1].to_frame().with_columns(weight=pl.lit(0.0))
    known = pl.concat([weights, more])
    write_table(known, WEIGHTS, tmp_path / "decisions.parquet")
    left, _ = training_task_pairs(tmp_path, None, tmp_path)
    qc, qi = task_rows(left)
    assert qi.names == [ids[1], ids[2], *ids[4:]]
    assert qi.weights is not None and qi.weights.tolist() == [0.25, *[1.0] * (len(ids) - 3)]
    assert len(qc) == train.filter(task="qc").height


def test_a_half_of_the_queries_is_a_half_for_cross_fitting(snapshot: Path) -> None:
    whole, _ = training_task_pairs(snapshot, None, None)
    parts = [training_task_pairs(snapshot, fold, None)[0] for fold in (0, 1)]
    assert sum(p.height for p in parts) == whole.height
    assert set(parts[0]["query_id"]).isdisjoint(parts[1]["query_id"])


@given(
    st.lists(st.text(st.sampled_from("aAb Ａ"), min_size=1, max_size=3), min_size=1, max_size=30)
)
@settings(max_examples=300, deadline=None)
def test_halves_of_dev_are_of_one_size_and_by_text(queries: list[str]) -> None:
    found = halves(pl.Series("query", queries)).to_list()
    sides: dict[str, str] = {}
    for query, half in zip(queries, found, strict=True):
        assert sides.setdefault(normalise(query), half) == half
    counts = [list(sides.values()).count(half) for half in HALVES]
    assert abs(counts[0] - counts[1]) <= 1


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.booleans(), st.booleans(), st.integers(0, 1)),
        min_size=1, max_size=40,
    )
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_the_threshold_is_the_best_of_the_half_that_chooses_alone(
    rows: list[tuple[int, bool, bool, int]],
) -> None:
    rows = [*rows, (8, True, True, 1)]
    frame = pl.DataFrame(
        {
            "query_id": [f"q{i}" for i in range(len(rows))],
            "locale": [SOURCE if two else TARGET for *_, two in rows],
            "p": pl.Series([p / 8 for p, *_ in rows], dtype=pl.Float32),
            "grade": pl.Series([int(yes) for _, yes, _, _ in rows], dtype=pl.Int8),
            "half": [HALVES[0] if first else HALVES[1] for _, _, first, _ in rows],
        }
    ).with_columns(chooses=pl.col("half") == HALVES[0])
    found = task_figures("qc", frame)

    def f1(part: pl.DataFrame, cut: float) -> float:
        said, true = part["p"] >= cut, part["grade"] == 1
        hits = int((said & true).sum())
        return 2 * hits / (int(said.sum()) + int(true.sum()))

    chosen = frame.filter("chooses")
    cuts = [*sorted(set(chosen["p"])), 2.0]
    assert found["chosen"]["f1"] == pytest.approx(max(f1(chosen, cut) for cut in cuts))
    assert f1(chosen, found["threshold"]) == pytest.approx(found["chosen"]["f1"])
    reported = frame.filter(pl.col("half") == HALVES[1]).join(
        chosen.select("locale").unique(), on="locale", how="semi"
    )
    assert found["reported"]["pairs"] == reported.height
    value = found["reported"]["f1"]["value"]
    if reported["grade"].sum():
        assert value == pytest.approx(f1(reported, found["threshold"]))
        assert found["at_one_half"]["value"] == pytest.approx(f1(reported, 0.5))
    else:
        assert value is None


def test_relevance_qc_and_qi_are_learnt_together(
    market: MarketConfig, snapshot: Path, tmp_path: Path
) -> None:
    found = run_as("all", market, inputs(snapshot), tmp_path)
    folder = tmp_path / "out-all"
    assert {"loss_relevance", "loss_cvr", "loss_mt", "loss_qc", "loss_qi"} <= set(found.curves)
    assert {"relevance", "cvr", "qc", "qi"} == set(read_card(folder).label_ids)
    train = task_frame().filter(split="train")
    assert found.facts["qc_pairs"] == train.filter(task="qc").height
    said = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    dev = pl.read_parquet(folder / "task_dev.parquet")
    for task, one in said.items():
        own = dev.filter((pl.col("task") == task) & (pl.col("half") == HALVES[1]))
        reported = own.filter(locale=TARGET)
        assert one["reported"]["pairs"] == reported.height > 0
        yes = reported["p"].to_numpy() >= one["threshold"]
        truth = reported["grade"].to_numpy() == 1
        f1 = 2 * (yes & truth).sum() / (yes.sum() + truth.sum())
        assert one["reported"]["f1"]["value"] == pytest.approx(f1)
        assert found.facts[f"{task}_dev_f1"] == one["reported"]["f1"]["value"]
        assert set(one["languages"]) == {SOURCE, TARGET}
    mean = np.mean([one["reported"]["f1"]["value"] for one in said.values()])
    assert found.facts["task_dev_mean_f1"] == pytest.approx(mean)
    # What was written is what the stored model says.
    scorer = RelevanceScorer.load(folder)
    own = task_frame().filter((pl.col("split") == "dev") & (pl.col("task") == "qi"))
    scored = scorer.score(QI, TaskTexts("qi"), own)
    both = scored.join(dev.filter(task="qi").select("pair_id", "p"), on="pair_id")
    assert both.height == own.height
    assert np.allclose(both["p1"], both["p"], atol=1e-4)


@pytest.mark.parametrize("tasks", [("qc",), ("qc", "qi")])
def test_tasks_are_learnt_without_relevance_and_dev_of_one_half_selects(
    market: MarketConfig, tmp_path: Path, tasks: tuple[str, ...]
) -> None:
    alone = make_task_snapshot(tmp_path / "snapshot", relevance=False, tasks=tasks)
    found = run_as("alone", market, inputs(alone), tmp_path, steps=30, evaluate_every=10)
    folder = tmp_path / "out-alone"
    assert set(read_card(folder).label_ids) == set(tasks)
    assert not (folder / "dev_scores.parquet").exists()
    dev = pl.read_parquet(folder / "task_dev.parquet")
    chooses = dev.filter((pl.col("half") == HALVES[0]) & (pl.col("locale") == TARGET))
    right = chooses.with_columns(right=(pl.col("p") >= 0.5) == (pl.col("grade") == 1))
    accuracy = right.group_by("task").agg(pl.col("right").mean())["right"].mean()
    assert found.facts["dev_micro_f1"] == pytest.approx(accuracy)
    assert found.facts["source_dev_micro_f1"] is None
    assert found.facts["fitted_on"] == tasks[0]
    assert found.facts["conversions"] > 0 and "loss_cvr" not in found.curves
    with pytest.raises(ArtifactError, match="was not trained on task relevance"):
        RelevanceScorer.load(folder).score(RELEVANCE, TaskTexts("qc"), dev)


def test_relevance_alone_trains_to_the_last_bit_as_without_the_table(
    market: MarketConfig, snapshot: Path, tmp_path: Path
) -> None:
    write_table(
        pl.DataFrame(schema=TASK_PAIRS), TASK_PAIRS, tmp_path / "none" / "task_pairs.parquet"
    )
    for path in snapshot.glob("*.parquet"):
        if path.name != "task_pairs.parquet":
            (tmp_path / "none" / path.name).write_bytes(path.read_bytes())
            (tmp_path / "before" / path.name).parent.mkdir(exist_ok=True)
            (tmp_path / "before" / path.name).write_bytes(path.read_bytes())
    for name in ("none", "before"):
        run_as(name, market, inputs(tmp_path / name), tmp_path, steps=4, evaluate_every=4)
    weights = [
        (tmp_path / f"out-{n}" / "adapter" / "adapter_model.safetensors").read_bytes()
        for n in ("none", "before")
    ]
    assert weights[0] == weights[1]
    assert not (tmp_path / "out-none" / "tasks.json").exists()
    assert set(read_card(tmp_path / "out-none").label_ids) == {"relevance", "cvr"}


def test_a_half_without_a_label_to_choose_by_is_refused(base: Path) -> None:
    model = load_base(str(base))
    encoder = PromptEncoder(model.tokenizer, 96)
    dev = task_frame(("qc",)).filter(split="dev")
    for word, kept in (("yes", 0), ("no", 1)):
        with pytest.raises(
            DataError, match=f"task qc: the half of dev .* has no pair that is '{word}'"
        ):
            TaskJudge(model, encoder, dev.filter(grade=kept), TARGET)
