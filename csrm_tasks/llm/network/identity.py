"""What a relevance LLM is: base, prompts, labels, temperature. Light: no torch here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from csrm_tasks.errors import ArtifactError
from csrm_tasks.json_files import write_json
from csrm_tasks.llm.prompt.prompts import PRODUCT_FIELDS, PROMPT_VERSION, ProductForm


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
    product_fields: tuple[str, ...] = PRODUCT_FIELDS  # of a prompt, besides the title
    category_levels: int | None = None  # of a prompt, from the path's end; None: all

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
