"""Whole towers to ONNX, fp32 and int8, each judged before it may serve (A34).

The graph is traced by torch's TorchScript exporter: it needs no package beside torch and onnx. It
covers everything after tokenisation: encoder, mask-aware pooling, projections, normalisation.

Int8 recipes stand in :mod:`csrm_tasks.towers.quantise`; the first within the bounds is kept.

The two fp32 files have the table of embeddings, most of a multilingual encoder, in one file beside
them (:mod:`csrm_tasks.towers.shared`). An int8 file has its own, a quarter as large: either may be
refused, and one that serves alone is one file.

Judged are the pairs as they would be served: int8 queries against fp32 products, since queries
are embedded within the request's budget and products offline, where fp32 gives a product the same
vector whatever stands beside it in a batch. The int8 product tower, for catalogues too large for
that, is judged against fp32 queries. A refused int8 variant is deleted and recorded as refused; a
refused fp32 fails the export, since a release needs it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from transformers import PreTrainedModel

from csrm_tasks.errors import RefusedError
from csrm_tasks.json_files import write_json
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.quantise import RECIPES, quantise
from csrm_tasks.towers.serving.runtime import ONNX, Decisions, TowerRuntime, Vectors
from csrm_tasks.towers.shared import TABLES, share_tables

log = logging.getLogger("csrm")

MIN_COSINE = 0.998
MAX_FLIPS = 0.005
OPSET = 18
VARIANTS = {  # name → (query tower, product tower) that its pairs are judged with
    "fp32": ("fp32", "fp32"),
    "int8_query": ("int8", "fp32"),
    "int8_product": ("fp32", "int8"),
}


@dataclass(frozen=True)
class Parity:
    """How far a variant is from the trained model on dev pairs."""

    admitted: bool
    cosine: float  # least over texts and heads, between its vector and the trained model's
    flips: float  # share of pairs decided otherwise by at least one head
    pairs: int
    recipe: str = ""  # of an int8 variant


@dataclass(frozen=True)
class Reference:
    """Dev texts, which of them are pairs, and their vectors by the trained model."""

    queries: Sequence[str]
    products: Sequence[str]
    query: Any  # (P,) rows of queries
    product: Any  # (P,) rows of products
    query_vectors: Vectors  # (Q, 2, dim)
    product_vectors: Vectors


def export_towers(
    model: TwinTowers, out: Path, about: Mapping[str, Any], reference: Reference
) -> dict[str, Parity]:
    """Write ONNX files and ``serving.json`` into ``out``, where ``tokenizer.json`` already lies.

    ``about`` is what :class:`TowerRuntime` reads, without ``serve`` and ``variants``. Raises
    :class:`RefusedError` when fp32 is outside the bounds.
    """
    for name, side in (("query", model.query), ("product", model.product)):
        write_onnx(side, out / ONNX[name, "fp32"])
    share_tables([out / ONNX[name, "fp32"] for name in ("query", "product")], out / TABLES)
    about = {**about, "serve": {"query": "fp32", "product": "fp32"}}
    write_about(out, about)
    checked = {"fp32": _judge(out, "fp32", "", reference)}
    if not checked["fp32"].admitted:
        raise RefusedError(f"export of the towers refused: {_reason('fp32', checked['fp32'])}")
    for tower in ("query", "product"):
        checked[f"int8_{tower}"] = _int8(out, tower, reference)
    serve = {"query": "int8" if checked["int8_query"].admitted else "fp32", "product": "fp32"}
    variants = {name: asdict(parity) for name, parity in checked.items()}
    write_about(out, {**about, "serve": serve, "variants": variants})
    return checked


def write_onnx(tower: torch.nn.Module, path: Path, output: str = "vectors") -> None:
    """Trace one tower: input_ids, attention_mask (B, T) int64 → vectors (B, 2, dim) float32.

    ``output`` names what it returns, for another module on token ids that has no vectors.
    """
    tower.eval()
    ids = torch.arange(2, 16).view(2, 7) % 4  # any ids do; two texts, one of them shorter
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    text_axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings(), _plain_attention(tower):
        warnings.simplefilter("ignore")  # the tracer's notes on constants; parity is what decides
        torch.onnx.export(
            tower, (ids, mask), str(path), dynamo=False, opset_version=OPSET,
            input_names=["input_ids", "attention_mask"], output_names=[output],
            dynamic_axes={
                "input_ids": text_axes, "attention_mask": text_axes, output: {0: "batch"},
            },
        )  # fmt: skip
    onnx.checker.check_model(str(path))


@contextmanager
def _plain_attention(tower: torch.nn.Module) -> Iterator[None]:
    """Let the encoders of ``tower`` attend by matrix products and a softmax while traced.

    The fused kernel is traced into the same, with guards around it that a short query feels.
    """
    encoders = [m for m in tower.modules() if isinstance(m, PreTrainedModel)]
    before = [m.config._attn_implementation for m in encoders]
    for encoder in encoders:
        encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        for encoder, kind in zip(encoders, before, strict=True):
            encoder.set_attn_implementation(kind)


def _int8(out: Path, tower: str, reference: Reference) -> Parity:
    """Write a tower's int8 variant by the first recipe within the bounds, or leave none behind."""
    target = out / ONNX[tower, "int8"]
    for recipe in RECIPES:
        quantise(out / ONNX[tower, "fp32"], target, recipe)
        checked = _judge(out, f"int8_{tower}", recipe, reference)
        if checked.admitted:
            return checked
        log.info("towers: %s", _reason(f"int8_{tower}", checked))
    log.warning("towers: no int8 recipe of the %s tower keeps the bounds; fp32 is served", tower)
    target.unlink()
    return checked


def parity(runtime: TowerRuntime, reference: Reference) -> Parity:
    """Compare a runtime with the trained model's vectors on the dev pairs."""
    q = runtime.encode_queries(reference.queries)
    p = runtime.encode_products(reference.products)
    cosine = min(
        float(np.einsum("nhd,nhd->nh", ours, theirs).min())
        for ours, theirs in ((q, reference.query_vectors), (p, reference.product_vectors))
    )
    rows = reference.query, reference.product
    features = runtime.features(reference.queries, reference.products, *rows)
    ours = runtime.decide(runtime.score(q[rows[0]], p[rows[1]], features))
    theirs = reference.query_vectors[rows[0]], reference.product_vectors[rows[1]]
    truth = runtime.decide(runtime.score(*theirs, features))
    flips = decision_flips(ours, truth)
    # NaN compares as False, so a broken graph is never admitted.
    return Parity(cosine >= MIN_COSINE and flips <= MAX_FLIPS, cosine, flips, len(rows[0]))


def decision_flips(ours: Decisions, truth: Decisions) -> float:
    """Return the share of pairs that at least one head decides otherwise (A34)."""
    return float(((ours.em != truth.em) | (ours.defect != truth.defect)).mean())


def _judge(out: Path, name: str, recipe: str, reference: Reference) -> Parity:
    query, product = VARIANTS[name]
    runtime = TowerRuntime(out, query=query, product=product)
    return replace(parity(runtime, reference), recipe=recipe)


def _reason(name: str, checked: Parity) -> str:
    return (
        f"{name} {checked.recipe} is refused on {checked.pairs} dev pairs: cosine "
        f"{checked.cosine:.4f} (at least {MIN_COSINE}), decision flips {checked.flips:.2%} "
        f"(at most {MAX_FLIPS:.1%})"
    )


def write_about(out: Path, about: Mapping[str, Any]) -> None:
    """Write ``serving.json``, what a runtime reads beside the graphs."""
    write_json(out / "serving.json", about)
