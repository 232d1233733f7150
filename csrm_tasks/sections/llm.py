"""The section of the relevance LLM."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csrm_tasks.sections.base import Positive, Section, Share


class Lora(Section):
    """LoRA (A5)."""

    r: Positive = 128
    alpha: Positive = 256
    dropout: Share = 0.01
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")


class Mixture(Section):
    """Sampling shares and loss weights relative to the relevance task (A6)."""

    mt: float = 0.1
    cvr: float = 0.5
    mt_weight: float = 1.0
    cvr_weight: float = 1.0


class Distillation(Section):
    """Self-distillation rounds (A15-A18)."""

    rounds: Annotated[int, Field(ge=0, le=3)] = 2
    alpha: Share = 0.5  # weight of the human label
    memorised: Share = 0.9  # train fit on human labels from which the teacher is cross-fitted


class Llm(Section):
    """The relevance LLM (A1-A14)."""

    base: str  # folder, relative to the project or absolute, or a Hugging Face name@commit
    preset: Literal["csrm-llm", "data-centric"] | None = None  # below the file's own keys
    lora: Lora = Lora()
    mixture: Mixture = Mixture()
    distillation: Distillation = Distillation()
    lr: float = 2e-5
    weight_decay: float = 0.01
    warmup: Share = 0.03  # of the steps
    schedule: Literal["linear", "cosine"] = "linear"  # to zero, after the warm-up
    batch: Positive = 64
    micro_batch: Positive | None = None  # samples of one pass at most; null: a task's whole batch
    gradient_checkpointing: bool = False  # a third more work for far less memory
    processes: Positive = 1  # that train together on one machine, each on its own GPU
    sharding: Literal["none", "full"] = "none"  # full: each of them keeps a slice of the base
    steps: Positive = 500_000  # optimizer steps at most
    ranker_steps: Positive | None = (
        None  # of the first cold-start run, a mere CVR ranker; null: steps
    )
    evaluate_every: Positive = 1000  # steps between dev evaluations; best on dev is kept
    patience: Positive = 10  # evaluations without improvement before it stops
    max_length: Positive = 2048  # tokens
    checkpoint_seconds: Positive = 600
    rqa_dropout: Share = 0.1  # A24
    siblings: Positive = 8  # samples of one query drawn together; their prefix is run once (A12)
    # Tasks that share the scoring of a large table. Left out of fingerprints: how work is cut says
    # nothing of what comes out, and a new cut must not train anew.
    score_shards: Positive = Field(default=1, exclude=True)

    @model_validator(mode="after")
    def _shared(self) -> Self:
        if self.sharding != "none" and self.processes == 1:
            raise ValueError(
                f"sharding is {self.sharding}, but processes is 1: one process has nobody to share "
                "the base with; raise processes to the number of GPUs, or leave sharding out"
            )
        return self
