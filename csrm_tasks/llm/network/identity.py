"""What a relevance LLM is: base, stage 0, prompts, labels, temperature. Light: no torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from csrm_tasks.errors import ArtifactError
from csrm_tasks.file_state import folder_digest
from csrm_tasks.json_files import write_json
from csrm_tasks.llm.prompt.prompts import PRODUCT_FIELDS, PROMPT_VERSION, ProductForm
from csrm_tasks.sections import Llm

PRETRAINING = "pretraining"  # folder of stage 0's adapter, in its own artifact and in a model's
CARD = "pretraining.json"


@dataclass(frozen=True)
class LlmCard:
    """``llm.json`` of a trained model; the adapter lies beside it."""

    base: str  # as in the market file
    base_digest: str
    label_ids: dict[str, list[int]]  # label space → token ids
    max_length: int  # tokens of a prompt
    rqa: bool  # trained with retrieved titles
    precision: str  # fp32 | bf16, at training
    arm: str
    round: int
    temperature: float = 1.0  # of relevance probabilities (A30)
    prompt_version: str = PROMPT_VERSION
    pretraining: str = ""  # digest of stage 0, which is merged into the base; "": none
    product_fields: tuple[str, ...] = PRODUCT_FIELDS  # of a prompt, besides the title
    category_levels: int | None = None  # of a prompt, from the path's end; None: all
    pivot: str | None = None  # the pivot language, a locale (A52)

    @property
    def product_form(self) -> ProductForm:
        """Which parts of a product the model reads."""
        return ProductForm(tuple(self.product_fields), self.category_levels)

    def write(self, folder: Path) -> None:
        """Write ``llm.json``."""
        write_json(folder / "llm.json", asdict(self))


def read_card(folder: Path) -> LlmCard:
    """Read ``llm.json``; raises :class:`ArtifactError` where this code cannot use the model."""
    card = LlmCard(**json.loads((folder / "llm.json").read_text(encoding="utf-8")))
    if card.prompt_version != PROMPT_VERSION:
        raise ArtifactError(
            f"{folder}: trained with prompt version {card.prompt_version}, this code has "
            f"{PROMPT_VERSION}; train again or run the code of that release"
        )
    return card


class OnABase(Protocol):
    """A model, or what it says of itself: what its adapter's weights mean something to."""

    @property
    def base_digest(self) -> str:
        """Of the base model."""

    @property
    def pretraining(self) -> str:
        """Digest of stage 0; "": none."""


def other_base(one: OnABase, other: OnABase) -> str | None:
    """Name what differs below the adapters of two models: then one's means nothing to the other."""
    if one.base_digest != other.base_digest:
        return "base (llm.base)"
    return None if one.pretraining == other.pretraining else "stage 0 (llm.pretraining)"


def own_pretraining(folder: Path, card: LlmCard) -> Path | None:
    """Return the folder of the stage 0 that the model in ``folder`` was trained on, if any.

    Raises :class:`ArtifactError` where it is not there, or another one.
    """
    own = folder / PRETRAINING
    if not card.pretraining:
        return None
    if not own.is_dir() or folder_digest(own) != card.pretraining:
        raise ArtifactError(
            f"{own}: not the stage 0 that the model was trained on; fetch the model again or train "
            "again"
        )
    return own


@dataclass(frozen=True)
class PretrainingCard:
    """``pretraining.json``, beside the adapter of stage 0."""

    base: str  # as in the market file
    base_digest: str
    precision: str  # fp32 | bf16, at training
    settings: Mapping[str, Any]  # pretraining_settings
    figures: Mapping[str, float] = field(default_factory=dict)  # perplexities on held-out titles
    prompt_version: str = PROMPT_VERSION

    def write(self, folder: Path) -> None:
        """Write ``pretraining.json``."""
        write_json(folder / CARD, asdict(self))

    def fits(self, llm: Llm, base_digest: str) -> bool:
        """Say whether stage 0 by these settings on this base is what was done."""
        return (self.base_digest, self.settings, self.prompt_version) == (
            base_digest, pretraining_settings(llm), PROMPT_VERSION,
        )  # fmt: skip


def pretraining_settings(llm: Llm) -> dict[str, Any]:
    """Return what decides on an adapter of stage 0, as JSON."""
    return {name: getattr(llm, name).model_dump(mode="json") for name in ("pretraining", "lora")}


def read_pretraining(folder: Path) -> PretrainingCard:
    """Read ``pretraining.json``; raises :class:`ArtifactError` where it is not there."""
    try:
        return PretrainingCard(**json.loads((folder / CARD).read_text(encoding="utf-8")))
    except FileNotFoundError as e:
        raise ArtifactError(f"{folder} holds no stage 0; run pretrain_llm") from e
