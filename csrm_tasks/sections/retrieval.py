"""The section of retrieval."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csrm_tasks.sections.base import (
    BaseModelName,
    Positive,
    Products,
    Rates,
    Section,
    Share,
    Steps,
    Tasks,
    Tokens,
    Unit,
    Whole,
    check_ranks,
)


class Mining(Section):
    """Hard negatives: titles that BM25 ranks high for a query and that are no pair of it (A22)."""

    first: Annotated[Whole, Unit("rank from 0")] = 20
    """First rank to draw from, inclusive; the titles above are often right."""
    last: Annotated[Positive, Unit("rank from 0")] = 100
    """Last rank, exclusive."""
    per_query: Products = 4
    """Hard negatives of a query."""

    @model_validator(mode="after")
    def _window(self) -> Self:
        check_ranks(self.first, self.last)
        return self


class SameClass(Section):
    """Titles of the positive's own category are no negatives, if it holds no substitutes (A56)."""

    exact: Share = 0.95
    """Share of the other judged products of a category that must be exact, too, for queries with an
    exact one there; in other categories all titles stay negatives."""
    pairs: Annotated[Positive, Unit("judged train pairs")] = 20
    """Such judged products below which a category is not known to hold no substitutes."""


class Ebr(Section):
    """The embedding-based retriever (A22, A23)."""

    encoder: BaseModelName
    """An encoder with a fast tokenizer, named like `llm.base`."""
    preset: Literal["e5-small"] | None = None
    """Settings for a small real encoder, below the file's own keys, the encoder among them."""
    dim: Annotated[Positive, Unit("dimensions")] | None = 128
    """Width of the vectors; a projection to it is learnt. null: the encoder's own, without one."""
    query_prefix: str = ""
    """What the encoder was pretrained to read before a query; e5: "query: "."""
    title_prefix: str = ""
    """Likewise before a title; e5: "passage: "."""
    temperature: float = 0.05
    """Temperature of the contrastive loss."""
    steps: Steps = 20_000
    """Steps of a training."""
    batch: Annotated[Positive, Unit("pairs")] = 256
    """Positive pairs of a step."""
    pool: Products = 256
    """Random products that serve a whole batch as negatives."""
    lr: float = 5e-5
    """Peak learning rate."""
    rates: Rates = Field(default_factory=Rates)
    """Own learning rates of head, encoder and vocabulary."""
    mse_weight: float = 1.0
    """Weight of the regression on conversion."""
    within_query: Literal["margin_mse", "kl"] | None = None
    """A third loss, over the titles of one query."""
    false_negative: Share | None = None
    """A title nearer to the query than this share of the positive's cosine is no negative (from the
    middle of training on); null: only known pairs are left out."""
    mining: Mining | None = None
    """Hard negatives from BM25; null: none."""
    same_class: SameClass | None = None
    """Leave titles of the positive's own category out of its negatives; null: they are negatives as
    all others."""
    max_length: Tokens = 64
    """Length of a query or title, its prefix not counted; longer ones are cut."""


class RqaText(Section):
    """The text that augments a query (A24)."""

    k: Annotated[Positive, Unit("titles")] = 3
    """Retrieved titles in a prompt."""
    title_tokens: Tokens = 24
    """Length of each of them."""


class Retrieval(Section):
    """BM25, pseudo pairs, the retriever (EBR), its index and RQA (A20-A26)."""

    ebr: Ebr
    rqa: RqaText = RqaText()
    bm25_k: Products = 20
    """Pseudo pairs of a query (A21)."""
    exact_below: Products = 50_000
    """Catalogues below this are searched exactly, larger ones by IVF-SQ8 (A25)."""
    # Not in fingerprints, as Llm.score_shards.
    index_shards: Tasks = Field(default=1, exclude=True)
    """Tasks that share the embedding of a catalogue."""
