"""The exported cross-encoder on onnxruntime, no torch and no transformers.

One folder (the artifact of ``train_cross_encoder``, or the second stage of a release) holds
``serving.json``, ``tokenizer.json`` and the ONNX files: token ids and mask of pairs to logits
(N, 2) of the heads, exact match, not defect.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csrm_tasks.ragged import length_chunks
from csrm_tasks.towers.serving.runtime import (
    BATCH_TOKENS,
    HEADS,
    Decisions,
    Scores,
    Vectors,
    decisions,
    open_session,
    read_about,
)
from csrm_tasks.towers.serving.tokens import TokenTable, TowerTokenizer

Rows = npt.NDArray[np.int64]

ONNX = {"fp32": "cross.onnx", "int8": "cross.int8.onnx"}


class CrossRuntime:
    """The cross-encoder, loaded once; safe to call from several threads."""

    def __init__(self, folder: Path, *, variant: str | None = None, threads: int = 1) -> None:
        """Load the cross-encoder of ``folder``: fp32 or int8, by default what was admitted.

        Raises :class:`ArtifactError` for a folder that is no export, another text version, or a
        variant that was refused.
        """
        self.about = read_about(folder)
        definition = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self._session = open_session(folder / ONNX[variant or self.about["serve"]], threads)
        reader = TowerTokenizer.of(definition, self.about)
        self.query_reader, self.title_reader = reader.query_reader(), reader.title_reader()

    @property
    def product_fields(self) -> tuple[str, ...]:
        """What it reads after the title (A27)."""
        return tuple(self.about["product_fields"])

    def score_texts(self, queries: Sequence[str], products: Sequence[str]) -> Scores:
        """Score N pairs of texts."""
        good = (1.0 / (1.0 + np.exp(-self.logit_texts(queries, products)))).astype(np.float32)
        # The defect head learns 1 - p_i (A29).
        return Scores(good[:, 0], np.float32(1) - good[:, 1])

    def logit_texts(self, queries: Sequence[str], products: Sequence[str]) -> Vectors:
        """Return the logits (N, 2) of N pairs of texts: exact match, not defect."""
        rows = np.arange(len(queries))
        return self.logits(self.query_reader(queries), self.title_reader(products), rows)

    def logits(self, queries: TokenTable, products: TokenTable, query: Rows) -> Vectors:
        """Return the logits (N, 2) of N products, each with its row of ``queries`` (N,)."""
        logits: Vectors = np.zeros((len(products), len(HEADS)), np.float32)
        for rows in length_chunks(queries.lengths[query] + products.lengths, BATCH_TOKENS):
            ids, mask = queries.joined(products, query[rows], rows)
            feed = {"input_ids": ids, "attention_mask": mask}
            logits[rows] = self._session.run(None, feed)[0]
        return logits

    def decide(self, scores: Scores) -> Decisions:
        """Apply the thresholds chosen on dev (A33)."""
        return decisions(scores, self.about)
