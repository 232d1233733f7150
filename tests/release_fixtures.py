"""A market whose training is made up: artifacts as the rooms publish them, tiny real towers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from csrm_tasks.artifacts import Artifact, ArtifactStore, describe_files
from csrm_tasks.lexical.evidence import Evidence, save_lexicon
from csrm_tasks.lexical.features import NAMES
from csrm_tasks.lexical.terms import Lexicon, ProductTerms
from csrm_tasks.llm.network.identity import LlmCard
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release.bundle.manifest import FORMAT, MANIFEST, TOWERS
from csrm_tasks.sections import Ebr, Gate, Llm, Release, Retrieval, Rollout, Towers
from csrm_tasks.settings import Settings
from csrm_tasks.towers.serving.texts import TEXT_VERSION
from tests.evaluation_fixtures import DATA, LOCALE, gold, llm_frame, tables, tower_frame

MARKET = "tiny"
DIM = 4
CARD = LlmCard("none", "d1", {"relevance": [3, 4, 5]}, 64, True, "fp32", "round1", 1, 1.2)
PARTS = ("snapshot", "llm", "ebr", "index", "rqa", "export", "embeddings")


def market(
    gate: Gate | None = None, approval: str = "auto", rollout: Rollout | None = None
) -> MarketConfig:
    """Return a market that promotes by itself at once unless ``approval`` is manual."""
    return MarketConfig(
        market=MARKET,
        source_locale="ko-KR",
        target_locale=LOCALE,
        llm=Llm(base="./none"),
        retrieval=Retrieval(ebr=Ebr(encoder="./none")),
        towers=Towers(encoder="./none"),
        gate=gate or Gate(slice_min=50),
        release=Release(approval=approval),
        rollout=rollout or Rollout(steps=()),
    )


def store_of(settings: Settings) -> ArtifactStore:
    """Open the installation's artifacts."""
    return ArtifactStore(settings.artifacts, settings.cache)


def publish(
    settings: Settings,
    step: str,
    key: str,
    write: Callable[[Path], Any],
    facts: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
    **params: Any,
) -> Artifact:
    """Publish what ``write`` puts into a folder as the output of ``step``."""
    folder = settings.work / "made-up" / step / key
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)
    ref = f"{MARKET}/{step}/{key}"
    store = store_of(settings)
    of = {name: store.manifest(r) for name, r in (inputs or {}).items()}
    about = {"params": params, "inputs": {name: m["digest"] for name, m in of.items() if m}}
    return store.publish(ref, folder, facts=facts or {}, inputs=inputs or {}, about=about)


def parts(
    settings: Settings, key: str, stage: int, source_dev: float = 0.7, *, evidence: bool = False
) -> dict[str, str]:
    """Publish everything a bundle is made of and return part → reference.

    ``evidence``: towers that score with lexical evidence.
    """
    made: dict[str, Artifact] = {}

    def note(folder: Path) -> None:
        (folder / "note").write_text(key)

    def refs(*names: str) -> dict[str, str]:
        return {n: made[n].ref for n in names}

    made["snapshot"] = publish(settings, "snapshot", key, write_snapshot, {"key": key}, stage=stage)
    chosen = publish(settings, "train_llm", key, note)
    dev = {"source_dev_micro_f1": source_dev, "chosen_ref": chosen.ref}
    made["llm"] = publish(settings, "select_llm", key, CARD.write, dev)
    made["ebr"] = publish(settings, "train_ebr", key, note, inputs=refs("snapshot"))
    made["index"] = publish(settings, "build_index", key, note, inputs=refs("snapshot", "ebr"))
    made["rqa"] = publish(
        settings, "build_rqa", key, note, {"rqa_accuracy": 0.8}, refs("snapshot", "index")
    )
    of = refs("snapshot") | {"towers": f"{MARKET}/train_towers/{key}"}

    def export(folder: Path) -> None:
        write_export(folder)
        if evidence:
            write_evidence(folder)

    def embeddings(folder: Path) -> None:
        write_embeddings(folder)
        if evidence:
            write_terms(folder)

    made["export"] = publish(settings, "export_towers", key, export, {"key": key}, of)
    of = refs("snapshot", "export")
    made["embeddings"] = publish(settings, "embed_products", key, embeddings, inputs=of)
    return {name: made[name].ref for name in PARTS}


def write_snapshot(folder: Path) -> None:
    """Write the three tables that judging reads, and what the report says of the data."""
    for name, frame in zip(("pairs", "queries", "products"), tables(80), strict=True):
        frame.write_parquet(folder / f"{name}.parquet")
    for name, document in DATA.items():
        (folder / f"{name}.json").write_text(json.dumps(document))


def probed(settings: Settings, bundle: Artifact, outcome: str = "PASS") -> Artifact:
    """Publish what the servability step would say of a bundle."""
    facts = {"outcome": outcome, "reasons": ["p99 1 ms, budget 100"]}
    of = {"bundle": bundle.ref}
    key = f"{bundle.ref.rsplit('/', 1)[1]}-{outcome}"
    return publish(settings, "servability", key, lambda _: None, facts, of)


def scores(settings: Settings, key: str, part: dict[str, str], snapshot: str, right: float) -> Any:
    """Publish gold scores of a release's LLM and towers; returns both references."""
    judged = gold(80)
    of = {"snapshot": snapshot, "llm": part["llm"], "rqa": part["rqa"]}
    llm = publish(
        settings, "score_pairs", key,
        lambda f: llm_frame(judged, right, len(key)).write_parquet(f / "scored.parquet"),
        inputs=of,
    )  # fmt: skip
    towers = publish(
        settings, "score_towers", key,
        lambda f: tower_frame(judged, right, len(key)).write_parquet(f / "scored.parquet"),
        inputs={"snapshot": snapshot, "export": part["export"]},
    )  # fmt: skip
    return llm.ref, towers.ref


def a_bundle(key: str) -> Callable[[Path], None]:
    """Return a writer of a bundle that its manifest describes, towers and vectors in it."""

    def write(folder: Path) -> None:
        (folder / TOWERS).mkdir(exist_ok=True)
        write_export(folder / TOWERS)
        write_embeddings(folder)
        manifest = {"format": FORMAT, "files": describe_files(folder), "note": key}
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return write


def write_export(folder: Path) -> None:
    """Write towers of one embedding table and a mean: real ONNX, made without torch."""
    words = ["[PAD]", "[UNK]", "物品", "紅色", "0", "1", "2", "3"]
    vocabulary = {w: i for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    head = {"scale": 4.0, "bias": 0.0, "threshold": 0.5}
    about = {
        "dim": DIM, "pad_id": 0, "query_tokens": 8, "title_tokens": 8,
        "text_version": TEXT_VERSION, "product_fields": ["category"],
        "heads": {"em": head, "defect": head}, "serve": {"query": "fp32", "product": "fp32"},
    }  # fmt: skip
    (folder / "serving.json").write_text(json.dumps(about))
    for name in ("query", "product"):
        onnx.save(_tower(len(words)), folder / f"{name}.onnx")


TEXTS = (
    "紅色 物品 500g | 0",
    "HANBIT 物品 1公斤",
    "物品 300g | 紅色 2",
)  # of the vectors' products
FORMS = {"hanbit": "hanbit", "韓光燦": "hanbit"}


LEXICON = Lexicon.fit(TEXTS, FORMS)


def write_evidence(export: Path, seed: int = 0) -> None:
    """Give exported towers lexical evidence of drawn coefficients."""
    rng = np.random.default_rng(seed)
    count = len(NAMES)
    own, weights, bias = (rng.normal(size=shape) for shape in (2, (count, 2), 2))
    products = rng.normal(scale=0.1, size=(2, count, count))
    products += products.transpose(0, 2, 1)
    arrays = (a.astype(np.float32) for a in (np.abs(own), weights, products, bias))
    about = json.loads((export / "serving.json").read_text())
    about["evidence"] = Evidence(LEXICON, *arrays).describe()
    (export / "serving.json").write_text(json.dumps(about))
    save_lexicon(export, LEXICON)


def write_terms(embeddings: Path) -> None:
    """Write the terms of the three products beside their vectors."""
    ProductTerms.of(TEXTS, LEXICON.brands).save(embeddings)


def _tower(words: int) -> Any:
    table = np.random.default_rng(0).normal(size=(words, 2 * DIM)).astype(np.float32)
    shape = np.array([0, 2, DIM], np.int64)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["mask"]),
        helper.make_node("Mul", ["states", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["total"], keepdims=0),
        helper.make_node("Reshape", ["total", "shape"], ["heads"]),
        helper.make_node("LpNormalization", ["heads"], ["vectors"], axis=2, p=2),
    ]
    constants = {"table": table, "last": np.array([2]), "tokens": np.array([1]), "shape": shape}
    graph = helper.make_graph(
        nodes, "tower",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "t"])
         for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["b", 2, DIM])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_embeddings(folder: Path) -> None:
    """Write vectors of three products, each of length 1."""
    vectors = np.random.default_rng(1).normal(size=(3, 2, DIM)).astype(np.float32)
    np.save(folder / "embeddings.npy", vectors / np.linalg.norm(vectors, axis=2, keepdims=True))
    ids = pl.DataFrame({"product_id": ["p0", "p1", "p2"], "digest": ["a", "b", "c"]})
    ids.write_parquet(folder / "product_ids.parquet")
