"""What trained towers say of judged pairs: vectors, probabilities, thresholds and F1 on dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from csrm_tasks.lexical.evidence import Evidence
from csrm_tasks.lexical.features import pair_features
from csrm_tasks.lexical.terms import Lexicon
from csrm_tasks.records import Grade
from csrm_tasks.towers.examples import Examples, distinct
from csrm_tasks.towers.export import Reference
from csrm_tasks.towers.losses import head_logits
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.tokens import TokenTable, TowerTokenizer
from csrm_tasks.towers.thresholds import Bools, Threshold, at_threshold, choose_threshold
from csrm_tasks.towers.tower import HEADS, AnyTower

Vectors = npt.NDArray[np.float32]

BATCH_TOKENS = 4096  # padded tokens of one inference batch
JUDGED = 200_000  # distilled pairs that thresholds are chosen on, at most


@torch.inference_mode()
def embed(tower: AnyTower, table: TokenTable) -> Vectors:
    """Return the vectors (N, 2, dim) of every text of ``table``."""
    device = next(tower.parameters()).device
    vectors: Vectors = np.zeros((len(table), len(HEADS), tower.dim), np.float32)
    for rows in table.chunks(np.arange(len(table)), BATCH_TOKENS):
        ids, mask = (torch.from_numpy(x).to(device) for x in table.batch(rows))
        vectors[rows] = tower(ids, mask).cpu().numpy()
    return vectors


def reference(model: TwinTowers, reader: TowerTokenizer, frame: pl.DataFrame) -> Reference:
    """Embed the distinct texts of a frame of pairs with ``query`` and ``title``."""
    queries, query = distinct(frame["query"])
    products, product = distinct(frame["title"])
    return Reference(
        queries, products, query, product,
        embed(model.query, reader.queries(queries)),
        embed(model.product, reader.products(products)),
    )  # fmt: skip


def own_logits(model: TwinTowers, embedded: Reference) -> Vectors:
    """Return what the towers by themselves say of pairs, logits (P, 2): exact, not defect."""
    cosine = np.einsum(
        "phd,phd->ph",
        embedded.query_vectors[embedded.query],
        embedded.product_vectors[embedded.product],
    )
    with torch.inference_mode():
        logits = head_logits(torch.from_numpy(cosine), model.scale.cpu(), model.bias.cpu())
    found: Vectors = logits.numpy()
    return found


def pair_features_of(embedded: Reference, lexicon: Lexicon) -> Vectors:
    """Return the lexical features (P, F) of pairs."""
    e = embedded
    return pair_features(e.queries, e.products, e.query, e.product, lexicon)


def probabilities(
    model: TwinTowers, embedded: Reference, evidence: Evidence | None = None
) -> Vectors:
    """Return (P, 2): probability of exact match and of defect, as they are served."""
    logits = own_logits(model, embedded)
    if evidence is not None:
        logits = evidence.logits(logits, pair_features_of(embedded, evidence.lexicon))
    good = torch.sigmoid(torch.from_numpy(logits)).numpy()
    return np.stack([good[:, 0], 1.0 - good[:, 1]], axis=1)


def dev_thresholds(dev: pl.DataFrame, scores: Vectors, floor: float | None) -> dict[str, Threshold]:
    """Choose both heads' thresholds from probabilities (P, 2) of the judged pairs ``dev`` (A33)."""
    return choose_by_head(scores, _truth(dev), floor)


def choose_by_head(
    scores: Vectors, truth: Sequence[Bools | Vectors], floor: float | None
) -> dict[str, Threshold]:
    """Choose both heads' thresholds from probabilities (P, 2); ``truth`` is (P,) of each head."""
    return {
        name: choose_threshold(name, scores[:, i], truth[i], floor) for i, name in enumerate(HEADS)
    }


@dataclass(frozen=True)
class TaughtPairs:
    """Distilled pairs, embedded, with the teacher's probabilities (P,)."""

    embedded: Reference
    exact: Vectors
    irrelevant: Vectors


def taught_pairs(
    model: TwinTowers, reader: TowerTokenizer, examples: Examples, seed: int
) -> TaughtPairs:
    """Embed at most :data:`JUDGED` of the distilled pairs, drawn by ``seed``."""
    most = min(JUDGED, len(examples))
    rows = np.sort(np.random.default_rng(seed).choice(len(examples), most, replace=False))
    q, query = np.unique(examples.query[rows], return_inverse=True)
    p, product = np.unique(examples.product[rows], return_inverse=True)
    queries, products = [examples.queries[i] for i in q], [examples.products[i] for i in p]
    vectors = (
        embed(model.query, reader.queries(queries)),
        embed(model.product, reader.products(products)),
    )
    embedded = Reference(queries, products, query, product, *vectors)
    return TaughtPairs(embedded, examples.exact[rows], examples.irrelevant[rows])


def teacher_thresholds(
    model: TwinTowers, taught: TaughtPairs, floor: float | None, evidence: Evidence | None = None
) -> dict[str, float]:
    """Choose both heads' thresholds on distilled pairs, the teacher's probabilities as truth.

    The cut of greatest *expected* F1: where people have judged few pairs of a market, the teacher,
    whom A30 calibrates on them, judges many. A head with lexical evidence is fitted on the word of
    teacher and people (A50): its own probability is then the better estimate of what is true, and
    stands in the teacher's place.
    """
    scores = probabilities(model, taught.embedded, evidence)
    fitted = evidence.kept if evidence is not None else (False, False)
    said = (taught.exact, taught.irrelevant)
    truth = [scores[:, i] if kept else said[i] for i, kept in enumerate(fitted)]
    chosen = choose_by_head(scores, truth, floor)
    return {name: threshold.value for name, threshold in chosen.items()}


def on_dev(dev: pl.DataFrame, scores: Vectors, values: Mapping[str, float]) -> dict[str, Threshold]:
    """Return the figures of given thresholds on the judged pairs ``dev``; as dev_thresholds."""
    truth = _truth(dev)
    return {
        name: at_threshold(values[name], scores[:, i], truth[i]) for i, name in enumerate(HEADS)
    }


def _truth(dev: pl.DataFrame) -> tuple[Bools, Bools]:
    grade = dev["grade"].to_numpy()
    return grade == Grade.EXACT, grade == Grade.IRRELEVANT


def describe(
    model: TwinTowers,
    reader: TowerTokenizer,
    thresholds: Mapping[str, Threshold],
    product_fields: Sequence[str] = (),
) -> dict[str, Any]:
    """Return ``towers.json``: what scoring needs beside the weights."""
    heads = {
        name: {
            "scale": model.scale[i].item(),
            "bias": model.bias[i].item(),
            "threshold": thresholds[name].value,
            "dev": asdict(thresholds[name]),
        }
        for i, name in enumerate(HEADS)
    }
    return {
        **reader.describe(),
        "product_fields": list(product_fields),
        "dim": model.query.dim,
        "heads": heads,
    }
