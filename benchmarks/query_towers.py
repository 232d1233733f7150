"""Query towers of XLM-R-base's shape for the benchmark: fitted, exported, and judged on pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from benchmarks import concepts
from benchmarks.concepts import DIM
from csrm_tasks.records import Grade
from csrm_tasks.towers.export import write_onnx
from csrm_tasks.towers.quantise import quantise
from csrm_tasks.towers.serving.runtime import ONNX, TowerRuntime, Vectors
from csrm_tasks.towers.serving.texts import TEXT_VERSION
from csrm_tasks.towers.serving.tokens import TokenTable, TowerTokenizer
from csrm_tasks.towers.tower import HEADS, Tower

SCALE = 8.0  # A28
Bools = npt.NDArray[np.bool_]


@torch.inference_mode()
def pooled(tower: Tower, table: TokenTable) -> Vectors:
    """Return the mean states (N, H) that the projection reads, of texts of one length."""
    found = []
    for rows in np.array_split(np.arange(len(table)), max(len(table) // 64, 1)):
        ids, mask = (torch.from_numpy(x) for x in table.batch(rows))
        found.append(tower.encoder(input_ids=ids, attention_mask=mask).last_hidden_state.mean(1))
    states: Vectors = torch.cat(found).numpy()
    return states


def fit_projection(tower: Tower, table: TokenTable, wanted: Vectors) -> None:
    """Train the projection, and it alone, towards ``wanted`` (N, 2, DIM)."""
    weight, bias = concepts.fit(pooled(tower, table), wanted)
    tower.projection.weight.data.copy_(torch.from_numpy(weight))
    tower.projection.bias.data.copy_(torch.from_numpy(bias))


def serve(folder: Path, tower: Tower, reader: TowerTokenizer, threads: int) -> TowerRuntime:
    """Export a query tower in int8 and load it; a tiny one stands in for the products'."""
    folder.mkdir()
    whole = folder / ONNX["query", "fp32"]
    write_onnx(tower, whole)
    quantise(whole, folder / ONNX["query", "int8"], "all")
    whole.unlink()
    tiny = XLMRobertaConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    write_onnx(Tower(XLMRobertaModel(tiny), DIM), folder / ONNX["product", "fp32"])
    about = {
        "serve": {"query": "int8", "product": "fp32"}, "text_version": TEXT_VERSION, "dim": DIM,
        "heads": {name: {"scale": SCALE, "bias": 0.0, "threshold": 0.5} for name in HEADS},
        "query_tokens": reader.query_tokens, "title_tokens": reader.title_tokens,
        "pad_id": reader.pad_id,
    }  # fmt: skip
    (folder / "serving.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    return TowerRuntime(folder, threads=threads)


def least_cosine(ours: Vectors, theirs: Vectors) -> float:
    """Return the least cosine of a text's vectors (N, 2, DIM), over texts and heads."""
    length = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return float((np.einsum("nhd,nhd->nh", ours, theirs) / length).min())


@dataclass(frozen=True)
class Judged:
    """Pairs of generated texts; thresholds are chosen on the first ``half`` queries."""

    query: concepts.Ints
    product: concepts.Ints
    grade: concepts.Ints
    vectors: Vectors  # (products, 2, DIM), fp32
    half: int

    def decisions(self, queries: Vectors, chosen_by: Vectors) -> Bools:
        """Decide the other half's pairs (P, 2), with the thresholds that ``chosen_by`` gives."""
        first = self.query < self.half
        at = concepts.thresholds(self._scores(chosen_by)[first], self.grade[first])
        return self._scores(queries)[~first] >= np.array([at[name] for name in HEADS])

    def flips(self, int8: Vectors, fp32: Vectors) -> float:
        """Share of the other half's pairs that int8 decides otherwise by at least one head."""
        changed = self.decisions(int8, fp32) != self.decisions(fp32, fp32)
        return float(changed.any(axis=1).mean())

    def right(self, queries: Vectors) -> float:
        """Share of the other half's decisions that are right."""
        grade = self.grade[self.query >= self.half]
        truth = np.stack([grade == Grade.EXACT, grade == Grade.IRRELEVANT], axis=1)
        return float((self.decisions(queries, queries) == truth).mean())

    def _scores(self, queries: Vectors) -> Vectors:
        """Return probabilities (P, 2): exact match, defect."""
        cosine = np.einsum("phd,phd->ph", queries[self.query], self.vectors[self.product])
        good = 1.0 / (1.0 + np.exp(-SCALE * cosine))
        return np.stack([good[:, 0], 1.0 - good[:, 1]], axis=1)
