"""Scoring with a trained relevance LLM: adapter merged into its base, batches of one length."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from csrm_tasks.errors import ArtifactError
from csrm_tasks.llm.data import Fields, Texts, load_fields
from csrm_tasks.llm.network.identity import LlmCard, own_pretraining, read_card
from csrm_tasks.llm.network.model import Model, load_base, merge_adapter
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, LabelSpace
from csrm_tasks.llm.scoring.calibration import apply_temperature
from csrm_tasks.llm.scoring.predict import predict
from csrm_tasks.llm.scoring.probabilities import with_probabilities

log = logging.getLogger("csrm")

CHUNK = 20_000  # pairs between two progress lines


@dataclass
class RelevanceScorer:
    """A relevance LLM that is ready to score."""

    model: Model
    card: LlmCard
    encoder: PromptEncoder

    @classmethod
    def load(cls, folder: Path) -> RelevanceScorer:
        """Load the artifact of ``train_llm`` or ``select_llm``; raises as :func:`load_own_base`."""
        card = read_card(folder)
        model = load_own_base(card, folder)
        merge_adapter(model, folder / "adapter")
        return cls(model, card, PromptEncoder(model.tokenizer, card.max_length, card.product_form))

    def fields(self, snapshot: Path, rqa: Path | None = None) -> Fields:
        """Return the texts of a snapshot as this model reads them."""
        return load_fields(snapshot, rqa, self.card.pivot)

    def score(
        self, space: LabelSpace, fields: Texts, pairs: pl.DataFrame, calibrated: bool = True
    ) -> pl.DataFrame:
        """Return ``pairs`` (query_id, product_id, locale, …) with p0, p1, p2 appended.

        The card's temperature is applied to relevance unless ``calibrated`` is False (A16, A30).
        p2 is 0 in a label space of two. Raises :class:`ArtifactError` for a space that the model
        has not learnt, and for fields with another pivot language than it was trained with: its
        figures would mean nothing.
        """
        if space.name not in self.card.label_ids:
            raise ArtifactError(
                f"the model was not trained on task {space.name} (but on "
                f"{', '.join(self.card.label_ids)}); train it in a market whose tasks name it"
            )
        if isinstance(fields, Fields) and fields.pivot != self.card.pivot:
            asked, given = (
                "no pivot language" if p is None else f"the pivot language {p}"
                for p in (self.card.pivot, fields.pivot)
            )
            raise ArtifactError(f"the model reads {asked}, but is given texts with {given} (A52)")
        queries, products = fields.of(pairs)
        started = time.monotonic()
        parts = [np.empty((0, len(space.tokens)), np.float32)]
        for start in range(0, len(pairs), CHUNK):
            end = start + CHUNK
            parts.append(
                predict(self.model, self.encoder, space, queries[start:end], products[start:end])
            )
            done = min(end, len(pairs))
            rate = done / (time.monotonic() - started)
            log.info("scored %d of %d pairs, %.0f pairs/s", done, len(pairs), rate)
        probabilities = np.concatenate(parts).astype(np.float64)
        if calibrated and space is RELEVANCE:
            probabilities = apply_temperature(probabilities, self.card.temperature)
        return with_probabilities(pairs, probabilities)


def load_own_base(card: LlmCard, folder: Path, dtype: torch.dtype | None = None) -> Model:
    """Load the base model of the adapter in ``folder``, as :func:`load_base` does.

    The model's stage 0, if it has one, is merged into it. Raises :class:`ArtifactError` where base
    or stage 0 here are not those that it was trained on.
    """
    model = load_base(card.base, dtype=dtype, pretraining=own_pretraining(folder, card))
    if model.base_digest != card.base_digest:
        raise ArtifactError(
            f"{folder}: the adapter was trained on another {card.base!r} than the one here; "
            "restore that base model or train again"
        )
    return model
