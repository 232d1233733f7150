"""The section of retrieval."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csrm_tasks.sections.base import Positive, Section, Share


class Mining(Section):
    """Hard negatives: titles that BM25 ranks high for a query and that are no pair of it (A22)."""

    first: Annotated[int, Field(ge=0)] = 20  # rank from 0, inclusive; those above are often right
    last: Positive = 100  # exclusive
    per_query: Positive = 4

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.first >= self.last:
            raise ValueError(f"first {self.first} must be below last {self.last}: no rank is left")
        return self


class Ebr(Section):
    """The embedding-based retriever (A22, A23)."""

    encoder: str  # as Llm.base
    dim: Positive = 128
    temperature: float = 0.05
    steps: Positive = 20_000
    batch: Positive = 256
    pool: Positive = 256  # shared random products as negatives
    lr: float = 5e-5
    mse_weight: float = 1.0
    within_query: Literal["margin_mse", "kl"] | None = None  # a third loss, over a query's titles
    # A title nearer to the query than this share of the positive's cosine is no negative (from the
    # middle of training on); null: only known pairs are left out.
    false_negative: Share | None = None
    mining: Mining | None = None
    max_length: Positive = 64


class RqaText(Section):
    """The text that augments a query (A24)."""

    k: Positive = 3
    title_tokens: Positive = 24


class Retrieval(Section):
    """BM25, pseudo pairs, EBR, index and RQA (A20-A26)."""

    ebr: Ebr
    rqa: RqaText = RqaText()
    bm25_k: Positive = 20  # pseudo pairs per query (A21)
    exact_below: Positive = 50_000  # products; above, IVF-SQ8 (A25)
    # Tasks that share the embedding of a catalogue; not in fingerprints, as Llm.score_shards.
    index_shards: Positive = Field(default=1, exclude=True)
