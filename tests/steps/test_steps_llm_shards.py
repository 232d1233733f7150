"""Scoring in shards: the same scores as at once, each shard scored once, no pair lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.evaluation.baselines import CharacterModel
from csrm_tasks.llm.data import load_pairs, shard_numbers
from csrm_tasks.llm.network import model
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.settings import Settings
from csrm_tasks.teacher.evidence import NGRAMS, JudgedTexts, logits, probabilities_of
from csrm_tasks.teacher.stack import Stack, fit
from tests.llm_fixtures import make_snapshot
from tests.steps.test_steps_llm import Installation

P = ("p0", "p1", "p2")


@pytest.fixture
def tiny(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """In fp32, in which it does not show with whom a pair shares a batch."""
    monkeypatch.setattr(model, "choose_dtype", lambda device, width: torch.float32)
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    return Installation(settings, tmp_path, max_length=40)  # some prompts are cut


def tower_pairs(tiny: Installation) -> str:
    """Publish pairs whose queries are mixed, as no table promises them sorted."""
    pairs = pl.read_parquet(tiny.folder / "snapshot" / "pairs.parquet")
    (tiny.folder / "asked").mkdir()
    mixed = pairs.sample(fraction=1.0, shuffle=True, seed=3)
    mixed.select("query_id", "product_id", "locale").write_parquet(
        tiny.folder / "asked" / "pairs.parquet"
    )
    return tiny.publish("tower_pairs", tiny.folder / "asked")


def in_shards(tiny: Installation, of: int, given: dict[str, object], **params: str) -> Artifact:
    refs = [tiny.run("score_shard", given, shard=k, of=of, **params).ref for k in range(of)]
    return tiny.run("join_shards", given | {"shards": refs}, **params)


def assert_same(found: Artifact, whole: Artifact) -> None:
    one, other = (pl.read_parquet(a.file("scored.parquet")) for a in (found, whole))
    assert one.schema == other.schema
    assert one.drop(P).equals(other.drop(P))  # the same pairs in the same order
    assert np.abs(one.select(P).to_numpy() - other.select(P).to_numpy()).max() < 1e-5
    assert dict(found.facts) == pytest.approx(dict(whole.facts))


def test_a_query_is_in_one_shard_whatever_else_is_asked(tmp_path: Path) -> None:
    pairs = load_pairs(make_snapshot(tmp_path, target_labels=True), "train")
    number = shard_numbers(pairs, 3)
    assert set(number) == {0, 1, 2}
    shard_of = dict(zip(pairs["query_id"], number, strict=True))
    assert [shard_of[q] for q in pairs["query_id"]] == number.to_list()
    some = pairs.sample(fraction=0.5, shuffle=True, seed=1)
    assert shard_numbers(some, 3).to_list() == [shard_of[q] for q in some["query_id"]]
    assert shard_numbers(pairs.clear(), 3).is_empty()


@pytest.mark.parametrize("space", ["relevance", "cvr"])
def test_three_shards_score_given_pairs_as_one_task_does(tiny: Installation, space: str) -> None:
    chosen = tiny.run(
        "select_llm", {"snapshot": tiny.snapshot, "llms": [tiny.train(rqa=tiny.rqa).ref]}
    )
    given: dict[str, object] = {
        "snapshot": tiny.snapshot, "llm": chosen.ref, "rqa": tiny.rqa, "pairs": tower_pairs(tiny)
    }  # fmt: skip
    whole = tiny.run("score_pairs", given, space=space)
    assert whole.facts["truncated"] > 0
    found = in_shards(tiny, 3, given, space=space)
    assert_same(found, whole)
    assert found.inputs["llm"] == chosen.ref  # of which later steps ask
    many = in_shards(tiny, 40, given, space=space)  # more than queries: some are empty
    assert_same(many, whole)


@pytest.mark.parametrize("memorised", [0.05, 1.01])
def test_soft_labels_in_shards_are_those_of_one_task(tiny: Installation, memorised: float) -> None:
    """In sample, and cross-fitted where the teacher knows its labels (A18)."""
    llm = tiny.market.llm
    distillation = llm.distillation.model_copy(update={"memorised": memorised})
    llm = llm.model_copy(update={"distillation": distillation})
    tiny.market = tiny.market.model_copy(update={"llm": llm})
    teacher = tiny.train()
    given: dict[str, object] = {"snapshot": tiny.snapshot, "llm": teacher.ref}
    whole = tiny.run("score_pairs", given, split="train")
    found = in_shards(tiny, 2, given, split="train")
    assert found.facts["cross_fitted"] is (memorised < 1)
    facts = {k: v for k, v in found.facts.items() if k != "agreement_by_locale"}
    assert facts == pytest.approx({k: whole.facts[k] for k in facts})
    one, other = (pl.read_parquet(a.file("scored.parquet")) for a in (found, whole))
    assert one.drop(P).equals(other.drop(P))
    assert np.abs(one.select(P).to_numpy() - other.select(P).to_numpy()).max() < 1e-5
    student = tiny.train(soft=found.ref)
    worse = tiny.publish_with("train_llm/worse", student, dev_micro_f1=-1.0)
    ended = in_shards(tiny, 2, {"snapshot": tiny.snapshot, "llm": worse.ref}, split="train")
    assert ended.facts["pairs"] == 0 and ended.facts["stopped"]  # A17


def test_a_killed_shard_is_scored_again_and_no_other(
    tiny: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {
        "snapshot": tiny.snapshot, "llm": tiny.train().ref, "pairs": tower_pairs(tiny)
    }  # fmt: skip
    scored: list[str] = []
    score = RelevanceScorer.score

    def killed_in_the_second(self: RelevanceScorer, *args: object, **more: object) -> object:
        scored.extend(args[2]["query_id"])  # type: ignore[index]
        if len(calls) == 1:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append("done")
        return score(self, *args, **more)  # type: ignore[arg-type]

    calls: list[str] = []
    monkeypatch.setattr(RelevanceScorer, "score", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        in_shards(tiny, 3, given)
    found = in_shards(tiny, 3, given)
    assert calls == ["done", "killed", "done", "done"]
    pairs = pl.read_parquet(tiny.folder / "asked" / "pairs.parquet")
    second = set(pairs.filter(shard_numbers(pairs, 3) == 1)["query_id"])
    for query, asked in pairs["query_id"].value_counts().iter_rows():
        assert scored.count(query) == asked * (2 if query in second else 1)
    monkeypatch.undo()
    monkeypatch.setattr(model, "choose_dtype", lambda device, width: torch.float32)
    assert_same(found, tiny.run("score_pairs", given))


def teacher_of(tiny: Installation, by: str) -> str:
    """Publish a choice of the teacher, with a stack of the snapshot's own n-grams."""
    texts = JudgedTexts.of(tiny.folder / "snapshot")
    pairs = texts.pairs.filter(pl.col("split") != "gold")
    ngrams = texts.fit_ngrams("xx-XX")
    told = logits(texts.said_by(ngrams, pairs))
    folder = tiny.folder / f"teacher-{by}"
    folder.mkdir()
    ngrams.save(folder)
    read = np.hstack([np.zeros((len(pairs), 3)), told])  # the LLM's word counts for nothing
    fit(NGRAMS, read, pairs["grade"].cast(pl.Int64).to_numpy(), 1.0).write(folder)
    facts = {"taught_by": by, "refused": ["micro_f1 is -0.2 against tfidf"]}
    ref = f"tiny/choose_teacher/{by}"
    return tiny.store.publish(ref, folder, facts=facts, inputs={}, about={}).ref


def test_a_stack_speaks_in_shards_as_in_one_task(tiny: Installation) -> None:
    given: dict[str, object] = {
        "snapshot": tiny.snapshot, "llm": tiny.train().ref, "pairs": tower_pairs(tiny)
    }  # fmt: skip
    alone = tiny.run("score_pairs", given)
    given["teacher"] = teacher_of(tiny, "stack")
    whole = tiny.run("score_pairs", given)
    assert_same(in_shards(tiny, 3, given), whole)
    one, other = (pl.read_parquet(a.file("scored.parquet")) for a in (alone, whole))
    assert one.drop(P).equals(other.drop(P)) and one.schema == other.schema
    texts = JudgedTexts.of(tiny.folder / "snapshot")
    teacher = tiny.store.open(str(given["teacher"])).path
    stack, model = Stack.read(teacher), CharacterModel.load(teacher)
    read = np.hstack([logits(probabilities_of(one)), logits(texts.said_by(model, one))])
    assert np.allclose(probabilities_of(other), stack.probabilities(read), atol=1e-6)
    assert not np.allclose(probabilities_of(other), probabilities_of(one), atol=0.05)


def test_of_a_refused_teacher_no_pair_is_scored(
    tiny: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {
        "snapshot": tiny.snapshot, "llm": tiny.train().ref, "pairs": tower_pairs(tiny),
        "teacher": teacher_of(tiny, "labels"),
    }  # fmt: skip
    monkeypatch.setattr(RelevanceScorer, "load", None)  # would fail
    whole = tiny.run("score_pairs", given)
    assert whole.facts == {
        "stopped": "dev refuses the teacher: micro_f1 is -0.2 against tfidf", "pairs": 0
    }  # fmt: skip
    assert in_shards(tiny, 2, given).facts == whole.facts


def test_what_is_not_every_shard_once_is_refused(tiny: Installation) -> None:
    teacher = tiny.train()
    given: dict[str, object] = {
        "snapshot": tiny.snapshot, "llm": teacher.ref, "pairs": tower_pairs(tiny)
    }  # fmt: skip
    a, b = (tiny.run("score_shard", given, shard=k, of=2) for k in (0, 1))
    for wrong in ([a.ref], [b.ref, a.ref], [a.ref, a.ref], [a.ref, b.ref, b.ref]):
        with pytest.raises(DataError, match="give every shard of one scoring, in order"):
            tiny.run("join_shards", given | {"shards": wrong})
    other = tiny.publish_with("train_llm/other", teacher, dev_micro_f1=0.51)
    with pytest.raises(DataError, match="of these pairs and this model"):
        tiny.run("join_shards", given | {"llm": other.ref, "shards": [a.ref, b.ref]})
    with pytest.raises(ConfigError, match="every shard in input 'shards'"):
        tiny.run("join_shards", given)
    with pytest.raises(ConfigError, match="no shard 2 of 2"):
        tiny.run("score_shard", given, shard=2, of=2)
    (tiny.folder / "short").mkdir()
    scored = pl.read_parquet(b.file("scored.parquet"))
    scored.vstack(scored.head(1)).write_parquet(tiny.folder / "short" / "scored.parquet")
    twice = tiny.store.publish(
        "tiny/score_shard/twice", tiny.folder / "short",
        facts=b.facts, inputs=b.inputs, about={},
    )  # fmt: skip
    with pytest.raises(DataError, match=f"holds {len(scored) + 1} pairs, not the {len(scored)}"):
        tiny.run("join_shards", given | {"shards": [a.ref, twice.ref]})


def test_another_cut_is_no_other_training(tiny: Installation) -> None:
    trained = tiny.train()
    llm = tiny.market.llm.model_copy(update={"score_shards": 8})
    tiny.market = tiny.market.model_copy(update={"llm": llm})
    assert tiny.train().ref == trained.ref
