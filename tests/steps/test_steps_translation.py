"""The steps of translation augmentation on a small snapshot, and what trainings make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks import records, tracking
from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.curation.translation.run import DECIDED
from csrm_tasks.curation.translation.table import Table
from csrm_tasks.dataset.sides import add_sides, text_ids
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.llm.augmented import joined
from csrm_tasks.llm.data import load_fields, load_pairs, relevance_rows
from csrm_tasks.llm.training import rounds
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.translated import load_translated, translated_rows
from csrm_tasks.records import TRANSLATED, read_table, write_table
from csrm_tasks.sections import Augmentation
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps.running import run_step
from csrm_tasks.store.engine import open_store, writing
from csrm_tasks.text import normalise
from tests.llm_fixtures import TARGET, make_base, make_given, make_market, make_snapshot, run_as
from tests.steps.test_steps_llm import Installation

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

SNAP = "tiny/snapshot/1"


class Home:
    """An installation with one tiny market and a snapshot without target labels."""

    def __init__(self, folder: Path) -> None:
        self.settings = load_settings({"CSRM_HOME": str(folder / "home")})
        self.store = ArtifactStore(self.settings.artifacts, self.settings.cache)
        self.market = make_market(folder / "base")
        self.snapshot = make_snapshot(folder / "snapshot")
        self.publish(SNAP, self.snapshot)

    def publish(self, ref: str, folder: Path) -> None:
        self.store.publish(ref, folder, facts={}, inputs={}, about={})

    def run(self, step: str, inputs: dict[str, Any], **params: Any) -> Artifact:
        return self.store.open(run_step(step, self.market, inputs, params, self.settings))

    def with_augmentation(self, **given: Any) -> None:
        llm = self.market.llm.model_copy(update={"augmentation": Augmentation(**given)})
        self.market = self.market.model_copy(update={"llm": llm})

    def translated(self, snapshot: str = SNAP, of: int = 2, **more: str) -> Artifact:
        given = {"snapshot": snapshot} | more
        shards = [self.run("translate_shard", given, shard=k, of=of).ref for k in range(of)]
        return self.run("translate_queries", {"snapshot": snapshot, "shards": shards})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    made = Home(tmp_path)
    made.with_augmentation(translator="table")
    return made


def test_train_pairs_come_again_with_translated_queries(home: Home) -> None:
    made = home.translated()
    rows = read_table(made.file("translated.parquet"), TRANSLATED)
    decided = read_table(made.file("decisions.parquet"), DECIDED)
    pairs = pl.read_parquet(home.snapshot / "pairs.parquet")
    queries = pl.read_parquet(home.snapshot / "queries.parquet")
    train = pairs.filter(split="train")
    norms = queries.join(pairs.filter(pl.col("split") != "train"), on="query_id", how="semi")
    free = train.join(queries, on="query_id").filter(~pl.col("norm").is_in(norms["norm"].implode()))
    assert rows.height == free.height > 0 and made.facts["counts"] == {
        TARGET: {"kept": rows.height}
    }
    assert sorted(rows["pair_id"]) == sorted(free["pair_id"])
    words = dict(pl.read_parquet(home.snapshot / "translations.parquet").select(
        "source_text", "target_text").iter_rows())  # fmt: skip
    for query, text in rows.select("query", "text").iter_rows():
        assert text == " ".join(words[w] for w in query.split())
    assert decided["query_id"].n_unique() == decided.height == made.facts["queries"]
    assert made.facts["translators"] == rows["translator"].unique().to_list()
    alone = home.translated(of=1)
    for name in ("translated", "decisions"):
        both = (pl.read_parquet(a.file(f"{name}.parquet")) for a in (made, alone))
        one, other = both
        assert one.equals(other), name


def test_what_a_week_before_has_translated_is_not_asked_again(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    inner = Table.translate

    def translate(self: Table, texts: list[str], *direction: str) -> list[tuple[str, ...]]:
        asked.extend(texts)
        return inner(self, texts, *direction)

    monkeypatch.setattr(Table, "translate", translate)
    first = home.translated()
    before = len(asked)
    assert before > 0
    # Next week: other pairs, and one query more, of words that the table has.
    folder = make_snapshot(tmp_path / "next")
    queries = pl.read_parquet(folder / "queries.parquet")
    known = queries.join(load_pairs(folder, "train"), on="query_id", how="semi").head(1)
    text, translation = "기저귀 기저귀 라면", "辣味 辣味 拉麵"
    new = known.with_columns(query_id=pl.lit("new"), query=pl.lit(text), norm=pl.lit(text))
    write_table(pl.concat([queries, new]), records.QUERIES, folder / "queries.parquet")
    pairs = pl.read_parquet(folder / "pairs.parquet")
    more = load_pairs(folder, "train").head(1)
    more = more.with_columns(pair_id=pl.lit("new/p"), query_id=pl.lit("new"))
    write_table(pl.concat([pairs, more]), records.PAIRS, folder / "pairs.parquet")
    home.publish("tiny/snapshot/2", folder)
    second = home.translated("tiny/snapshot/2")
    assert sorted(asked[before:]) == sorted([text, translation])
    assert second.facts["pairs"] == first.facts["pairs"] + 1


def test_kept_translations_that_are_damaged_are_asked_again(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    shard = home.run("translate_shard", {"snapshot": SNAP}, shard=0, of=1)
    shard.file("memory.parquet").write_bytes(b"cut")
    fresh = ArtifactStore(home.settings.artifacts, home.settings.cache)
    home.store = fresh
    made = home.translated(of=2)
    assert made.facts["pairs"] > 0 and f"translations of {shard.ref} are not used" in caplog.text


def test_a_text_that_any_snapshot_held_out_is_dropped_for_good(home: Home) -> None:
    rows = pl.read_parquet(home.translated().file("translated.parquet"))
    text = rows["text"][0]
    sides = pl.DataFrame([text_ids(pl.Series([normalise(text)]))])
    with writing(open_store(home.settings.db_url), "tiny") as connection:
        add_sides(connection, "tiny", sides.with_columns(side=pl.lit("gold"), snapshot=pl.lit("s")))
    again = home.translated()
    left = pl.read_parquet(again.file("translated.parquet"))
    lost = rows.filter(text=text).height
    assert text not in left["text"].to_list() and left.height == rows.height - lost
    assert again.facts["counts"][TARGET]["held_out"] == lost


def test_a_language_with_labels_needs_no_translation(home: Home, tmp_path: Path) -> None:
    folder = make_snapshot(tmp_path / "both", target_labels=True)
    home.publish("tiny/snapshot/3", folder)
    home.with_augmentation(translator="llm")  # which is not asked, and need not be there
    made = home.translated("tiny/snapshot/3", of=1)
    assert (made.facts["pairs"], made.facts["queries"]) == (0, 0)
    assert load_translated(folder, made.path).is_empty()


def fails(home: Home, kind: type[Exception], said: str, of: int = 1) -> None:
    with pytest.raises(kind, match=said) as caught:
        home.translated(of=of)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_is_refused_in_a_line(home: Home, tmp_path: Path) -> None:
    home.with_augmentation(translator="llm")
    fails(home, ConfigError, "there is no LLM yet")
    home.with_augmentation()
    fails(home, ConfigError, "translator is null")
    home.with_augmentation(translator="seq2seq", model=str(tmp_path))
    fails(home, ConfigError, "sequence-to-sequence model .* cannot be loaded")
    home.with_augmentation(translator="table")
    path = home.snapshot / "translations.parquet"
    rows = pl.read_parquet(path)
    for ref, left, kind, said in (
        ("tiny/snapshot/4", rows.clear(), DataError, "no translations from ko-KR to zh-TW"),
        ("tiny/snapshot/5", rows.filter(source_text="없는말"), DataError, "no translations from"),
        ("tiny/snapshot/6", rows.head(1), DataError, r"no translation is left of .*nothing \d+"),
    ):
        folder = make_snapshot(tmp_path / ref[-1])
        write_table(left, records.TRANSLATIONS, folder / "translations.parquet")
        home.publish(ref, folder)
        with pytest.raises(kind, match=said) as caught:
            home.translated(ref, of=1)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no shard 2 of 2"):
        home.run("translate_shard", {"snapshot": SNAP}, shard=2, of=2)


def test_shards_of_another_snapshot_or_too_few_of_them_are_refused(
    home: Home, tmp_path: Path
) -> None:
    home.publish("tiny/snapshot/7", make_snapshot(tmp_path / "other", n=36))
    first, other = (
        home.run("translate_shard", {"snapshot": s}, shard=0, of=2).ref
        for s in (SNAP, "tiny/snapshot/7")
    )
    wrong = [
        ([], "every shard"), ([first], "not shard 0 of 1"), ([first, other], "not shard 1 of 2"),
        ([first, first], "not shard 1 of 2"),
    ]  # fmt: skip
    for shards, said in wrong:
        with pytest.raises((ConfigError, DataError), match=said):
            home.run("translate_queries", {"snapshot": SNAP, "shards": shards})


def test_translations_of_another_snapshot_are_refused_in_a_line(home: Home, tmp_path: Path) -> None:
    rows = pl.read_parquet(home.translated().file("translated.parquet"))
    queries = pl.read_parquet(home.snapshot / "queries.parquet")
    pairs = pl.read_parquet(home.snapshot / "pairs.parquet")
    held = queries.join(pairs.filter(pl.col("split") == "gold"), on="query_id", how="semi")
    wrong = {
        "text": {"text": held["query"][0].upper()},
        "grade": {"grade": 7},
        "pair": {"pair_id": "another"},
        "split": {"pair_id": pairs.filter(split="gold")["pair_id"][0]},
    }
    for name, change in wrong.items():
        here = pl.int_range(pl.len()) == 0
        bad = rows.with_columns(
            pl.when(here).then(pl.lit(v)).otherwise(k).alias(k) for k, v in change.items()
        )
        write_table(bad, TRANSLATED, tmp_path / name / "translated.parquet")
        with pytest.raises(DataError, match=rf"1 of {rows.height} are not of this") as caught:
            load_translated(home.snapshot, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert load_translated(home.snapshot, None).is_empty()


def test_a_translated_pair_has_its_pairs_label_text_and_weight(home: Home) -> None:
    """What a filter has left out does not come back, what it weighs down stays light (A39)."""
    found = load_translated(home.snapshot, home.translated().path)
    fields, pairs = load_fields(home.snapshot), load_pairs(home.snapshot, "train")
    rng = np.random.default_rng(0)
    kept = pairs.sample(fraction=0.5, seed=1)
    soft = rng.dirichlet(np.ones(3), kept.height).astype(np.float32)
    light = rng.choice(np.asarray([0.3, 1.0], np.float32), kept.height)
    rows = replace(relevance_rows(fields, kept, soft), weights=light)
    made = translated_rows(fields, found, rows, 0.5)
    own = found.filter(pl.col("pair_id").is_in(kept["pair_id"].implode()))
    assert 0 < len(made) == own.height < found.height
    assert made.weights is not None
    texts = dict(found.select("pair_id", "text").iter_rows())
    for name, query, product, target, weight in zip(
        made.names, made.queries, made.products, made.targets, made.weights, strict=True
    ):
        kind, locale, pair = name.split("/", 2)
        i = rows.names.index(pair)
        assert (kind, locale, query.query) == ("translated", TARGET, texts[pair])
        assert query.titles == () and product is rows.products[i]
        assert target.tolist() == soft[i].tolist()
        assert weight == pytest.approx(0.5 * light[i])
    assert len(joined(rows, made)) == len(rows) + len(made)
    whole = translated_rows(fields, found, relevance_rows(fields, pairs), 1.0)
    assert len(whole) == found.height and whole.weights is not None and set(whole.weights) == {1.0}


def test_a_training_learns_them_beside_their_pairs_in_each_half(home: Home, tmp_path: Path) -> None:
    given = make_given(tmp_path / "given")
    home.publish("tiny/snapshot/8", given.snapshot)
    folder = home.translated("tiny/snapshot/8").path
    total = load_translated(given.snapshot, folder).height
    market = make_market(make_base(tmp_path / "base"), steps=4)
    more = replace(given, translated=folder)
    plain = run_as("plain", market, given, tmp_path)
    added = run_as("added", market, more, tmp_path)
    assert (plain.facts["translated_pairs"], added.facts["translated_pairs"]) == (0, total)
    assert added.facts["train_pairs"] == plain.facts["train_pairs"]
    assert added.facts["dev_log_loss"] != plain.facts["dev_log_loss"]
    assert added.params["augmentation.weight"] == 1.0
    halves = [run_as(f"half{k}", market, replace(more, fold=k), tmp_path) for k in (0, 1)]
    assert sum(h.facts["translated_pairs"] for h in halves) == total


def test_the_halves_of_a_teacher_learn_what_it_has_learnt(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-fitting (A18) repeats the recipe: the translated pairs are a part of it."""
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    tiny = Installation(settings, tmp_path, distillation={"memorised": 0.05})
    write_table(pl.DataFrame(schema=TRANSLATED), TRANSLATED, tmp_path / "t" / "translated.parquet")
    translated = tiny.publish("translate_queries", tmp_path / "t")
    teacher = tiny.train(rqa=tiny.rqa, translated=translated)
    seen: list[FinetuneInputs] = []

    def cross_fit(market: object, given: FinetuneInputs, work: Path) -> None:
        seen.append(given)
        raise DataError("seen")

    monkeypatch.setattr(rounds, "cross_fit", cross_fit)
    inputs = {"snapshot": tiny.snapshot, "llm": teacher.ref, "rqa": tiny.rqa}
    with pytest.raises(DataError, match="seen"):
        tiny.run("score_pairs", dict(inputs), split="train")
    assert [given.translated for given in seen] == [tiny.store.open(translated).path]
