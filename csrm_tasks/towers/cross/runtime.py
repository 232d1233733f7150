"""The exported cross-encoder on onnxruntime, no torch and no transformers.

One folder (the artifact of ``train_cross_encoder``) holds ``serving.json``, ``tokenizer.json`` and
the ONNX files: token ids and mask of pairs to logits (N, 2) of the heads, exact match, not defect.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
from csrm_tasks.towers.serving.tokens import TowerTokenizer

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
        self._readers = reader.query_reader(), reader.title_reader()

    @property
    def product_fields(self) -> tuple[str, ...]:
        """What it reads after the title (A27)."""
        return tuple(self.about["product_fields"])

    def score_texts(self, queries: Sequence[str], products: Sequence[str]) -> Scores:
        """Score N pairs of texts."""
        query, title = (
            read(texts) for read, texts in zip(self._readers, (queries, products), strict=True)
        )
        logits: Vectors = np.zeros((len(queries), len(HEADS)), np.float32)
        for rows in length_chunks(query.lengths + title.lengths, BATCH_TOKENS):
            ids, mask = query.joined(title, rows, rows)
            feed = {"input_ids": ids, "attention_mask": mask}
            logits[rows] = self._session.run(None, feed)[0]
        good = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
        return Scores(
            good[:, 0], np.float32(1) - good[:, 1]
        )  # the defect head learns 1 - p_i (A29)

    def decide(self, scores: Scores) -> Decisions:
        """Apply the thresholds chosen on dev (A33)."""
        return decisions(scores, self.about)
