"""Markets of qc or qi alone, from deliveries to the verdict: translations, negatives, filter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.blobs import text_digest
from csrm_tasks.curation.trace import traced
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.llm.task_data import load_task_pairs
from csrm_tasks.llm.training.inputs import FinetuneInputs, load_training_data
from csrm_tasks.options import ablation_arms, options_on
from csrm_tasks.records import DECISIONS, TASK_NEGATIVES, TASK_PAIRS, read_table, write_table
from csrm_tasks.retrieval.negatives import Counts
from csrm_tasks.retrieval.task_negatives import draw_task_negatives
from csrm_tasks.sections import Ablation, Filter, Gate, Negatives
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.text import normalise, query_id
from tests.data_fixtures import (
    DAY0,
    KO,
    ZH,
    ingest,
    label,
    land_lines,
    market,
    open_artifact,
    product,
    snapshot,
)
from tests.llm_fixtures import make_base, make_market

pytestmark = pytest.mark.usefixtures("fingerprints_hold")
WORDS = ["tea", "mug", "pot", "jar", "lid", "cup", "pan", "tin", "fork", "spoon", "knife", "bowl"]
CHINESE = dict(zip(WORDS, "茶杯壺罐蓋盞鍋錫叉匙刀碗", strict=True))
FLIPPED = 7  # every so manieth answer is wrong


class Market:
    """A tiny market of one task: train in ko-KR, dev there and in zh-TW, gold in zh-TW."""

    def __init__(self, settings: Settings, folder: Path, task: str) -> None:
        self.settings, self.task = settings, task
        own = make_market(make_base(folder / "base"), steps=8, evaluate_every=8)
        llm = own.llm.model_copy(update={
            "negatives": Negatives(per_query=1, easy=0.0, ranked=1.0, mined=0.0, first=0, last=6),
            "augmentation": own.llm.augmentation.model_copy(update={"translator": "table"}),
            "label_smoothing": 0.1, "misspelt_share": 0.5,
        })  # fmt: skip
        rules = {"dev_share": 0.34, "gold_raters": 3, "gold_agree": 3, "qi_substitute": "no"}
        self.market = market(
            tasks=(task,), llm=llm, gate=Gate(slice_min=2, margin=0.5, task_floors={task: 0.01}),
            filter=Filter(action="remove", scorer="linear", threshold=0.5, max_share=0.5),
            ablation=Ablation(enabled=True, steps=4), generated=True,
        )  # fmt: skip
        self.market = self.market.model_copy(
            update={"snapshot": self.market.snapshot.model_copy(update=rules)}
        )
        land(settings)
        ingest(settings, DAY0, self.market)
        self.snapshot = snapshot(settings, 2, DAY0, self.market)

    def run(self, step: str, inputs: dict[str, Any], **params: object) -> Artifact:
        return open_artifact(
            self.settings, run_step(step, self.market, inputs, params, self.settings)
        )


def land(settings: Settings) -> None:
    """Every word is a query; its own item is right, and sometimes somebody says otherwise."""
    for locale in (KO, ZH):
        items = [product(i, f"{w} number {i % 3}", "", f"Home > {w}") for i, w in enumerate(WORDS)]
        land_lines(settings, DAY0, f"{locale}/catalogue.jsonl", items)
    labels, paths, n = [], [], 0
    for i, word in enumerate(WORDS):
        for other in (i, (i + 1) % len(WORDS), (i + 5) % len(WORDS)):
            n += 1
            yes = (other == i) != (n % FLIPPED == 0)
            labels.append(label(n, word, f"p{other}", 2 if yes else 0))
            paths.append({"label_id": f"c{n}", "query": word, "category": f"Home > {WORDS[other]}",
                          "label": "yes" if yes else "no", "rater_id": "r1"})  # fmt: skip
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", labels)
    land_lines(settings, DAY0, f"{KO}/query_categories.jsonl", paths)
    gold = [w + " gold" for w in WORDS[:4]]
    judged = [(w, i, other, r) for i, w in enumerate(gold) for other in (i, i + 1)
              for r in range(3)]  # fmt: skip
    land_lines(settings, DAY0, f"{ZH}/labels.jsonl", [
        label(f"g{w}{other}{r}", w, f"p{other}", 2 if other == i else 0, f"r{r}")
        for w, i, other, r in judged
    ])  # fmt: skip
    land_lines(settings, DAY0, f"{ZH}/query_categories.jsonl", [
        {"label_id": f"d{w}{other}{r}", "query": w, "category": f"Home > {WORDS[other]}",
         "label": int(other == i), "rater_id": f"r{r}"} for w, i, other, r in judged
    ])  # fmt: skip
    words = [
        {"translation_id": f"t{a}", "kind": "query", "source_text": a, "target_text": b}
        for a, b in CHINESE.items()
    ]
    land_lines(settings, DAY0, f"{KO}/translations.jsonl", words)


@pytest.fixture(scope="module", params=["qc", "qi"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Market]:
    """What was found once is found again, so the tests share one installation a task."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "log_run", lambda *args, **more: "run")
        settings = load_settings({"CSRM_HOME": str(folder / "home")})
        yield Market(settings, folder, request.param)


@pytest.fixture
def alone(made: Market) -> Iterator[Market]:
    before = made.market
    yield made
    made.market = before


def test_one_task_alone_learns_translations_and_negatives_and_passes(alone: Market) -> None:
    snap, task = alone.snapshot.ref, alone.task
    judged = load_task_pairs(alone.snapshot.path)
    assert table(alone.snapshot.path, "pairs").is_empty() and set(judged["task"]) == {task}
    asked = set(judged.filter(split="train")["query_id"])
    assert asked <= set(table(alone.snapshot.path, "queries")["query_id"])

    shard = alone.run("translate_shard", {"snapshot": snap}, shard=0, of=1)
    translated = alone.run("translate_queries", {"snapshot": snap, "shards": [shard.ref]})
    assert translated.facts["queries"] == len(asked) and translated.facts["pairs"] == 0
    train = judged.filter(split="train")
    assert translated.facts["task_pairs"] == {task: train.height}

    mined = alone.run("mine_task_negatives", {"snapshot": snap, "llm": None})
    drawn = read_table(mined.file("task_negatives.parquet"), TASK_NEGATIVES)
    assert set(drawn["query_id"]) <= asked and set(drawn["task"]) == {task}
    assert drawn.join(judged, on=["query_id", "product_id"], how="semi").is_empty()

    folds = [alone.run("filter_fold", {"snapshot": snap}, fold=k).ref for k in (0, 1)]
    filtered = alone.run("filter_noise", {"snapshot": snap, "folds": folds})
    decided = read_table(filtered.file("decisions.parquet"), DECISIONS)
    assert set(decided["pair_id"]) == set(train["pair_id"])
    gone = set(decided.filter(action="remove")["pair_id"])
    assert gone and set(filtered.facts["task_thresholds"]) == {task}

    given = {"snapshot": snap, "translated": translated.ref, "negatives": mined.ref,
             "filtered": filtered.ref}  # fmt: skip
    rows = learnt(alone, given)
    assert not gone & {name.rsplit("/", 1)[-1] for name in rows}
    made = [n for n in rows if n.startswith("translated/")]
    assert len(made) == train.height - len(gone)
    assert len([n for n in rows if n.startswith("ranked/items/")]) == drawn.height
    llm = alone.run("train_llm", given, arm="tasks")
    assert llm.facts[f"{task}_pairs"] == len(rows)

    kept = train.filter(~pl.col("pair_id").is_in(sorted(gone)))["pair_id"][0]
    assert traced_to(alone, kept)[-1] == f"training {llm.ref}: translated pair learnt"
    assert f"training {llm.ref}: left out" in traced_to(alone, sorted(gone)[0])
    told = traced_to(alone, drawn["pair_id"][0])
    assert told[0].endswith("which nobody judged")
    assert told[-1] == f"training {llm.ref}: learnt as a no"

    evaluated = alone.run("evaluate_tasks", {"snapshot": snap, "llm": llm.ref})
    gate = alone.run("gate_tasks", {"evaluation": evaluated.ref})
    assert gate.facts["verdict"] == "PASS", gate.facts["reasons"]
    again = alone.run("mine_task_negatives", {"snapshot": snap, "llm": llm.ref})
    asked_of = read_table(again.file("task_negatives.parquet"), TASK_NEGATIVES)
    assert asked_of["p0"].min() >= 0.5 and asked_of.height < drawn.height + 1


def test_the_llm_judges_the_folds_of_one_task_alone(alone: Market) -> None:
    rules = alone.market.filter.model_copy(update={"scorer": "llm", "steps": 4})
    alone.market = alone.market.model_copy(update={"filter": rules})
    made = alone.run("filter_fold", {"snapshot": alone.snapshot.ref}, fold=0)
    scored = pl.read_parquet(made.file("scored.parquet"))
    sums = (scored["p0"] + scored["p1"]).to_list()
    assert scored.height > 5 and sums == pytest.approx([1.0] * len(sums), abs=1e-5)
    assert set(scored["p2"]) == {0.0} and scored["p0"].n_unique() > 3
    judged = load_task_pairs(alone.snapshot.path).filter(pl.col("split") != "gold")
    other = alone.run("filter_fold", {"snapshot": alone.snapshot.ref}, fold=1)
    both = pl.concat([scored, pl.read_parquet(other.file("scored.parquet"))])
    assert sorted(both["pair_id"]) == sorted(judged["pair_id"])


def traced_to(alone: Market, row: str) -> list[str]:
    store = ArtifactStore(alone.settings.artifacts, alone.settings.cache)
    with reading(open_store(alone.settings.db_url)) as connection:
        return list(traced(store, connection, "tiny", row, alone.snapshot.ref))


def learnt(alone: Market, given: dict[str, str]) -> list[str]:
    """The names of the rows that a training with these inputs learns."""
    paths = {k: open_artifact(alone.settings, ref).path for k, ref in given.items()}
    inputs = FinetuneInputs(
        paths["snapshot"], None, None, "x", 0, negatives=paths["negatives"],
        filtered=paths["filtered"], translated=paths["translated"],
    )  # fmt: skip
    (rows,) = load_training_data(alone.market, inputs).tasks
    return list(rows.names)


def test_one_task_alone_has_its_options_tried_on_its_own_dev(
    alone: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csrm_tasks.curation.ablation.ENOUGH", 1)
    on = ("llm.negatives", "llm.augmentation", "llm.label_smoothing", "filter")
    assert options_on(alone.market) == on  # misspelt queries are of relevance
    snap = alone.snapshot.ref
    shard = alone.run("translate_shard", {"snapshot": snap}, shard=0, of=1)
    folds = [alone.run("filter_fold", {"snapshot": snap}, fold=k).ref for k in (0, 1)]
    given: dict[str, Any] = {
        "snapshot": snap,
        "translated": alone.run("translate_queries", {"snapshot": snap, "shards": [shard.ref]}).ref,
        "negatives": alone.run("mine_task_negatives", {"snapshot": snap}).ref,
        "filtered": alone.run("filter_noise", {"snapshot": snap, "folds": folds}).ref,
    }
    runs = [alone.run("ablation_run", given, **arm).ref for arm in ablation_arms(alone.market)]
    decided = alone.run("ablate", {"snapshot": snap, "runs": runs})
    assert [o["option"] for o in decided.facts["options"]] == list(on)
    assert decided.facts["tasks"] == [alone.task]
    dev = load_task_pairs(alone.snapshot.path).filter(split="dev")
    assert decided.facts["dev_pairs"] == dev.height
    made = alone.run("train_llm", given | {"ablation": decided.ref}, arm="tasks")
    dropped = decided.facts["dropped"]
    assert (made.facts[f"{alone.task}_pairs"] < len(learnt(alone, given))) == bool(
        {"llm.negatives", "llm.augmentation"} & set(dropped)
    )


def test_what_a_market_of_tasks_cannot_have_is_refused_in_a_line(
    alone: Market, tmp_path: Path
) -> None:
    snap = alone.snapshot.ref
    folds = [alone.run("filter_fold", {"snapshot": snap}, fold=k).ref for k in (0, 1)]
    alone.market = alone.market.model_copy(update={"filter": Filter(action="review")})
    with pytest.raises(ConfigError, match="sheets are of relevance labels"):
        alone.run("filter_noise", {"snapshot": snap, "folds": folds})
    near = alone.market.llm.negatives.model_copy(update={"first": 500, "last": 501})
    off = alone.market.llm.negatives.model_copy(update={"per_query": 0})
    many = alone.market.llm.negatives.model_copy(update={"per_query": 9})
    for config, said in ((near, "none has a candidate left"), (off, "per_query is 0"),
                         (many, "would swamp")):  # fmt: skip
        llm = alone.market.llm.model_copy(update={"negatives": config})
        alone.market = alone.market.model_copy(update={"llm": llm})
        with pytest.raises((ConfigError, DataError), match=said):
            alone.run("mine_task_negatives", {"snapshot": snap})
    alone.market = alone.market.model_copy(update={"tasks": ("relevance", alone.task)})
    with pytest.raises(ConfigError, match="for markets without relevance"):
        alone.run("mine_task_negatives", {"snapshot": snap})
    train = load_task_pairs(alone.snapshot.path).filter(split="train")
    weights = train.select("pair_id", weight=pl.lit(1.0, pl.Float32)).tail(-1)
    weights.write_parquet(tmp_path / "decisions.parquet")
    given = FinetuneInputs(alone.snapshot.path, None, None, "x", 0, filtered=tmp_path)
    with pytest.raises(DataError, match="say nothing of 1 of"):
        load_training_data(alone.market, given)
    gold = load_task_pairs(alone.snapshot.path).filter(split="gold")
    wrong = gold.head(1).select(
        "task", "pair_id", "query_id", "locale", "query", "item", product_id=pl.lit("other"),
        kind=pl.lit("easy"), channel=pl.lit("random"), rank=pl.lit(None), p0=pl.lit(None),
    )  # fmt: skip
    write_table(wrong, TASK_NEGATIVES, tmp_path / "task_negatives.parquet")
    given = FinetuneInputs(alone.snapshot.path, None, None, "x", 0, negatives=tmp_path)
    with pytest.raises(DataError, match="1 of 1 are judged pairs"):
        load_training_data(alone.market, given)


PATHS = ["a", "a > b", "a > c", "d > e", "d > e > f", "g", "g > h", "i > j"]
pair = st.tuples(
    st.sampled_from(["tea", "Tea ", "mug"]), st.sampled_from([KO, ZH]), st.sampled_from(PATHS),
    st.integers(0, 1), st.sampled_from(["train", "train", "dev", "gold"]),
)  # fmt: skip


@examples(max_examples=150, deadline=None)
@given(st.lists(pair, min_size=1, max_size=8, unique_by=lambda x: x[:3]), st.integers(1, 3),
       st.sampled_from([0.0, 0.5, 1.0]))  # fmt: skip
def test_no_negative_is_judged_held_out_or_on_a_right_path(
    rows: list[tuple[str, str, str, int, str]], per_query: int, easy: float
) -> None:
    judged = pl.DataFrame(
        [
            {"task": "qc", "pair_id": f"{q}{lo}{p}", "query_id": query_id(lo, normalise(q)),
             "product_id": text_digest("category", p), "locale": lo, "grade": g, "split": s,
             "raters": 1, "agree": 1, "query": q, "item": p} for q, lo, p, g, s in rows
        ], TASK_PAIRS,
    )  # fmt: skip
    config = Negatives(per_query=per_query, easy=easy, ranked=1 - easy, mined=0.0, first=0, last=8)
    empty = pl.DataFrame(schema={"product_id": pl.String, "locale": pl.String, "title": pl.String})
    counts = Counts()
    found = draw_task_negatives(judged, empty, config, 3, counts)
    assert found.equals(draw_task_negatives(judged.reverse(), empty, config, 3, Counts()))
    held_out = {normalise(q) for q, *_, s in rows if s != "train"}
    said = {(normalise(q), p) for q, _, p, _, s in rows if s == "train"}
    right = {(normalise(q), p) for q, _, p, g, s in rows if s == "train" and g == 1}
    for query, item, kind, rank in found.select("query", "item", "kind", "rank").iter_rows():
        norm = normalise(query)
        assert norm not in held_out and (norm, item) not in said
        own = [p for n, p in right if n == norm]
        assert not any(f"{p} > ".startswith(f"{item} > ") or f"{item} > ".startswith(f"{p} > ")
                       for p in own)  # fmt: skip
        if kind == "easy":
            assert rank is None and item.split(" > ")[0] not in {p.split(" > ")[0] for p in own}
        else:
            assert own and rank is not None
    assert found.select("query_id", "item").is_unique().all()
    each = found.group_by("query_id").len()["len"].to_list()
    assert all(n <= per_query for n in each)
    short = counts.queries - sum(n == per_query for n in each)
    assert counts.short == short
