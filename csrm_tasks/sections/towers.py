"""The section of the online towers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from csrm_tasks.sections.base import Positive, Section, Share


class Towers(Section):
    """Online twin towers (A27-A35)."""

    encoder: str  # as Llm.base
    preset: Literal["paper", "recommended"] | None = None  # below the file's own keys
    dim: Positive = 128
    separate_trunks: bool = False  # a pair of trunks for each head (A29), at twice the cost
    query_layers: Positive | None = None  # serve a query tower of so many layers (A34); null: all
    scale: float = 8.0
    learn_scale: bool = True
    impressed: Positive = 20  # M (A31)
    retrieved: Positive = 100  # N, by EBR and BM25
    random: Annotated[int, Field(ge=0)] = 8
    # Tasks that share the teacher's scoring of the pairs; null: llm.score_shards. Not in
    # fingerprints, as there.
    score_shards: Positive | None = Field(default=None, exclude=True)
    queries: Positive = 1_000_000  # distillation queries at most
    steps: Positive = 50_000
    batch_queries: Positive = 64
    batch_products: Positive = 16
    lr: float = 8e-5
    lr_end: float = 1e-6
    query_tokens: Positive = 32
    title_tokens: Positive = 96
    product_fields: tuple[Literal["brand", "category"], ...] = ()  # read after the title (A27)
    hard_baseline: bool = True  # train A32 beside it every week
    typo_share: Share = 0.3  # of the queries: shown misspelt as well
    # A33: chosen on judged dev pairs, or where these are few by the teacher on the distilled ones
    thresholds: Literal["dev", "teacher"] = "dev"
    precision_floor: Share | None = None  # of the chosen thresholds; null: max F1
