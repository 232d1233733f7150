"""Releases to serve: towers of XLM-R-base's widths and two layers, random weights and vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from benchmarks.encoder_shapes import make_base
from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.lexical.evidence import Evidence, save_lexicon
from csrm_tasks.lexical.features import NAMES
from csrm_tasks.lexical.terms import Lexicon, ProductTerms
from csrm_tasks.release.bundle.manifest import assemble, release_id
from csrm_tasks.release.routing import VERSION
from csrm_tasks.settings import Settings
from csrm_tasks.towers.export import write_onnx
from csrm_tasks.towers.model import TwinTowers, load_tokenizer
from csrm_tasks.towers.quantise import quantise
from csrm_tasks.towers.serving.embed import IDS, VECTORS
from csrm_tasks.towers.serving.runtime import ONNX
from csrm_tasks.towers.serving.texts import TEXT_VERSION

MARKET, DIM, LAYERS = "bench", 128, 2


def write_export(folder: Path, work: Path) -> None:
    """Write an export that serves int8 queries and fp32 products."""
    base = make_base(work / "base", LAYERS)
    model = TwinTowers.from_base(str(base), dim=DIM, scale=8.0, learn_scale=True, seed=0).eval()
    for name, tower in (("query", model.query), ("product", model.product)):
        write_onnx(tower, folder / ONNX[name, "fp32"])
    quantise(folder / ONNX["query", "fp32"], folder / ONNX["query", "int8"], "all")
    tokenizer = load_tokenizer(str(base))
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str())
    head = {"scale": 8.0, "bias": 0.0, "threshold": 0.5}
    about = {
        "dim": DIM, "pad_id": tokenizer.pad_token_id, "query_tokens": 32, "title_tokens": 48,
        "text_version": TEXT_VERSION, "heads": {"em": head, "defect": head},
        "serve": {"query": "int8", "product": "fp32"},
    }  # fmt: skip
    (folder / "serving.json").write_text(json.dumps(about))


def _write_evidence(folder: Path, lexicon: Lexicon) -> None:
    weights = np.full((len(NAMES), 2), 0.1, np.float32)
    products = np.full((2, len(NAMES), len(NAMES)), 0.01, np.float32)
    own, bias = np.ones(2, np.float32), np.zeros(2, np.float32)
    evidence = Evidence(lexicon, own, weights, products, bias)
    about = json.loads((folder / "serving.json").read_text()) | {"evidence": evidence.describe()}
    (folder / "serving.json").write_text(json.dumps(about))
    save_lexicon(folder, lexicon)


class Releases:
    """Releases of one export that differ by their product vectors."""

    def __init__(
        self, settings: Settings, products: list[str], titles: list[str] | None = None
    ) -> None:
        """Make the export; with ``titles`` of the products it scores with lexical evidence."""
        self._settings = settings
        titled = sorted(zip(products, titles, strict=True)) if titles else []
        self._titles = [title for _, title in titled]
        self._lexicon = Lexicon.fit(self._titles, {}) if titles else None
        self._store = ArtifactStore(settings.artifacts, settings.cache)
        self._products = sorted(products)
        self._made: dict[str, Artifact] = {}
        work = settings.home / "made"
        (work / "export").mkdir(parents=True)
        write_export(work / "export", work)
        if self._lexicon is not None:
            _write_evidence(work / "export", self._lexicon)
        self._note("snapshot")
        for name in ("llm", "ebr", "index", "rqa"):
            self._note(name, "snapshot", *(["ebr"] if name == "index" else []))
        self.export = self._publish("export", "one", work / "export", "snapshot")
        settings.markets.mkdir(exist_ok=True)
        market: dict[str, Any] = {
            "market": MARKET, "source_locale": "ko-KR", "target_locale": "zh-TW",
            "llm": {"base": "./none"}, "retrieval": {"ebr": {"encoder": "./none"}},
            "towers": {"encoder": "./none"},
        }  # fmt: skip
        (settings.markets / f"{MARKET}.yaml").write_text(yaml.safe_dump(market))

    def make(self, seed: int) -> tuple[str, Artifact]:
        """Publish a release; returns its id and its bundle."""
        folder = self._settings.home / "made" / f"vectors{seed}"
        folder.mkdir()
        shape = (len(self._products), 2, DIM)
        drawn = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        np.save(folder / VECTORS, drawn / np.linalg.norm(drawn, axis=2, keepdims=True))
        ids = pl.DataFrame({"product_id": self._products, "digest": self._products})
        ids.write_parquet(folder / IDS)
        if self._lexicon is not None:
            ProductTerms.of(self._titles, self._lexicon.brands).save(folder)
        self._publish("embeddings", str(seed), folder, "snapshot", "export")
        out = self._settings.home / "made" / f"bundle{seed}"
        out.mkdir()
        assemble(self._made, out, {"market": MARKET, "locale": "zh-TW"})
        bundle = self._publish("bundle", str(seed), out)
        self._made.pop("bundle")
        shutil.rmtree(out)
        return release_id(bundle), bundle

    def _note(self, name: str, *of: str) -> None:
        folder = self._settings.home / "made" / name
        folder.mkdir(parents=True)
        (folder / "note").write_text(name)
        self._publish(name, "one", folder, *of)

    def _publish(self, name: str, key: str, folder: Path, *of: str) -> Artifact:
        inputs = {n: self._made[n].ref for n in of}
        ref = f"{MARKET}/{name}/{key}"
        made = self._store.publish(ref, folder, facts={}, inputs=inputs, about={})
        self._made[name] = made
        return made


def route(
    settings: Settings, seq: int, stable: tuple[str, Artifact], *before: tuple[str, Artifact],
    also: bool = False,
) -> None:  # fmt: skip
    """Publish a routing document in which ``stable`` answers everybody.

    ``also``: every other session is answered by the first of ``before``.
    """
    named = [stable, *before]
    half = 50 if also else 0
    document = {
        "version": VERSION, "market": MARKET, "stable": stable[0],
        "next": before[0][0] if also else None, "holdout": None, "shadow": False,
        "weights": {"stable": 100 - half, "next": half, "holdout": 0}, "seed": MARKET,
        "predecessors": [name for name, _ in before], "ledger_seq": seq,
        "bundles": {name: bundle.ref for name, bundle in named}, "embeddings": {},
    }  # fmt: skip
    path = Path(settings.routing) / f"{MARKET}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document))
    part.replace(path)
