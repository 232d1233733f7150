"""The section of the relevance LLM."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csrm_tasks.sections.base import (
    BaseModelName,
    Positive,
    Seconds,
    Section,
    Share,
    Steps,
    Tasks,
    Tokens,
    Unit,
    Whole,
    check_ranks,
)

MergeMethod = Literal["linear", "ties", "dare"]


class Lora(Section):
    """LoRA (A5)."""

    r: Positive = 128
    """Rank of the adapter."""
    alpha: Positive = 256
    """Scale of the adapter, as alpha / r, or with `rslora` as alpha / √r."""
    rslora: bool = False
    """Scale by √r, so that a rate which is good at one rank is good at another."""
    dropout: Share = 0.01
    """Dropout before the adapter."""
    targets: Literal["all-linear"] | tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Names of the layers that are adapted, or every linear one; never the embeddings or the
    head."""


class Mixture(Section):
    """Sampling shares and loss weights relative to the relevance task (A6)."""

    mt: Annotated[float, Unit("samples")] = 0.1
    """Translations in a batch, for each relevance sample."""
    cvr: Annotated[float, Unit("samples")] = 0.5
    """Conversion examples in a batch, for each relevance sample."""
    qc: Annotated[float, Field(gt=0.0), Unit("samples")] = 0.5
    """Query-category samples in a batch, for each relevance sample, where `tasks` has qc."""
    qi: Annotated[float, Field(gt=0.0), Unit("samples")] = 0.5
    """Likewise query-item samples."""
    mt_weight: float = 1.0
    """Weight of the translation loss."""
    cvr_weight: float = 1.0
    """Weight of the conversion loss."""


class Pretraining(Section):
    """Stage 0: continued pre-training on the market's texts, before a label is read."""

    steps: Annotated[int, Field(ge=0), Unit("optimizer steps")] = 0
    """Optimizer steps at most; 0: no stage 0."""
    lr: float = 5e-4
    """Peak learning rate."""
    tokens: Annotated[int, Field(ge=512), Unit("tokens")] = 4096
    """Tokens of an optimizer step, over all processes."""
    translations: Share = 0.5
    """Share of these tokens that are translations; the rest are titles and queries."""


class Negatives(Section):
    """Irrelevant pairs that nobody judged, added to train queries (A38, A56)."""

    per_query: Annotated[Whole, Unit("negatives")] = 0
    """Negatives of a train query at most; 0: none."""
    easy: Share = 0.5
    """Share of them that is drawn from other categories than the query's."""
    ranked: Share = 0.25
    """Share of them at ranks `first` to `last` of `channel`."""
    mined: Share = 0.25
    """Share of them that only one of BM25, the EBR and the query's categories finds."""
    channel: Literal["bm25", "ebr"] = "ebr"
    """Whose ranks `ranked` takes."""
    first: Annotated[Whole, Unit("rank from 0")] = 20
    """First rank to draw from, inclusive; the titles above are often right."""
    last: Annotated[Positive, Unit("rank from 0")] = 50
    """Last rank, exclusive; a channel finds what it ranks above."""
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Loss weight of a negative beside a judged pair's 1."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.easy + self.ranked + self.mined - 1.0) > 1e-6:
            raise ValueError(
                f"easy {self.easy}, ranked {self.ranked} and mined {self.mined} are shares of one "
                "whole: make their sum 1"
            )
        check_ranks(self.first, self.last)
        return self


class Augmentation(Section):
    """Train queries translated for languages that are judged and have no train labels (A36, A37);
    product text and label stay.
    """

    translator: Literal["table", "llm", "seq2seq"] | None = None
    """Who translates: the market's own translations (a query that they cover whole), the LLM by
    what it learns of the translation task (then in both directions), or `model`; null: nobody."""
    model: BaseModelName | None = None
    """Of `seq2seq`: a sequence-to-sequence model, named as `base` is."""
    back: BaseModelName | None = None
    """Of `seq2seq`: the model of the way back, where `model` knows one direction only."""
    codes: dict[str, str] = Field(default_factory=dict)
    """Of `seq2seq`: what the models call a locale (`zh-TW: zho_Hant`); a locale that is not named
    goes by its language (`zh`)."""
    prefix: str = ""
    """Of `seq2seq`: what stands before a text, with {source} and {target} for these codes, where a
    model is told the languages so."""
    beams: Annotated[int, Field(ge=1, le=16), Unit("beams")] = 4
    """Translations of a text that `llm` and `seq2seq` look at; the first that keeps numbers and
    brand is taken."""
    round_trip: Share = 0.5
    """Least likeness of a query and its translation back (of their letters and pairs of letters),
    unless the market's translations say that they are one."""
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Loss weight of a translated pair beside the judged pair that it is of."""

    @model_validator(mode="after")
    def _names_languages(self) -> Self:
        try:
            self.prefix.format(source="", target="")
        except (KeyError, IndexError, ValueError) as e:
            raise ValueError(
                f"prefix {self.prefix!r} holds other braces than {{source}} and {{target}}"
            ) from e
        return self

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if (self.translator == "seq2seq") != (self.model is not None):
            raise ValueError("translator seq2seq and model go together: give both, or neither")
        return self


class Distillation(Section):
    """Self-distillation rounds (A15-A18)."""

    rounds: Annotated[int, Field(ge=0, le=3), Unit("rounds")] = 2
    """At most so many, each only while dev improves; each trains the LLM once more."""
    alpha: Share = 0.5
    """Weight of the human label beside the soft one."""
    memorised: Share = 0.9
    """Fit of the human train labels from which the soft labels are cross-fitted."""


class Llm(Section):
    """The relevance LLM (A1-A14)."""

    base: BaseModelName
    """A causal model: `base:name` (`csrm base add`), a folder (relative to the project, or
    absolute), or `org/name@{commit}`."""
    preset: Literal["csrm-llm", "data-centric", "gemma-270m"] | None = None
    """Settings of paper 1, of paper 2, or for a small real base (with that base), below the file's
    own keys."""
    lora: Lora = Lora()
    pretraining: Pretraining = Pretraining()
    mixture: Mixture = Mixture()
    distillation: Distillation = Distillation()
    negatives: Negatives = Negatives()
    augmentation: Augmentation = Augmentation()
    misspelt_share: Share = 0.0
    """Share of the train queries that are learnt misspelt as well, with the labels of what was
    meant; 0: none."""
    lr: float = 2e-5
    """Peak learning rate."""
    label_smoothing: Annotated[float, Field(ge=0.0, le=0.2), Unit("share")] = 0.0
    """Share of a human label that is spread over all labels (A53); soft labels, conversions and dev
    stay as they are."""
    noise_correction: bool = False
    """Compare what the model says, seen through the raters' confusion, with what they said (A51).
    Needs 100 pairs of a locale, train and dev together, with two raters or more; labels of other
    locales are learnt as they are."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    warmup: Share = 0.03
    """Share of the steps over which the rate rises."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the rate falls to zero after the warm-up."""
    batch: Annotated[Positive, Unit("samples")] = 64
    """Samples of an optimizer step, over all tasks and processes."""
    micro_batch: Annotated[Positive, Unit("samples")] | None = None
    """Samples of one pass at most, to bound memory; null: a task's whole batch."""
    gradient_checkpointing: bool = False
    """Compute activations twice: a third more work for far less memory."""
    processes: Annotated[Positive, Unit("processes")] = 1
    """Processes that train together on one machine, each on its own GPU."""
    sharding: Literal["none", "full"] = "none"
    """full: each process keeps a slice of the base."""
    steps: Steps = 500_000
    """Steps of a training at most; the learning rate is zero after the last one."""
    warm_start: Literal["none", "live"] = "none"
    """live: the weekly trainings start from the live release's adapter, of the same base and LoRA,
    instead of a fresh one (A17): for few steps or labels."""
    must_learn: bool = True
    """Fail a training whose loss is not below the entropy of its labels; false: warn only, where a
    few steps are to try out the way from data to release."""
    ranker_steps: Steps | None = None
    """Steps of the cold start's first training, which only ranks pairs; null: `steps`."""
    evaluate_every: Steps = 1000
    """Steps between evaluations on dev; the best state is kept."""
    patience: Annotated[Positive, Unit("evaluations")] = 10
    """Evaluations without improvement after which training stops."""
    max_length: Tokens = 2048
    """Length of a prompt; longer ones are cut."""
    product_fields: tuple[Literal["brand", "category", "description"], ...] = (
        "brand",
        "category",
        "description",
    )
    """What a prompt says of a product besides its title; each costs its tokens once per pair."""
    category_levels: Annotated[Positive, Unit("levels")] | None = None
    """Levels of the category path in a prompt, from its end; null: all."""
    pivot: Annotated[str, Unit("locale such as ko-KR")] | None = None
    """One of the market's locales: queries and titles in another one are read with their
    translation into it behind them, where the market has delivered one (A52); null: none."""
    checkpoint_seconds: Seconds = 600
    """Time between checkpoints, from which a killed training resumes."""
    rqa_dropout: Share = 0.1
    """Share of the training samples whose retrieved titles are left out (A24)."""
    siblings: Annotated[Positive, Unit("samples")] = 8
    """Samples of one query drawn together; their common prefix is computed once (A12)."""
    mix_languages: bool = False
    """Draw the judged pairs of a query and of its translations together, so that a batch holds both
    languages (LcRL); false: wherever they fall."""
    # Left out of fingerprints, as what follows: it changes no training, and each method is a
    # parameter of its own step.
    merge: tuple[MergeMethod, ...] = Field(default=(), exclude=True)
    """Ways to merge the week's adapters and the live one into one more candidate each (A55):
    linear (their mean), ties (their larger half, where signs agree) or dare (a random half of
    each). Dev chooses, as between rounds."""
    # How work is cut says nothing of what comes out, and a new cut must not train anew.
    score_shards: Tasks = Field(default=1, exclude=True)
    """Tasks that share the scoring of a large table."""

    @property
    def translations(self) -> float:
        """Translations in a batch for each relevance sample, of both directions where both are
        learnt: the LLM as translator is asked the way back, too (A37).
        """
        return self.mixture.mt * (2 if self.augmentation.translator == "llm" else 1)

    @model_validator(mode="after")
    def _takes_errors_once(self) -> Self:
        if self.noise_correction and self.label_smoothing:
            raise ValueError(
                "noise_correction and label_smoothing both say that human labels may be wrong, the "
                "one by how, the other evenly: set label_smoothing to 0"
            )
        return self

    @model_validator(mode="after")
    def _translates(self) -> Self:
        if self.augmentation.translator == "llm" and not self.mixture.mt:
            raise ValueError(
                "augmentation.translator is llm, but mixture.mt is 0: the LLM never learns to "
                "translate; raise mixture.mt, or choose another translator"
            )
        return self

    @model_validator(mode="after")
    def _once(self) -> Self:
        for method in set(self.merge):
            if self.merge.count(method) > 1:
                raise ValueError(f"merge names {method!r} twice; name each method once")
        return self

    @model_validator(mode="after")
    def _shared(self) -> Self:
        if self.sharding != "none" and self.processes == 1:
            raise ValueError(
                f"sharding is {self.sharding}, but processes is 1: one process has nobody to share "
                "the base with; raise processes to the number of GPUs, or leave sharding out"
            )
        return self
