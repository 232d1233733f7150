"""What serving runs: exported towers on onnxruntime, no torch and no transformers (A34).

One folder (the artifact of ``export_towers``) holds ``serving.json``, ``tokenizer.json`` and the
ONNX files. Vectors are (N, 2, dim) float32, each of length 1; head 0 is exact match, head 1 is
"not defect". Int8 activations are quantised per batch, so an int8 vector moves a little with the
texts beside it; what ``serving.json`` says to serve was judged with that in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.brands import BrandForms
from csrm_tasks.lexical.evidence import Evidence
from csrm_tasks.lexical.features import NAMES, pair_features
from csrm_tasks.towers.serving.texts import PREFIXED, TEXT_VERSION
from csrm_tasks.towers.serving.tokens import TowerTokenizer

Vectors = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

BATCH_TOKENS = 4096  # padded tokens of one run
HEADS = ("em", "defect")
ONNX = {
    ("query", "fp32"): "query.onnx",
    ("query", "int8"): "query.int8.onnx",
    ("product", "fp32"): "product.onnx",
    ("product", "int8"): "product.int8.onnx",
}


class Scores(NamedTuple):
    """Probabilities of pairs: exact match, and defect (irrelevant)."""

    em: Vectors
    defect: Vectors


class Decisions(NamedTuple):
    """Decisions of pairs by the stored thresholds."""

    em: Bools
    defect: Bools


class TowerRuntime:
    """Both towers, loaded once; safe to call from several threads."""

    def __init__(
        self, folder: Path, *, query: str | None = None, product: str | None = None,
        threads: int = 1,
    ) -> None:  # fmt: skip
        """Load the towers of ``folder``.

        ``query`` and ``product`` are fp32 or int8; by default what ``serving.json`` says to serve.
        ``threads`` is onnxruntime's within one run. Raises :class:`ArtifactError` for a folder
        that is no export, another text version, or a variant that the export refused.
        """
        self.about = read_about(folder)
        definition = (folder / "tokenizer.json").read_text(encoding="utf-8")
        serve = self.about["serve"]
        self.backend = query or str(serve["query"])
        self._sessions = {
            "query": open_session(folder / ONNX["query", self.backend], threads),
            "product": open_session(folder / ONNX["product", product or serve["product"]], threads),
        }
        reader = TowerTokenizer.of(definition, self.about)
        self._readers = {"query": reader.query_reader(), "product": reader.title_reader()}
        heads = [self.about["heads"][name] for name in HEADS]
        self._scale = np.array([h["scale"] for h in heads], np.float32)
        self._bias = np.array([h["bias"] for h in heads], np.float32)
        about = self.about.get("evidence")  # an export from before it has none
        self.evidence = Evidence.load(folder, about) if about else None

    @property
    def dim(self) -> int:
        """Width of one head's vector."""
        return int(self.about["dim"])

    @property
    def product_fields(self) -> tuple[str, ...]:
        """What the product tower reads after the title (A27); exports of old read none."""
        return tuple(self.about.get("product_fields", ()))

    @property
    def brands(self) -> BrandForms | None:
        """Brands that products' terms are read with; None without lexical evidence."""
        return self.evidence.lexicon.brands if self.evidence else None

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed queries: (len(texts), 2, dim)."""
        return self._encode("query", texts)

    def encode_products(self, texts: Sequence[str]) -> Vectors:
        """Embed product texts (:mod:`csrm_tasks.towers.serving.texts`), (len, 2, dim)."""
        return self._encode("product", texts)

    def score(
        self, query_vecs: Vectors, product_vecs: Vectors, features: Vectors | None = None
    ) -> Scores:
        """Probabilities of pairs from vectors (..., 2, dim) that broadcast against each other.

        One query (2, dim) against n products (n, 2, dim) gives n scores. ``features`` (..., F) are
        those of the same pairs: towers with lexical evidence cannot score without.
        """
        logits = self.scaled(query_vecs, product_vecs) + self._bias  # (..., 2), A28
        if self.evidence is not None:
            assert features is not None, "these towers score with lexical evidence"
            logits = self.evidence.logits(logits, features)  # A50
        good = 1.0 / (1.0 + np.exp(-logits))
        return Scores(good[..., 0], 1.0 - good[..., 1])  # the defect head learns 1 - p_i (A29)

    def scaled(self, query_vecs: Vectors, product_vecs: Vectors) -> Vectors:
        """Return s·c of both heads (..., 2), from vectors as :meth:`score` takes them."""
        scaled: Vectors = self._scale * np.einsum("...hd,...hd->...h", query_vecs, product_vecs)
        return scaled

    def contributions(self, scaled: Vectors, features: Vectors | None) -> dict[str, Vectors]:
        """Return what each part adds to the logits of exact match and of defect, (n, 2) each.

        Of n pairs with s·c (n, 2) and features (n, F): the cosine's, the bias's and each feature's.
        """
        sign: Vectors = np.array([1.0, -1.0], np.float32)  # a defect is not good
        one = np.ones_like(scaled)
        if self.evidence is None or features is None:
            return {"cosine": sign * scaled, "bias": sign * self._bias * one}
        own, bias = self.evidence.own, self.evidence.bias
        parts = {"cosine": sign * own * scaled, "bias": sign * (own * self._bias + bias) * one}
        each = self.evidence.parts(features)  # (n, 2, F)
        return parts | {name: sign * each[..., i] for i, name in enumerate(NAMES)}

    def score_texts(self, queries: Sequence[str], products: Sequence[str]) -> Scores:
        """Score N pairs of texts; one that stands in several is embedded once."""
        (asked, query), (read, product) = _distinct(queries), _distinct(products)
        vectors = self.encode_queries(asked)[query], self.encode_products(read)[product]
        return self.score(*vectors, self.features(asked, read, query, product))

    def features(
        self, queries: Sequence[str], products: Sequence[str], query: Rows, product: Rows
    ) -> Vectors | None:
        """Return features (P, F) of pairs, rows of two lists of texts; None without evidence."""
        if self.evidence is None:
            return None
        return pair_features(queries, products, query, product, self.evidence.lexicon)

    def decide(self, scores: Scores) -> Decisions:
        """Apply the thresholds chosen on dev (A33)."""
        return decisions(scores, self.about)

    def _encode(self, tower: str, texts: Sequence[str]) -> Vectors:
        table = self._readers[tower](texts)
        vectors: Vectors = np.zeros((len(texts), len(HEADS), self.dim), np.float32)
        for rows in table.chunks(np.arange(len(texts)), BATCH_TOKENS):
            ids, mask = table.batch(rows)
            feed = {"input_ids": ids, "attention_mask": mask}
            vectors[rows] = self._sessions[tower].run(None, feed)[0]
        return vectors


def _distinct(texts: Sequence[str]) -> tuple[list[str], Rows]:
    """Return the distinct texts and where each of ``texts`` stands among them."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(row), np.array([row[text] for text in texts], np.int64)


def decisions(scores: Scores, about: Mapping[str, Any]) -> Decisions:
    """Decide by the thresholds of an export's ``serving.json`` (A33)."""
    em, defect = (float(about["heads"][name]["threshold"]) for name in HEADS)
    return Decisions(scores.em >= em, scores.defect >= defect)


def read_about(folder: Path) -> dict[str, Any]:
    """Read ``serving.json``; raises :class:`ArtifactError` when it is not there or not ours."""
    path = folder / "serving.json"
    if not path.exists():
        raise ArtifactError(f"{folder} holds no exported towers: serving.json is missing")
    about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if about["text_version"] not in (TEXT_VERSION, PREFIXED):
        raise ArtifactError(
            f"{folder}: towers for text version {about['text_version']}, this code reads "
            f"{TEXT_VERSION} and {PREFIXED}; export them again"
        )
    return about


@cache
def has_vnni(cpu: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this CPU adds products of 8 bits in 32; what cannot be read counts as no."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpu.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags[1].split())


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Load a graph; raises :class:`ArtifactError` where the file is not there."""
    if not path.exists():
        raise ArtifactError(f"{path.parent} has no {path.name}: it was refused at export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not has_vnni():  # signed weights would overflow 16-bit sums; with VNNI this costs double
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
