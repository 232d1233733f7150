"""Sections of serving budget, gate, promotion, rollout and retention."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csrm_tasks.sections.base import Positive, Section, Share


class Serving(Section):
    """What a release may cost where it is served (A48), measured before it may go live."""

    p99_ms: Annotated[float, Field(gt=0)] = 100.0  # a query and 100 products, in one process
    memory_mb: Positive = 4096  # of that process at its peak


# Figures that can have a floor: those of which more is better (evaluation.measures)
Floored = Literal[
    "micro_f1", "macro_f1", "kappa", "em_accuracy", "em_f1", "defect_accuracy", "defect_f1",
    "em_at_1",
]  # fmt: skip
Baseline = Literal["majority", "tfidf", "encoder", "prompt"]  # what gold is scored with beside LLMs
SLICES = (  # of evaluation.slices; beside them ``language xx-XX`` and ``category NAME``
    "head", "torso", "tail", "brand", "no_brand", "nickname", "new_product", "seen_category",
    "unseen_category",
)  # fmt: skip
LANGUAGE, CATEGORY = "language ", "category "


class Gate(Section):
    """Promotion policy (A46). Margins and floors are shares (0.01 is one point)."""

    metric: Literal["micro_f1"] = "micro_f1"
    mode: Literal["superiority", "non_inferiority"] = "non_inferiority"
    margin: Share = 0.01
    alpha: Share = 0.05
    floors: dict[Floored, Annotated[float, Field(ge=-1, le=1)]] = Field(default_factory=dict)
    # Baselines whose micro-F1 the LLM must reach; encoder and prompt are those of `controls:`
    not_below: tuple[Baseline, ...] = ()
    slices: tuple[str, ...] = ()
    slice_margin: Share = 0.03
    slice_min: Positive = 100  # judged pairs below which a slice is inconclusive
    cold_start_floor: Share = 0.4  # micro-F1 on source dev; there is no gold set yet

    @model_validator(mode="after")
    def _known_slices(self) -> Self:
        for name in self.slices:
            prefixed = any(name.startswith(p) and name != p for p in (LANGUAGE, CATEGORY))
            if name not in SLICES and not prefixed:
                raise ValueError(
                    f"slices: there is no slice {name!r}; known: {', '.join(SLICES)}, "
                    f"'{LANGUAGE}xx-XX', '{CATEGORY}NAME'"
                )
        return self


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
