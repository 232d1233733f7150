"""The section of the online towers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csrm_tasks.sections.base import (
    BaseModelName,
    Positive,
    Products,
    Queries,
    Rates,
    Section,
    Share,
    Steps,
    Tasks,
    Tokens,
    Unit,
    Whole,
)


class Towers(Section):
    """Online twin towers (A27-A35)."""

    encoder: BaseModelName
    """An encoder with a fast tokenizer, named like `llm.base`."""
    preset: Literal["paper", "recommended", "e5-small"] | None = None
    """Settings below the file's own keys, an encoder among them."""
    dim: Annotated[Positive, Unit("dimensions")] | None = 128
    """Width of the vectors of queries and products. null: the encoder's own; each head's projection
    is then square and starts as the identity."""
    query_prefix: str = ""
    """What the encoder was pretrained to read before a query; e5: "query: "."""
    title_prefix: str = ""
    """Likewise before a product; e5: "passage: "."""
    separate_trunks: bool = False
    """A pair of trunks for each head (A29), at twice the cost."""
    query_layers: Annotated[Positive, Unit("layers")] | None = None
    """Serve a query tower of so many layers (A34); null: all."""
    scale: float = 8.0
    """The s in σ(s · cosine + b) at the start (A28)."""
    learn_scale: bool = True
    """Learn s and b."""
    lexical: bool = False
    """Vectors also say which tokens a text holds, each weighted: brands and numbers are matched by
    their letters. For a base that has read other texts than a shop's."""
    fitted_start: bool = False
    """Start from states less their mean and with the b that gives the targets' mean: for a base
    whose cosines are all alike (e5: .77 to .91). Needs `learn_scale`."""
    impressed: Products = 20
    """Products that shoppers were shown, for each distillation query, at most (A31)."""
    retrieved: Products = 100
    """Likewise products that the retriever or BM25 finds; more where fewer were shown."""
    random: Annotated[Whole, Unit("products")] = 8
    """Likewise products drawn at random."""
    # Not in fingerprints, as Llm.score_shards.
    score_shards: Tasks | None = Field(default=None, exclude=True)
    """Tasks that share the LLM's scoring of the pairs; null: `llm.score_shards`."""
    queries: Queries = 1_000_000
    """Queries that the towers are distilled on, at most."""
    steps: Steps = 50_000
    """Steps of a training."""
    batch_queries: Queries = 64
    """Queries of a step."""
    batch_products: Products = 16
    """Products of each query of a step."""
    lr: float = 8e-5
    """Learning rate at the start, or after the warm-up."""
    warmup: Share = 0.0
    """Share of the steps in which the rate rises to `lr`."""
    lr_end: float = 1e-6
    """Learning rate at the last step."""
    rates: Rates = Field(default_factory=Rates)
    """Own learning rates of head, encoder and vocabulary."""
    query_tokens: Tokens = 32
    """Length of a query, its prefix not counted; longer ones are cut."""
    title_tokens: Tokens = 96
    """Length of a product, its prefix not counted; longer ones are cut."""
    product_fields: tuple[Literal["brand", "category", "leaf_category"], ...] = ()
    """What the product tower reads after the title (A27); `leaf_category` is the last level of the
    category, often a quarter of its tokens."""
    hard_baseline: bool = True
    """Train towers on labels alone beside them every week (A32)."""
    stacked_teacher: bool = False
    """Teach by a stack of the LLM's scores and lexical evidence, where dev says that it is better
    than the LLM alone (A50)."""
    refused_teacher: Literal["distil", "hard", "stop"] = "hard"
    """What if dev says that the teacher is surely below the gate's `floors` or `not_below`: learn
    from it all the same, learn labels instead (A32), or end the run."""
    typo_share: Share = 0.3
    """Share of the queries that are shown misspelt as well."""
    thresholds: Literal["dev", "teacher"] = "dev"
    """What thresholds are chosen on: judged dev pairs, or the LLM's scores (A33); of a head with
    `evidence` then its own probabilities, which are fitted on people's word, too."""
    evidence: bool = False
    """Serve the cosine with lexical evidence: how well the words of query and product match, by
    coefficients of each head that held-back queries must confirm (A50)."""
    precision_floor: Share | None = None
    """Least precision of the chosen thresholds; null: the best F1."""

    @model_validator(mode="after")
    def _fitted(self) -> Self:
        if self.fitted_start and not self.learn_scale:
            raise ValueError("fitted_start fits b, which learn_scale: false keeps at 0; drop one")
        return self
