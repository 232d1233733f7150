"""The five steps of retrieval over a small snapshot, through the step engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from csrm_tasks import records, tracking
from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.errors import ArtifactError, ConfigError, DataError
from csrm_tasks.lexical import analyser
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import RQA, read_table, write_table
from csrm_tasks.retrieval import commits
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.index import ProductIndex
from csrm_tasks.sections import Ebr, Llm, Mining, Retrieval, SameClass, Towers
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps.running import run_step
from csrm_tasks.text import normalise, query_id
from tests.retrieval_fixtures import (
    pairs,
    products,
    queries,
    scored,
    tiny_encoder,
    write_snapshot,
)

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

CHEAP = """
import sys
from csrm_tasks.settings import load_settings
from csrm_tasks.markets import load_market
from csrm_tasks.steps.running import run_step
settings = load_settings({"CSRM_HOME": sys.argv[1], "CSRM_MARKETS": sys.argv[2]})
bm25 = run_step("build_bm25", "small", {"snapshot": "small/snapshot/1"}, settings=settings)
both = {"snapshot": "small/snapshot/1", "bm25": bm25}
run_step("pseudo_pairs", "small", both, settings=settings)
heavy = {"torch", "transformers", "faiss", "pandas"} & set(sys.modules)
assert not heavy, heavy
"""


class Chain:
    """An installation with one small market, and the references of what has been run."""

    def __init__(self, home: Path) -> None:
        self.settings: Settings = load_settings({"CSRM_HOME": str(home)})
        self.store = ArtifactStore(self.settings.artifacts, self.settings.cache)
        texts = [*products()["title"], *queries()["norm"]]
        base = str(tiny_encoder(home / "base", texts))
        ebr = Ebr(encoder=base, dim=16, steps=30, batch=24, pool=12, lr=3e-3, max_length=24)
        self.market = MarketConfig(
            market="small", source_locale="ko-KR", target_locale="zh-TW", llm=Llm(base="-"),
            retrieval=Retrieval(ebr=ebr, bm25_k=8), towers=Towers(encoder="-"),
        )  # fmt: skip
        write_snapshot(home / "snapshot")
        self.publish("snapshot", home / "snapshot")
        write_table(scored(), records.SCORED, home / "scored" / "scored.parquet")
        self.publish("scored", home / "scored")

    def publish(self, step: str, folder: Path, number: int = 1) -> str:
        ref = f"small/{step}/{number}"
        self.store.publish(ref, folder, facts={}, inputs={}, about={})
        return ref

    def run(self, step: str, inputs: dict[str, str], **params: Any) -> str:
        return run_step(step, self.market, inputs, params, self.settings)

    def open(self, ref: str) -> Artifact:
        return self.store.open(ref)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def built(chain: Chain) -> dict[str, str]:
    """Run cold start's retrieval once: bm25, pseudo, ebr, index, rqa."""
    snapshot = {"snapshot": "small/snapshot/1"}
    bm25 = chain.run("build_bm25", snapshot)
    pseudo = chain.run("pseudo_pairs", snapshot | {"bm25": bm25})
    ebr = chain.run("train_ebr", snapshot | {"scored": "small/scored/1"}, local=False)
    index = chain.run("build_index", snapshot | {"ebr": ebr})
    rqa = chain.run("build_rqa", snapshot | {"bm25": bm25, "ebr": ebr, "index": index})
    return {"bm25": bm25, "pseudo": pseudo, "ebr": ebr, "index": index, "rqa": rqa}


def test_pseudo_pairs_cover_the_queries(chain: Chain, built: dict[str, str]) -> None:
    artifact = chain.open(built["pseudo"])
    frame = pl.read_parquet(artifact.file("pairs.parquet"))
    assert frame.columns == ["query_id", "product_id", "locale", "rank", "bm25"]
    assert artifact.facts["pairs"] == len(frame)
    assert artifact.facts["queries_without_match"] == 0
    assert frame["query_id"].n_unique() == len(queries())
    assert chain.open(built["bm25"]).facts["products"] == {"ko-KR": 32, "zh-TW": 32}


def test_queries_for_the_towers_alone_are_not_the_retrievers(
    chain: Chain, built: dict[str, str], tmp_path: Path
) -> None:  # A31
    write_snapshot(tmp_path)
    path = tmp_path / "queries.parquet"
    asked = pl.read_parquet(path)
    apart = asked["query_id"][0]
    kept = pl.when(pl.col("query_id") == apart).then(pl.lit("distilled")).otherwise("origin")
    write_table(asked.with_columns(origin=kept), records.QUERIES, path)
    given = {"snapshot": chain.publish("snapshot", tmp_path, 7), "bm25": built["bm25"]}
    found = chain.open(chain.run("pseudo_pairs", given)).file("pairs.parquet")
    assert set(pl.read_parquet(found)["query_id"]) == set(asked["query_id"]) - {apart}


def test_ebr_is_saved_whole_and_logged(chain: Chain, built: dict[str, str]) -> None:
    artifact = chain.open(built["ebr"])
    about = json.loads(artifact.file("ebr.json").read_text())
    assert about["encoder_digest"] == artifact.facts["encoder_digest"]
    assert about["dim"] == 16
    assert artifact.facts["contrastive"] < np.log(24)
    api = tracking.client(chain.settings)
    experiment = tracking.experiment_id(api, "small", chain.settings)
    (run,) = api.search_runs([experiment], f"tags.`csrm.ref` = '{built['ebr']}'")
    assert len(api.get_metric_history(run.info.run_id, "contrastive")) > 10


def test_index_files_are_the_contract(chain: Chain, built: dict[str, str]) -> None:
    artifact = chain.open(built["index"])
    for locale in ("ko-KR", "zh-TW"):
        vectors = np.load(artifact.file(f"{locale}/embeddings.npy"))
        ids = pl.read_parquet(artifact.file(f"{locale}/product_ids.parquet"))["product_id"]
        assert vectors.shape == (32, 16)
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
        assert set(ids) == set(products().filter(pl.col("locale") == locale)["product_id"])
        measured = artifact.facts["locales"][locale]
        assert measured["recall_at_100"] == 1.0
        assert 0 < measured["measures"]["dev"]["recall_at_20"] <= 1
        assert measured["measures"]["bought"] is None
        run = artifact.file(f"trec/{locale}/ebr.run").read_text(encoding="utf-8").splitlines()
        assert run[0].split()[1::2] == ["Q0", "1", "ebr"]
        assert artifact.file(f"trec/{locale}/dev.qrels").stat().st_size > 0


def test_rqa_has_a_row_for_every_query_and_its_accuracy_is_recomputable(
    chain: Chain, built: dict[str, str]
) -> None:
    artifact = chain.open(built["rqa"])
    table = read_table(artifact.file("rqa.parquet"), RQA)
    assert sorted(table["query_id"]) == sorted(queries()["query_id"])
    assert table["titles"].list.len().max() == 3
    exploded = table.explode("titles", "product_ids", "scores").drop_nulls()
    joined = exploded.join(
        pairs(), left_on=["query_id", "product_ids"], right_on=["query_id", "product_id"]
    )
    for locale, measured in artifact.facts["locales"].items():
        own = joined.filter(pl.col("locale") == locale)
        assert measured["judged"] == len(own)
        assert measured["rqa_accuracy"] == pytest.approx((own["grade"] >= 1).mean())
        dev = own.filter(pl.col("split") == "dev")
        assert measured["judged_dev_gold"] == len(dev)
    assert artifact.facts["dense"]


def test_the_same_again_is_a_no_op(chain: Chain, built: dict[str, str]) -> None:
    inputs = {"snapshot": "small/snapshot/1", "scored": "small/scored/1"}
    before = chain.store.manifest(built["ebr"])
    assert chain.run("train_ebr", inputs, local=False) == built["ebr"]
    assert chain.store.manifest(built["ebr"]) == before


def test_local_behaviour_and_a_warm_start_change_the_model(
    chain: Chain, built: dict[str, str]
) -> None:
    inputs = {"snapshot": "small/snapshot/1", "scored": "small/scored/1"}
    local = chain.open(chain.run("train_ebr", inputs, local=True))
    warm = chain.open(chain.run("train_ebr", inputs | {"warm": built["ebr"]}, local=True))
    cold = chain.open(built["ebr"])
    assert len({a.facts["encoder_digest"] for a in (cold, local, warm)}) == 3
    assert warm.facts["contrastive"] < local.facts["contrastive"]
    assert json.loads(warm.file("ebr.json").read_text())["warm"] == built["ebr"]


def with_ebr(chain: Chain, **changed: Any) -> MarketConfig:
    """Return the chain's market with one step of a retriever that is set up otherwise."""
    ebr = chain.market.retrieval.ebr.model_copy(update={"steps": 1, **changed})
    retrieval = chain.market.retrieval.model_copy(update={"ebr": ebr})
    return chain.market.model_copy(update={"retrieval": retrieval})


def test_a_warm_start_reads_as_the_market_file_says_now(
    chain: Chain, built: dict[str, str]
) -> None:
    given = {"snapshot": "small/snapshot/1", "scored": "small/scored/1", "warm": built["ebr"]}
    market = with_ebr(chain, query_prefix="query: ", max_length=20)
    made = chain.open(run_step("train_ebr", market, given, {"local": False}, chain.settings))
    reading = json.loads((made.file("encoder") / "biencoder.json").read_text())
    assert (reading["query_prefix"], reading["title_prefix"]) == ("query: ", "")
    assert reading["max_length"] == 20
    with pytest.raises(ConfigError, match=r"dim is null, but .* has 16: set it back"):
        run_step("train_ebr", with_ebr(chain, dim=None), given, {"local": False}, chain.settings)


def test_in_its_own_width_and_behind_prefixes_from_training_to_titles(
    chain: Chain, built: dict[str, str]
) -> None:
    told = {"query_prefix": "query: ", "title_prefix": "passage: "}
    market, given = with_ebr(chain, dim=None, **told), {"snapshot": "small/snapshot/1"}

    def run(step: str, **params: Any) -> str:
        return run_step(step, market, given, params, chain.settings)

    given["scored"] = "small/scored/1"
    ebr = run("train_ebr", local=False)
    del given["scored"]
    given["ebr"] = ebr
    given |= {"index": run("build_index"), "bm25": built["bm25"]}
    assert chain.open(run("build_rqa")).facts["dense"]
    index = ProductIndex.load(chain.open(given["index"]).file("ko-KR"))
    assert index.info.dim == 32  # of the encoder
    folder = chain.open(ebr).file("encoder")
    tokenizer, encoder = (k.from_pretrained(folder) for k in (AutoTokenizer, AutoModel))
    titles = dict(products().select("product_id", "title").iter_rows())
    for product, vector in zip(index.ids, np.asarray(index.vectors), strict=True):
        ids = torch.tensor([tokenizer(f"passage: {normalise(titles[product])}")["input_ids"]])
        with torch.no_grad():
            mean = encoder.eval()(ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


def test_rqa_star_without_what_shoppers_did_with_gold_queries(
    chain: Chain, built: dict[str, str], tmp_path: Path
) -> None:
    """It is what it would have been if nobody had ever searched for them."""
    write_snapshot(tmp_path)
    pairs, log = (pl.read_parquet(tmp_path / f"{n}.parquet") for n in ("pairs", "behaviour"))
    gold = pl.col("query_id").is_in(log["query_id"].unique().sort()[:3].implode())
    frozen = pl.when(gold).then(pl.lit("gold")).otherwise("split").alias("split")
    write_table(pairs.with_columns(frozen), records.PAIRS, tmp_path / "pairs.parquet")
    asked = {"snapshot": chain.publish("snapshot", tmp_path, 54), "scored": "small/scored/1"}
    others = log.filter(~gold)
    assert 0 < others.height < log.height
    write_table(others, records.BEHAVIOUR, tmp_path / "behaviour.parquet")
    never = asked | {"snapshot": chain.publish("snapshot", tmp_path, 55)}
    all_, held = (chain.run("train_ebr", asked, local=True, unclicked=x) for x in (False, True))
    digests = [
        chain.open(ebr).facts["encoder_digest"]
        for ebr in (held, chain.run("train_ebr", never, local=True), all_)
    ]
    assert digests[0] == digests[1] != digests[2]
    given = {"snapshot": asked["snapshot"], "ebr": held}
    given["index"] = chain.run("build_index", given)
    found = chain.run("build_rqa", given | {"bm25": built["bm25"]})
    assert chain.open(found).facts["unclicked"]
    assert not chain.open(built["rqa"]).facts["unclicked"]


def test_without_clicks_on_gold_queries_it_starts_from_no_retriever_that_has_read_some(
    chain: Chain, built: dict[str, str]
) -> None:
    """In whichever week that was, and through whichever retriever."""
    given = {"snapshot": "small/snapshot/1", "scored": "small/scored/1"}
    local = chain.run("train_ebr", given, local=True)
    behind = chain.run("train_ebr", given | {"warm": local}, local=False)
    clean = chain.run("train_ebr", given, local=True, unclicked=True)
    anew = chain.open(clean).facts
    assert [chain.open(e).facts["clicked"] for e in (local, behind, clean)] == [True, True, False]
    for clicked in (local, behind):
        found = chain.open(
            chain.run("train_ebr", given | {"warm": clicked}, local=True, unclicked=True)
        ).facts
        assert (found["encoder_digest"], found["clicked"]) == (anew["encoder_digest"], False)
    for warm in (built["ebr"], clean):  # of the cold start, or itself such a one
        found = chain.open(
            chain.run("train_ebr", given | {"warm": warm}, local=True, unclicked=True)
        ).facts
        assert found["encoder_digest"] != anew["encoder_digest"] and not found["clicked"]


def test_a_warm_start_of_another_width_is_refused(chain: Chain, built: dict[str, str]) -> None:
    ebr = chain.market.retrieval.ebr.model_copy(update={"dim": 24})
    retrieval = chain.market.retrieval.model_copy(update={"ebr": ebr})
    market = chain.market.model_copy(update={"retrieval": retrieval})
    inputs = {"snapshot": "small/snapshot/1", "scored": "small/scored/1", "warm": built["ebr"]}
    with pytest.raises(ConfigError, match=f"dim is 24, but {built['ebr']} has 16: set it back"):
        run_step("train_ebr", market, inputs, {"local": True}, chain.settings)


def test_hard_negatives_and_a_loss_within_queries_are_a_markets_choice(
    chain: Chain, built: dict[str, str]
) -> None:
    more = {"within_query": "margin_mse", "mining": Mining(first=0, last=20, per_query=2),
            "same_class": SameClass(exact=0.0, pairs=1)}  # fmt: skip
    ebr = chain.market.retrieval.ebr.model_copy(update=more)
    retrieval = chain.market.retrieval.model_copy(update={"ebr": ebr})
    market = chain.market.model_copy(update={"retrieval": retrieval})
    inputs = {"snapshot": "small/snapshot/1", "scored": "small/scored/1"}
    mined = inputs | {"bm25": built["bm25"]}
    trained = chain.open(run_step("train_ebr", market, mined, {"local": False}, chain.settings))
    assert trained.facts["encoder_digest"] != chain.open(built["ebr"]).facts["encoder_digest"]
    assert trained.facts["mining_queries"] == len(queries())
    assert trained.facts["mining_pairs"] > 0
    assert trained.facts["margin_mse"] > 0
    assert trained.facts["class_masked"] > 0
    for wrong, config in ((inputs, market), (mined, chain.market)):
        with pytest.raises(ConfigError, match=r"'bm25' where retrieval\.ebr\.mining is set, only"):
            run_step("train_ebr", config, wrong, {"local": False}, chain.settings)


def test_a_newer_snapshot_is_served_by_the_older_ebr(
    chain: Chain, built: dict[str, str], tmp_path: Path
) -> None:
    """New queries and products get titles; a deleted product is in nobody's."""
    write_snapshot(tmp_path)
    asked = "acme 湯麵新品"
    key = query_id("zh-TW", asked)
    row = pl.DataFrame(
        [(key, "zh-TW", asked, asked, "", "log", 1)],
        records.QUERIES, orient="row",
    )  # fmt: skip
    write_table(pl.concat([queries(), row]), records.QUERIES, tmp_path / "queries.parquet")
    product = ("zhnew", "zh-TW", "Acme 湯麵新品", "acme", "湯麵", "")
    new = pl.DataFrame([product], records.PRODUCTS, orient="row")
    left = products().filter(pl.col("product_id") != "zh00")
    write_table(pl.concat([left, new]), records.PRODUCTS, tmp_path / "products.parquet")
    snapshot = chain.publish("snapshot", tmp_path, 2)
    bm25 = chain.run("build_bm25", {"snapshot": snapshot})
    given = {"snapshot": snapshot, "bm25": bm25, "ebr": built["ebr"]}
    # An index of the old snapshot still has zh00 and lacks zhnew; one built anew has both right.
    anew = chain.run("build_index", {"snapshot": snapshot, "ebr": built["ebr"]})
    for index in (built["index"], anew):
        ref = chain.run("build_rqa", given | {"index": index})
        table = read_table(chain.open(ref).file("rqa.parquet"), RQA)
        titles = dict(table.select("query_id", "product_ids").iter_rows())
        assert len(titles[key]) == 3
        assert index != anew or "zhnew" in titles[key]
        assert "zh00" not in table.explode("product_ids")["product_ids"]


def test_bm25_goes_on_from_the_week_before_and_equals_one_built_anew(
    chain: Chain, built: dict[str, str], tmp_path: Path
) -> None:
    write_snapshot(tmp_path)
    changed = products().with_columns(
        title=pl.when(pl.col("product_id") == "zh01").then(pl.lit("全新")).otherwise("title")
    )
    left = changed.filter(pl.col("product_id") != "zh00")
    write_table(left, records.PRODUCTS, tmp_path / "products.parquet")
    snapshot = {"snapshot": chain.publish("snapshot", tmp_path, 3)}
    anew = chain.open(chain.run("build_bm25", snapshot))
    grown = chain.open(chain.run("build_bm25", snapshot | {"previous": built["bm25"]}))
    assert anew.facts["analysed"] == {"ko-KR": 32, "zh-TW": 31}
    assert grown.facts["analysed"] == {"ko-KR": 0, "zh-TW": 1}
    assert grown.facts["products"] == anew.facts["products"]
    asked = queries()["norm"].to_list()
    for locale in ("ko-KR", "zh-TW"):
        one, other = (Bm25Index(a.file(locale)) for a in (grown, anew))
        assert one.search(asked, 9) == other.search(asked, 9)
    assert Bm25Index(chain.open(built["bm25"]).file("zh-TW")).search(["全新"], 1) == [[]]


@pytest.mark.parametrize("exact_below", [20, 50_000])
def test_only_changed_titles_are_embedded_again(
    chain: Chain, built: dict[str, str], tmp_path: Path, exact_below: int
) -> None:
    write_snapshot(tmp_path)
    goods = products().with_columns(
        title=pl.when(pl.col("product_id") == "zh01").then(pl.lit("全新")).otherwise("title")
    )
    left = goods.filter(pl.col("product_id") != "zh00")
    write_table(left, records.PRODUCTS, tmp_path / "products.parquet")
    snapshot = chain.publish("snapshot", tmp_path, 4 + exact_below)
    retrieval = chain.market.retrieval.model_copy(update={"exact_below": exact_below})
    market = chain.market.model_copy(update={"retrieval": retrieval})

    def build(**given: str) -> Artifact:
        inputs = {"ebr": built["ebr"], "snapshot": snapshot} | given
        return chain.open(run_step("build_index", market, inputs, {}, chain.settings))

    before = build(snapshot="small/snapshot/1")
    anew, grown = build(), build(previous=before.ref)
    for locale, embedded in (("ko-KR", 0), ("zh-TW", 1)):
        one, other = (ProductIndex.load(a.file(locale)) for a in (anew, grown))
        assert grown.facts["locales"][locale]["embedded"] == embedded
        assert one.info.snapshot == other.info.snapshot == anew.facts["locales"][locale]["snapshot"]
        assert one.ids == other.ids
        assert np.abs(one.vectors - other.vectors).max() < 1e-5
    # Another encoder's vectors are not carried over.
    inputs = {"snapshot": "small/snapshot/1", "scored": "small/scored/1"}
    other_ebr = build(ebr=chain.run("train_ebr", inputs, local=True), previous=before.ref)
    assert other_ebr.facts["locales"]["zh-TW"]["embedded"] == 31


@pytest.mark.parametrize("grown", [False, True])
def test_a_catalogue_embedded_in_shards_gives_the_index_of_one_task(
    chain: Chain, built: dict[str, str], tmp_path: Path, grown: bool
) -> None:
    given: dict[str, Any] = {"snapshot": "small/snapshot/1", "ebr": built["ebr"]}
    if grown:  # one title is new, the rest is carried over
        write_snapshot(tmp_path)
        new = pl.when(pl.col("product_id") == "zh01").then(pl.lit("全新")).otherwise("title")
        goods = products().with_columns(title=new)
        write_table(goods, records.PRODUCTS, tmp_path / "products.parquet")
        snapshot = chain.publish("snapshot", tmp_path, 77)
        given |= {"snapshot": snapshot, "previous": built["index"]}
    whole = chain.open(chain.run("build_index", given))
    shards = [chain.run("embed_shard", given, shard=k, of=3) for k in range(3)]
    joined = chain.open(chain.run("join_index", given | {"shards": shards}))
    sizes = [sum(chain.open(s).facts["embedded"].values()) for s in shards]
    assert sum(sizes) == (1 if grown else 64)
    assert grown or min(sizes) > 0
    assert joined.facts["locales"].keys() == whole.facts["locales"].keys()
    for locale in ("ko-KR", "zh-TW"):
        one, other = (ProductIndex.load(a.file(locale)) for a in (joined, whole))
        assert one.ids == other.ids
        assert one.info == other.info
        assert np.abs(one.vectors - other.vectors).max() < 1e-5
        embedded = [a.facts["locales"][locale]["embedded"] for a in (joined, whole)]
        assert embedded[0] == embedded[1]
    for wrong in (shards[:2], shards[::-1], [shards[0], shards[0], shards[2]]):
        with pytest.raises(DataError, match="give every shard of one embedding, in order"):
            chain.run("join_index", given | {"shards": wrong})
    with pytest.raises(ConfigError, match="needs every shard"):
        chain.run("join_index", given)
    with pytest.raises(ConfigError, match="no shard 3 of 3"):
        chain.run("embed_shard", given, shard=3, of=3)


def test_shards_of_equal_inputs_under_other_references_are_joined(
    chain: Chain, built: dict[str, str], tmp_path: Path
) -> None:
    write_snapshot(tmp_path)
    again = chain.publish("snapshot", tmp_path, 78)  # the same once more, as a repeated step has it
    given: dict[str, Any] = {"snapshot": "small/snapshot/1", "ebr": built["ebr"]}
    shards = [chain.run("embed_shard", given, shard=k, of=2) for k in range(2)]
    joined = chain.run("join_index", given | {"snapshot": again, "shards": shards})
    assert chain.open(joined).facts == chain.open(
        chain.run("join_index", given | {"shards": shards})
    ).facts  # fmt: skip


def test_an_index_that_another_analyser_made_is_made_anew(
    chain: Chain, built: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its code or its library's data: what reads the index refuses another's."""
    for module in (analyser, commits):
        monkeypatch.setattr(module, "identity", lambda: "another")
    given = {"snapshot": "small/snapshot/1"}
    with pytest.raises(ArtifactError, match="run build_bm25 again"):
        chain.run("build_rqa", given | {"bm25": built["bm25"]})
    bm25 = chain.run("build_bm25", given)
    assert bm25 != built["bm25"]
    chain.run("build_rqa", given | {"bm25": bm25})


def test_bm25_alone_and_wrong_inputs(chain: Chain, built: dict[str, str]) -> None:
    plain = {"snapshot": "small/snapshot/1", "bm25": built["bm25"]}
    artifact = chain.open(chain.run("build_rqa", plain))
    assert not artifact.facts["dense"]
    assert artifact.facts["thresholds"] == {"ko-KR": -1.0, "zh-TW": -1.0}
    with pytest.raises(ConfigError, match="together, or neither"):
        chain.run("build_rqa", plain | {"ebr": built["ebr"]})
    inputs = {"snapshot": "small/snapshot/1", "scored": "small/scored/1"}
    other = chain.run("train_ebr", inputs, local=True)
    with pytest.raises(ArtifactError, match="run build_index with this EBR"):
        chain.run("build_rqa", plain | {"ebr": other, "index": built["index"]})


def test_a_large_catalogue_goes_to_ivf(chain: Chain, built: dict[str, str]) -> None:
    retrieval = chain.market.retrieval.model_copy(update={"exact_below": 20})
    market = chain.market.model_copy(update={"retrieval": retrieval})
    inputs = {"snapshot": "small/snapshot/1", "ebr": built["ebr"]}
    ref = run_step("build_index", market, inputs, {}, chain.settings)
    index = ProductIndex.load(chain.open(ref).file("zh-TW"))
    assert index.info.kind == "ivf_sq8"
    assert chain.open(ref).facts["locales"]["zh-TW"]["recall_at_100"] >= 0.97


def test_lexical_steps_load_nothing_heavy(chain: Chain, tmp_path: Path) -> None:
    """In a fresh process on fresh output: they start in a second and not in ten."""
    home = tmp_path / "home"
    store = ArtifactStore(str(home / "artifacts"), home / "cache")
    write_snapshot(tmp_path / "snapshot")
    store.publish("small/snapshot/1", tmp_path / "snapshot", facts={}, inputs={}, about={})
    text = json.dumps(chain.market.model_dump(mode="json", exclude_defaults=True))
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", CHEAP, str(home), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
