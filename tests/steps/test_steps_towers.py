"""The five steps of the towers, run as the command line runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score

from csrm_tasks import records
from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.index import ProductIndex
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps.running import run_step
from csrm_tasks.towers.examples import Examples, soft_examples
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.cross import CrossRuntime
from csrm_tasks.towers.serving.runtime import TowerRuntime
from csrm_tasks.towers.serving.texts import product_digest, product_text, with_product_text
from csrm_tasks.towers.thresholds import choose_threshold
from csrm_tasks.towers.tower import trunks_of
from tests.towers_fixtures import SOURCE, TARGET, make_encoder, oracle, snapshot_tables

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


class World:
    """An installation with a snapshot, an untrained EBR and its index, all published."""

    def __init__(self, folder: Path, layers: int = 1, **towers: Any) -> None:
        self.settings: Settings = load_settings({"CSRM_HOME": str(folder / "home")})
        self.store = ArtifactStore(self.settings.artifacts, self.settings.cache)
        self.base = make_encoder(folder / "base", layers=layers)
        self.folder = folder
        self.tables = snapshot_tables()
        towers |= {
            "encoder": str(self.base), "dim": 16, "impressed": 8, "retrieved": 16, "random": 4,
            "steps": 90, "batch_queries": 8, "batch_products": 24, "lr": 5e-3, "lr_end": 1e-4,
            "query_tokens": 16, "title_tokens": 24,
        }  # fmt: skip
        self.market = MarketConfig.model_validate(
            {
                "market": "toy",
                "source_locale": SOURCE,
                "target_locale": TARGET,
                "llm": {"base": str(self.base)},
                "retrieval": {"ebr": {"encoder": str(self.base)}},
                "towers": towers,
            }
        )

    def publish(
        self, step: str, name: str, facts: dict[str, Any] | None = None, **inputs: str
    ) -> str:
        """Publish the files of ``folder/name``, made of ``inputs``."""
        ref = f"toy/{step}/{name}"
        self.store.publish(ref, self.folder / name, facts=facts or {}, inputs=inputs, about={})
        return ref

    def snapshot(self, name: str = "snapshot", **changed: pl.DataFrame) -> str:
        """Publish the snapshot's tables, some of them changed."""
        for table, frame in (self.tables | changed).items():
            schema = getattr(records, table.upper())
            records.write_table(frame, schema, self.folder / name / f"{table}.parquet")
        return self.publish("snapshot", name)

    def retriever(self) -> tuple[str, str]:
        """Publish an EBR and its index."""
        model = BiEncoder.from_base(str(self.base), 16, 32, seed=0).eval()
        digest = model.save(self.folder / "ebr" / "encoder")
        products = self.tables["products"].sort("product_id")
        vectors = model.encode_titles(products["title"].to_list())
        index = ProductIndex.build(
            TARGET, products["product_id"].to_list(), products["title"].to_list(), vectors, digest,
            sample=vectors[:10], exact_below=1000, seed=0,
        )  # fmt: skip
        index.save(self.folder / "index" / TARGET)
        return self.publish("train_ebr", "ebr", {"encoder_digest": digest}), self.publish(
            "build_index", "index"
        )

    def lexical(self) -> str:
        """Publish the BM25 index."""
        rows = self.tables["products"].select("product_id", "title").rows()
        Bm25Index.build(self.folder / "bm25" / TARGET, rows)
        return self.publish("build_bm25", "bm25")

    def retrieval(self, snapshot: str) -> dict[str, str]:
        """Return the inputs of tower_pairs, all published."""
        ebr, index = self.retriever()
        return {"snapshot": snapshot, "bm25": self.lexical(), "ebr": ebr, "index": index}

    def teacher(self, pairs: str) -> str:
        """Publish the oracle's scores of a tower_pairs artifact."""
        found = pl.read_parquet(self.store.open(pairs).file("pairs.parquet"))
        path = self.folder / "scored" / "scored.parquet"
        records.write_table(oracle(found, self.tables), records.SCORED, path)
        return self.publish("score_pairs", "scored", pairs=pairs)

    def run(self, name: str, inputs: dict[str, Any], **params: Any) -> Any:
        """Run a step and open what it made."""
        return self.store.open(run_step(name, self.market, inputs, params, self.settings))


def shown_examples(world: World, chain: dict[str, Any], products: pl.DataFrame) -> Examples:
    """Return what the teacher said of pairs that were not drawn at random, one by one."""
    pairs = pl.read_parquet(chain["pairs"].file("pairs.parquet"))
    random = set(pairs.filter(source="random").select("query_id", "product_id").rows())
    scored = world.store.open("toy/score_pairs/scored").file("scored.parquet")
    said = records.read_table(scored, records.SCORED)
    keys = said.select("query_id", "product_id").rows()
    shown = said.filter([key not in random for key in keys])
    assert 0 < len(shown) < len(said)
    return soft_examples(shown, world.tables["queries"], products, world.tables["pairs"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def chain(world: World) -> dict[str, Any]:
    """The whole chain once: pairs, soft towers, export, embeddings, gold scores."""
    snapshot = world.snapshot()
    made = {"pairs": world.run("tower_pairs", world.retrieval(snapshot))}
    scored = world.teacher(made["pairs"].ref)
    made["towers"] = world.run(
        "train_towers", {"snapshot": snapshot, "scored": scored}, target="soft"
    )
    given = {"snapshot": snapshot, "towers": made["towers"].ref}
    made["export"] = world.run("export_towers", given)
    given = {"snapshot": snapshot, "export": made["export"].ref}
    made["embeddings"] = world.run("embed_products", given)
    made["gold"] = world.run("score_towers", given, split="gold")
    return made


def test_tower_pairs(world: World, chain: dict[str, Any]) -> None:
    found = pl.read_parquet(chain["pairs"].file("pairs.parquet"))
    assert found.columns == ["query_id", "product_id", "locale", "source"]
    assert set(found["locale"]) == {TARGET}
    assert set(found["source"]) == {"impressed", "retrieved", "random"}
    learnt = set(world.tables["pairs"].filter(split="train")["query_id"])
    assert set(found["query_id"]) == learnt
    assert found.group_by("query_id").len()["len"].unique().to_list() == [28]
    assert chain["pairs"].facts["pairs"] == len(found)


def test_train_towers_soft(chain: dict[str, Any]) -> None:
    artifact = chain["towers"]
    dev = pl.read_parquet(artifact.file("dev_scores.parquet"))
    assert dev.columns == ["pair_id", "grade", "em", "defect"]
    assert artifact.facts["dev_locale"] == TARGET
    for head, positive in (("em", 2), ("defect", 0)):
        truth = dev["grade"].to_numpy() == positive
        majority = f1_score(truth, np.ones(len(truth), bool))
        assert artifact.facts[f"dev_{head}_f1"] > majority + 0.1
    assert artifact.facts["loss"] < 1.0


def test_a_text_longer_than_the_encoder_reads_is_refused_before_training(
    world: World, chain: dict[str, Any]
) -> None:
    """66 positions, of which RoBERTa's kin leave two to padding."""
    towers = world.market.towers.model_copy(update={"title_tokens": 65})
    market = world.market.model_copy(update={"towers": towers})
    inputs = {"snapshot": "toy/snapshot/snapshot"}
    with pytest.raises(ConfigError, match=r"towers\.title_tokens is 65, but .* reads 64 tokens"):
        run_step("train_towers", market, inputs, {"target": "hard"}, world.settings)


def test_train_towers_hard_is_the_same_towers_in_equal_steps(
    world: World, chain: dict[str, Any]
) -> None:
    hard = world.run("train_towers", {"snapshot": "toy/snapshot/snapshot"}, target="hard")
    assert hard.facts["steps"] == chain["towers"].facts["steps"]
    assert hard.facts["pairs"] == len(world.tables["pairs"].filter(split="train"))
    files = [sorted(p.name for p in a.path.rglob("*")) for a in (hard, chain["towers"])]
    assert files[0] == files[1]


def test_towers_of_a_refused_teacher_are_those_of_hard_labels(
    world: World, chain: dict[str, Any]
) -> None:
    towers = world.market.towers.model_copy(update={"steps": 6, "thresholds": "teacher"})
    market = world.market.model_copy(update={"towers": towers})
    (world.folder / "nothing").mkdir(exist_ok=True)
    teacher = world.publish("choose_teacher", "nothing", {"taught_by": "labels"})
    stopped = world.publish(
        "join_shards", "nothing", {"stopped": "dev refuses the teacher: so bad", "pairs": 0},
        pairs=chain["pairs"].ref, teacher=teacher,
    )  # fmt: skip
    snapshot = {"snapshot": "toy/snapshot/snapshot"}

    def trained(target: str, **more: str) -> Artifact:
        ref = run_step("train_towers", market, snapshot | more, {"target": target}, world.settings)
        return world.store.open(ref)

    soft, hard = trained("soft", scored=stopped), trained("hard")
    differing = {k for k in hard.facts if soft.facts[k] != hard.facts[k]}
    assert differing == {"target", "teacher"}
    assert soft.facts["taught_by"] == "labels" and soft.facts["teacher"] == teacher
    for file in ("towers.json", "dev_scores.parquet", "towers/tokenizer.json", "learnt.parquet"):
        assert soft.file(file).read_bytes() == hard.file(file).read_bytes(), file
    weights = sorted(p.relative_to(soft.path) for p in soft.path.rglob("*.safetensors"))
    assert weights
    for file in weights:
        assert (soft.path / file).read_bytes() == (hard.path / file).read_bytes()
    export = world.store.open(
        run_step("export_towers", market, snapshot | {"towers": soft.ref}, {}, world.settings)
    )
    assert (export.facts["taught_by"], export.facts["teacher"]) == ("labels", teacher)


def test_export_towers(chain: dict[str, Any]) -> None:
    facts = chain["export"].facts
    assert facts["fp32_admitted"]
    assert facts["fp32_pairs"] > 0
    TowerRuntime(chain["export"].path).encode_queries(["茶壺"])


def test_separate_trunks_from_training_to_export(world: World, chain: dict[str, Any]) -> None:
    towers = world.market.towers.model_copy(update={"separate_trunks": True, "steps": 4})
    market = world.market.model_copy(update={"towers": towers})
    given = {"snapshot": "toy/snapshot/snapshot"}
    made = run_step("train_towers", market, given, {"target": "hard"}, world.settings)
    export = world.store.open(
        run_step("export_towers", market, given | {"towers": made}, {}, world.settings)
    )
    assert export.facts["fp32_admitted"]
    assert TowerRuntime(export.path).encode_queries(["茶壺"]).shape == (1, 2, 16)
    one = TwinTowers.load(chain["towers"].file("towers"), dim=16)
    two = TwinTowers.load(world.store.open(made).file("towers"), dim=16)
    assert (len(trunks_of(one.query)), len(trunks_of(two.query))) == (1, 2)


def test_thresholds_by_the_teacher_are_those_of_its_expected_f1(
    world: World, chain: dict[str, Any]
) -> None:
    towers = world.market.towers.model_copy(update={"thresholds": "teacher", "steps": 20})
    market = world.market.model_copy(update={"towers": towers})
    given = {"snapshot": "toy/snapshot/snapshot", "scored": "toy/score_pairs/scored"}
    soft = world.store.open(run_step("train_towers", market, given, {}, world.settings))
    del given["scored"]
    hard = world.store.open(
        run_step("train_towers", market, given, {"target": "hard"}, world.settings)
    )
    heads = [json.loads(a.file("towers.json").read_text())["heads"] for a in (soft, hard)]
    dev = pl.read_parquet(hard.file("dev_scores.parquet"))
    best = choose_threshold("em", dev["em"].to_numpy(), dev["grade"].to_numpy() == 2, None)
    assert heads[1]["em"]["threshold"] == best.value  # people's grades have no other judge
    # Of the soft towers: no cut of the distilled pairs that search may show has a greater expected
    # F1. Random products do not count, which any cut calls defects rightly.
    examples = shown_examples(world, chain, world.tables["products"])
    export = world.store.open(
        run_step("export_towers", market, {"snapshot": given["snapshot"], "towers": soft.ref}, {},
                 world.settings)
    )  # fmt: skip
    runtime = TowerRuntime(export.path, query="fp32", product="fp32")
    scores = runtime.score(
        runtime.encode_queries(examples.queries)[examples.query],
        runtime.encode_products(examples.products)[examples.product],
    ).em

    def expected(cut: float) -> float:
        said = scores >= cut
        return float(2 * examples.exact[said].sum() / (said.sum() + examples.exact.sum()))

    chosen = heads[0]["em"]["threshold"]
    assert expected(chosen) == pytest.approx(max(map(expected, np.unique(scores))), abs=2e-3)
    assert heads[0]["em"]["dev"]["f1"] == soft.facts["dev_em_f1"]


def test_category_is_read_from_training_to_embeddings(world: World) -> None:
    goods = world.tables["products"].with_columns(
        category=pl.when(pl.int_range(pl.len()) % 3 > 0).then(pl.lit("廚房")).otherwise(pl.lit(""))
    )
    snapshot = world.snapshot("shelved", products=goods)
    towers = world.market.towers.model_copy(update={"product_fields": ("category",), "steps": 4})
    market = world.market.model_copy(update={"towers": towers})
    given = {"snapshot": snapshot}
    made = run_step("train_towers", market, given, {"target": "hard"}, world.settings)
    # What was trained says what is read: the market file may have changed since.
    export = run_step("export_towers", world.market, given | {"towers": made}, {}, world.settings)
    found = world.store.open(
        run_step("embed_products", world.market, given | {"export": export}, {}, world.settings)
    )
    runtime = TowerRuntime(world.store.open(export).path)
    assert runtime.product_fields == ("category",)
    read = {
        p: product_text(title, ("category",), brand="unread", category=category)
        for p, title, category in goods.select("product_id", "title", "category").iter_rows()
    }
    ids = pl.read_parquet(found.file("product_ids.parquet"))
    assert ids["digest"].to_list() == [product_digest(read[p]) for p in ids["product_id"]]
    vectors = np.load(found.file("embeddings.npy"))
    again = runtime.encode_products([read[p] for p in ids["product_id"]])
    np.testing.assert_allclose(again, vectors, atol=1e-5)


def test_a_cross_encoder_is_trained_exported_and_scored_like_the_towers(
    world: World, chain: dict[str, Any]
) -> None:
    given = {"snapshot": "toy/snapshot/snapshot", "scored": "toy/score_pairs/scored"}
    made = world.run("train_cross_encoder", given)
    assert made.facts["fp32_admitted"]
    assert made.facts["dev_em_f1"] > 0.5
    gold = world.run("score_towers", {"snapshot": given["snapshot"], "export": made.ref})
    found, towers = (pl.read_parquet(a.file("scored.parquet")) for a in (gold, chain["gold"]))
    assert found.columns == towers.columns
    assert found["pair_id"].to_list() == towers["pair_id"].to_list()
    cross = CrossRuntime(made.path)
    norm = dict(world.tables["queries"].select("query_id", "norm").iter_rows())
    title = dict(world.tables["products"].select("product_id", "title").iter_rows())
    row = found.row(3, named=True)
    one = cross.score_texts([norm[row["query_id"]]], [title[row["product_id"]]])
    assert row["em"] == pytest.approx(one.em[0], abs=0.02)  # int8 varies with the batch
    assert row["defect"] == pytest.approx(one.defect[0], abs=0.02)
    for head in ("em", "defect"):
        threshold = cross.about["heads"][head]["threshold"]
        assert found[f"{head}_pred"].to_list() == (found[head] >= threshold).to_list()


def test_a_cross_encoder_reads_and_decides_as_the_towers_are_told_to(
    world: World, chain: dict[str, Any]
) -> None:
    told = {"thresholds": "teacher", "product_fields": ("brand",), "steps": 3}
    market = world.market.model_copy(update={"towers": world.market.towers.model_copy(update=told)})
    given = {"snapshot": "toy/snapshot/snapshot", "scored": "toy/score_pairs/scored"}
    made = world.store.open(run_step("train_cross_encoder", market, given, {}, world.settings))
    cross = CrossRuntime(made.path, variant="fp32")
    assert cross.product_fields == ("brand",)
    products = with_product_text(world.tables["products"], ("brand",))
    examples = shown_examples(world, chain, products)
    scores = cross.score_texts(
        [examples.queries[i] for i in examples.query],
        [examples.products[i] for i in examples.product],
    )
    best = choose_threshold("em", scores.em, examples.exact, None)
    assert cross.about["heads"]["em"]["threshold"] == pytest.approx(best.value, abs=1e-4)


def test_embed_products(world: World, chain: dict[str, Any]) -> None:
    vectors = np.load(chain["embeddings"].file("embeddings.npy"))
    ids = pl.read_parquet(chain["embeddings"].file("product_ids.parquet"))
    title = dict(world.tables["products"].select("product_id", "title").iter_rows())
    assert vectors.shape == (len(title), 2, 16)
    assert ids["product_id"].is_sorted()
    assert ids["digest"].to_list() == [product_digest(title[p]) for p in ids["product_id"]]
    one = TowerRuntime(chain["export"].path).encode_products([title[ids["product_id"][7]]])
    np.testing.assert_allclose(one[0], vectors[7], atol=1e-5)


def test_score_towers(world: World, chain: dict[str, Any]) -> None:
    found = pl.read_parquet(chain["gold"].file("scored.parquet"))
    gold = world.tables["pairs"].filter(split="gold").sort("pair_id")
    assert found.columns == [
        "pair_id", "grade", "query_id", "product_id", "locale", "em", "defect",
        "em_pred", "defect_pred", "seen",
    ]  # fmt: skip
    assert not found["seen"].any()
    assert chain["gold"].facts["seen_queries"] == 0
    assert not chain["gold"].facts["control"]
    assert found["pair_id"].to_list() == gold["pair_id"].to_list()
    assert found["grade"].to_list() == gold["grade"].to_list()
    heads = TowerRuntime(chain["export"].path).about["heads"]
    for head in ("em", "defect"):
        wanted = (found[head] >= heads[head]["threshold"]).to_list()
        assert found[f"{head}_pred"].to_list() == wanted


def gold_queries(world: World) -> set[str]:
    return set(world.tables["pairs"].filter(split="gold")["query_id"])


def test_towers_that_were_taught_gold_queries_say_so(world: World) -> None:
    towers = world.market.towers.model_copy(update={"steps": 4})
    market = world.market.model_copy(update={"towers": towers})
    snapshot = world.snapshot("all")

    def run(name: str, inputs: dict[str, Any], **params: Any) -> Any:
        return world.store.open(run_step(name, market, inputs, params, world.settings))

    pairs = run("tower_pairs", world.retrieval(snapshot), seen=True)
    asked = set(pl.read_parquet(pairs.file("pairs.parquet"))["query_id"])
    assert gold_queries(world) < asked
    scored = oracle(pl.read_parquet(pairs.file("pairs.parquet")), world.tables)
    records.write_table(scored, records.SCORED, world.folder / "all_scored" / "scored.parquet")
    given = {"snapshot": snapshot, "scored": world.publish("score_pairs", "all_scored")}
    for seen in (False, True):  # from the same scores
        made = run("train_towers", given, seen=seen)
        export = run("export_towers", {"snapshot": snapshot, "towers": made.ref})
        learnt = set(pl.read_parquet(export.file("learnt.parquet"))["query_id"])
        assert asked - gold_queries(world) <= learnt
        assert learnt & gold_queries(world) == (gold_queries(world) if seen else set())
        gold = run("score_towers", {"snapshot": snapshot, "export": export.ref})
        assert pl.read_parquet(gold.file("scored.parquet"))["seen"].all() == seen
        assert gold.facts["control"] == seen
        assert gold.facts["seen_queries"] == (len(gold_queries(world)) if seen else 0)


def test_an_older_export_is_asked_what_it_was_distilled_on(
    world: World, chain: dict[str, Any]
) -> None:
    """And where that is gone, every query counts as taught: no advantage is ever overlooked."""
    older = world.folder / "older"
    shutil.copytree(chain["export"].path, older)
    (older / "learnt.parquet").unlink()
    snapshot, taught = "toy/snapshot/snapshot", sorted(gold_queries(world))[:5]
    scored = world.folder / "older_scored"
    scored.mkdir()
    pl.DataFrame({"query_id": taught}).write_parquet(scored / "scored.parquet")
    inputs = {"scored": world.publish("score_pairs", "older_scored")}
    (world.folder / "older_towers").mkdir()
    ref = "toy/train_towers/older"
    world.store.publish(ref, world.folder / "older_towers", facts={}, inputs=inputs, about={})
    for name, towers in (("known", ref), ("gone", "toy/train_towers/swept")):
        export = f"toy/export_towers/{name}"
        facts = {"towers": name}  # what artifacts are told apart by is in them
        world.store.publish(export, older, facts=facts, inputs={"towers": towers}, about={})
        gold = world.run("score_towers", {"snapshot": snapshot, "export": export})
        found = pl.read_parquet(gold.file("scored.parquet")).filter("seen")["query_id"]
        assert set(found) == (set(taught) if name == "known" else gold_queries(world))


def test_embedding_and_training_again_is_a_no_op(world: World, chain: dict[str, Any]) -> None:
    given = {"snapshot": "toy/snapshot/snapshot", "export": chain["export"].ref}
    assert world.run("embed_products", given).ref == chain["embeddings"].ref


def test_cold_start_takes_thresholds_from_source_dev(world: World) -> None:
    pairs = world.tables["pairs"]
    source = pairs.filter(split="dev").with_columns(locale=pl.lit(SOURCE))
    queries = world.tables["queries"].with_columns(
        locale=pl.when(pl.col("query_id").is_in(source["query_id"].to_list()))
        .then(pl.lit(SOURCE)).otherwise(pl.lit(TARGET))
    )  # fmt: skip
    goods = world.tables["products"]
    products = pl.concat([goods, goods.with_columns(locale=pl.lit(SOURCE))])
    snapshot = world.snapshot(
        "cold", pairs=source, queries=queries, products=products,
        behaviour=world.tables["behaviour"].clear(),
    )  # fmt: skip
    found = world.run("tower_pairs", world.retrieval(snapshot))
    assert set(found.facts["sources"]) == {"retrieved", "random"}
    scored = oracle(pl.read_parquet(found.file("pairs.parquet")), world.tables)
    records.write_table(scored, records.SCORED, world.folder / "cold_scored" / "scored.parquet")
    teacher = world.publish("score_pairs", "cold_scored")
    towers = world.run("train_towers", {"snapshot": snapshot, "scored": teacher})
    assert towers.facts["dev_locale"] == SOURCE
    towers_by_teacher = world.market.towers.model_copy(update={"thresholds": "teacher", "steps": 1})
    market = world.market.model_copy(update={"towers": towers_by_teacher})
    own = {"snapshot": snapshot, "scored": teacher}
    with pytest.raises(ConfigError, match="scored does not say which tower pairs it scored"):
        run_step("train_towers", market, own, {}, world.settings)
    given = {"snapshot": snapshot, "export": "missing"}
    given["export"] = world.run("export_towers", {"snapshot": snapshot, "towers": towers.ref}).ref
    with pytest.raises(DataError, match="no zh-TW pair of split 'gold'"):
        world.run("score_towers", given)


def test_wrong_target_and_missing_teacher(world: World, chain: dict[str, Any]) -> None:
    given = {"snapshot": "toy/snapshot/snapshot"}
    with pytest.raises(ConfigError, match="soft or hard"):
        world.run("train_towers", given, target="medium")
    with pytest.raises(ConfigError, match="needs input 'scored'"):
        world.run("train_towers", given)
