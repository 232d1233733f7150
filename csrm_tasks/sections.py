"""The sections of a market file, one frozen model per room; unknown keys are refused.

Defaults are the papers' values (A5, A22, A31); the demo market's file overrides what a laptop
needs smaller. A field exists only where a step reads it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Base of every section: frozen, typed, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Schedule(Section):
    """Cron expressions in UTC; null means by hand only."""

    ingest: str | None = "0 2 * * *"
    retrain: str | None = "0 4 * * 1"
    refresh: str | None = "0 3 * * *"  # after the night's ingest
    rollout: str | None = "0 6 * * *"  # likewise
    drill: str | None = "0 5 1 * *"


class Spark(Section):
    """Where Spark runs. A cluster's machines must all see CSRM_LAKE and CSRM_HOME."""

    master: str = "local[*]"
    conf: dict[str, str] = {}  # Spark properties


class Ingest(Section):
    """Nightly ingest."""

    tolerance: Share = 0.01  # share of a night's rows that may be quarantined before it fails
    complement: Literal["irrelevant", "substitute"] = "irrelevant"  # what ESCI's grade C means
    late_days: Positive = 30  # a search or event is at most so many days older than its delivery
    engine: Literal["duckdb", "spark"] = "duckdb"  # of the aggregates
    spark: Spark = Spark()


class Snapshot(Section):
    """Splits and windows (A10)."""

    dev_share: Share = 0.1  # of queries, per locale
    gold_raters: Positive = 8  # a gold pair has at least so many raters …
    gold_agree: Positive = 7  # … of whom so many agree
    consensus: Literal["majority", "dawid_skene"] = "majority"  # several raters to one grade
    behaviour_days: Positive = 30
    cvr_negatives: Positive = 4  # per positive (A8)
    derived_queries: Positive = 2000  # title-derived target queries at most, stage 1 (A21)
    # Further ones, which the teacher answers for the towers alone, where the log has few (A31)
    distilled_queries: Annotated[int, Field(ge=0)] = 0


class Limits(Section):
    """Distances between 0 and 1 above which a measure warns, and fails; null: never."""

    warn: Share | None = None
    fail: Share | None = None


class Health(Section):
    """What of a week's deliveries may differ from the last accepted week's, and how far.

    The measures are those of :mod:`csrm_tasks.dataset.health`.
    """

    least: Positive = 200  # rows on either side below which nothing is compared
    accept: tuple[str, ...] = ()  # days that were looked at: the week of one never fails
    columns: Limits = Limits(warn=0.0, fail=0.4)
    volume: Limits = Limits(warn=0.5, fail=0.9)
    labels: Limits = Limits(warn=0.5)  # labelling comes in campaigns
    grades: Limits = Limits(warn=0.1, fail=0.3)
    language: Limits = Limits(warn=0.15, fail=0.4)
    nulls: Limits = Limits(warn=0.1, fail=0.5)
    duplicates: Limits = Limits(warn=0.1, fail=0.5)
    new_queries: Limits = Limits(warn=0.5, fail=0.95)
    quarantine: Limits = Limits(warn=0.05, fail=0.25)


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

    base: str  # folder, relative to the project or absolute, or a Hugging Face name
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


class Serving(Section):
    """What a release may cost where it is served (A48), measured before it may go live."""

    p99_ms: Annotated[float, Field(gt=0)] = 100.0  # a query and 100 products, in one process
    memory_mb: Positive = 4096  # of that process at its peak


class Gate(Section):
    """Promotion policy (A46). Margins and floors are shares (0.01 is one point)."""

    metric: Literal["micro_f1"] = "micro_f1"
    mode: Literal["superiority", "non_inferiority"] = "non_inferiority"
    margin: Share = 0.01
    alpha: Share = 0.05
    floors: dict[str, float] = {}  # metric name → least value
    not_below: tuple[str, ...] = ()  # baselines whose micro-F1 the LLM must reach (majority, tfidf)
    slices: tuple[str, ...] = ()
    slice_margin: Share = 0.03
    slice_min: Positive = 100  # judged pairs below which a slice is inconclusive
    cold_start_floor: Share = 0.4  # micro-F1 on source dev; there is no gold set yet


class Release(Section):
    """Registration and promotion."""

    model_name: str | None = None  # MLflow registered model; default csrm-{market}
    approval: Literal["auto", "manual"] = "manual"
    export_llm: bool = False  # merge every release's LLM for other servers, and name it there (A14)
    # A champion alias moved by hand in MLflow: put back, or taken over where promote would allow it
    alias_moved: Literal["revert", "adopt"] = "revert"


class Step(Section):
    """One step of a rollout: what share of the sessions, for how long, and what must be known."""

    weight: Annotated[int, Field(ge=0, lt=100)]  # percent of sessions; 0 is shadow
    days: Positive = 1  # of data, at least
    sessions: Annotated[int, Field(ge=0)] = 0  # of the next release, from the start, at least
    audits: Annotated[int, Field(ge=0)] = 0  # queries that raters judged, from the start, at least
    margin: Share = 0.1  # fall in conversion, relative to the stable release, to be ruled out
    audit_margin: Share = 0.05  # rise of Defect@5 and fall of EM@1 to be ruled out, in audits


class Rollout(Section):
    """How a release gets from approval to all sessions; no steps: at once."""

    steps: tuple[Step, ...] = (
        Step(weight=0, audits=300, audit_margin=0.1),
        Step(weight=1, days=2, audits=300, margin=1.0, audit_margin=0.1),
        Step(weight=10, days=2, audits=600, margin=0.25, audit_margin=0.075),
        Step(weight=50, days=3, audits=900, margin=0.1, audit_margin=0.05),
    )
    max_days: Positive = 21  # in one step without a decision; then a person is asked
    alpha: Share = 0.05  # chance to roll back, in a whole rollout, a release that is no worse
    planned_sessions: Positive = 20_000  # effective sessions at which the bounds are narrowest
    audit_queries: Positive = 150  # that raters are given a day
    error_margin: Share | None = 0.001  # rise of the share of failed requests; null: not judged
    latency_ratio: float | None = 1.25  # p99 over the stable release's; null: not judged
    failures: Positive = 1  # failed looks in a row that roll back
    errors: Positive = 3  # looks in a row that could not be read, after which a person is asked
    holdout: Annotated[int, Field(ge=0, le=20)] = 0  # percent kept on the release before
    holdout_days: Positive = 14
    approvers: tuple[str, ...] = ()  # Airflow users who are asked; none: whoever may
    approval_hours: Positive = 72  # without an answer: rejected

    @model_validator(mode="after")
    def _rising(self) -> Self:
        weights = [step.weight for step in self.steps]
        if weights != sorted(set(weights)):
            raise ValueError(f"each step's weight must be above the one before, not {weights}")
        return self


class Retention(Section):
    """What is never collected, beside the live releases and what is being rolled out."""

    recent_days: Positive = 35  # artifacts younger than this
    rollback_days: Positive = 90  # what ledger rows younger than this name


class Controls(Section):
    """Control arms trained beside the weekly model, to see what each part earns."""

    rqa_cold: bool = False  # stage 2 with the cold-start RQA instead of RQA*
    rqa_off: bool = False  # the chosen LLM without titles: what they resolve, by query
    cross_encoder: bool = False  # one tower that reads query and title together, beside the two
    encoder: str | None = None  # base of a supervised encoder classifier (paper 1, table 2)
    prompt: str | None = None  # an LLM that is asked without training: a local causal model …
    prompt_connection: str | None = None  # … or a model behind this Airflow connection
