"""Sections of serving budget, gate, promotion, rollout and retention."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from csrm_tasks.sections.base import FORMS, Days, Positive, Section, Share, Unit, Whole


class Serving(Section):
    """What a release may cost where it is served (A48), measured before it may go live."""

    p99_ms: Annotated[float, Field(gt=0), Unit("milliseconds")] = 100.0
    """p99 of a query with 100 products, in one process."""
    memory_mb: Annotated[Positive, Unit("MiB")] = 4096
    """Peak of that process."""


# Figures that can have a floor: those of which more is better (evaluation.measures)
Floored = Literal[
    "micro_f1", "macro_f1", "kappa", "em_accuracy", "em_f1", "defect_accuracy", "defect_f1",
    "em_at_1",
]  # fmt: skip
Baseline = Literal["majority", "tfidf", "encoder", "prompt"]  # what gold is scored with beside LLMs
Compared = Literal["micro_f1", "em_f1", "defect_f1", "em_at_1"]  # figures that baselines have, too
COMPARED: tuple[Compared, ...] = ("micro_f1", "em_f1", "defect_f1", "em_at_1")


def _form(given: object) -> str:
    return FORMS[isinstance(given, dict)]


NotBelow = Annotated[
    Annotated[tuple[Baseline, ...], Tag(FORMS[0])]
    | Annotated[
        dict[Baseline, Annotated[tuple[Compared, ...], Field(min_length=1)]], Tag(FORMS[1])
    ],
    Discriminator(_form),
]
SLICES = (  # of evaluation.slices; beside them ``language xx-XX`` and ``category NAME``
    "head", "torso", "tail", "brand", "no_brand", "nickname", "new_product", "seen_category",
    "unseen_category",
)  # fmt: skip
LANGUAGE, CATEGORY = "language ", "category "


class Gate(Section):
    """Promotion policy (A46). Margins and floors are shares (0.01 is one point)."""

    metric: Literal["micro_f1"] = "micro_f1"
    """What the LLMs are compared by."""
    mode: Literal["superiority", "non_inferiority"] = "non_inferiority"
    """The candidate must be better than the live release, or no worse by the margin."""
    margin: Share = 0.01
    """Loss that must be ruled out; the fewer gold queries, the wider it has to be."""
    alpha: Share = 0.05
    """Level of the two-sided intervals."""
    floors: dict[Floored, Annotated[float, Field(ge=-1, le=1)]] = Field(default_factory=dict)
    """Least value of a measure on gold, by its name."""
    task_floors: dict[Literal["qc", "qi"], Share] = Field(default_factory=dict)
    """Least F1 of yes on gold, by task of the market; docs/TASKS.md."""
    not_below: NotBelow = ()
    """Baselines that must not be better: a list is of the micro-F1 of what teaches the towers
    (LLM, or `towers.stacked_teacher`); a mapping names the figures, which hold for the towers, too:
    `{tfidf: [micro_f1, em_f1]}`. encoder and prompt are those of `controls`."""
    slices: tuple[str, ...] = ()
    """Parts of gold that are judged by themselves, too; docs/GATE.md."""
    slice_margin: Share = 0.03
    """Loss in a slice that must be ruled out."""
    slice_min: Annotated[Positive, Unit("gold pairs")] = 100
    """Gold pairs below which a slice is inconclusive, so that nothing passes."""
    cold_start_floor: Share = 0.4
    """Least micro-F1 of a cold start on the source's dev; there is no gold set yet."""

    @property
    def compared(self) -> dict[Baseline, tuple[Compared, ...]]:
        """Figures that must not be below a baseline's, by baseline, however they were written."""
        if isinstance(self.not_below, dict):
            return self.not_below
        return {name: ("micro_f1",) for name in self.not_below}

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

    model_name: str | None = None
    """Registered model in MLflow; null: csrm-{market}."""
    approval: Literal["auto", "manual"] = "manual"
    """manual: a person approves what passed the gate before it goes live."""
    export_llm: bool = False
    """Merge every release's LLM for other servers, and name it there (A14)."""
    alias_moved: Literal["revert", "adopt"] = "revert"
    """A champion alias moved by hand in MLflow: put back, or adopted where allowed."""


class Step(Section):
    """One step of a rollout: what share of the sessions, for how long, and what must be known."""

    weight: Annotated[int, Field(ge=0, lt=100), Unit("percent of sessions")]
    """Sessions that the new release answers; 0: shadow, it scores copies of the traffic."""
    interleave: Annotated[int, Field(ge=0, le=100), Unit("percent of sessions")] = 0
    """Further sessions, whose searches show both releases' results in one list (A57)."""
    days: Days = 1
    """Days of data, at least."""
    sessions: Annotated[Whole, Unit("sessions")] = 0
    """Sessions of the new release, and interleaved ones with a preference, at least."""
    audits: Annotated[Whole, Unit("queries")] = 0
    """Queries that raters judged since the rollout began, at least."""
    margin: Share = 0.1
    """Fall in conversion, relative to the stable release, that must be ruled out."""
    audit_margin: Share = 0.05
    """Rise of Defect@5 and fall of EM@1 in audits that must be ruled out."""
    preference_margin: Share = 0.1
    """Preference for the stable release, of −1 to 1, that must be ruled out by interleaving."""

    @model_validator(mode="after")
    def _leaves_sessions_to_compare_with(self) -> Self:
        if self.weight and self.weight + self.interleave >= 100:
            raise ValueError(
                f"weight {self.weight} and interleave {self.interleave} leave the stable release "
                "no session to be compared by; keep them below 100 together"
            )
        return self

    @property
    def share(self) -> float:
        """Of the sessions that one release alone answers, the new one's; 0: shadow."""
        return self.weight / (100 - self.interleave) if self.weight else 0.0


class Rollout(Section):
    """How a release gets from approval to all sessions; no steps: at once."""

    steps: tuple[Step, ...] = (
        Step(weight=0, audits=300, audit_margin=0.1),
        Step(weight=1, days=2, audits=300, margin=1.0, audit_margin=0.1),
        Step(weight=10, days=2, audits=600, margin=0.25, audit_margin=0.075),
        Step(weight=50, days=3, audits=900, margin=0.1, audit_margin=0.05),
    )
    """The steps; an empty list: what passed the gate goes to everybody at once."""
    max_days: Days = 21
    """Days in one step without a decision, after which a person is asked."""
    alpha: Share = 0.05
    """Chance to roll back, in a whole rollout, a release that is no worse."""
    planned_sessions: Annotated[Positive, Unit("effective sessions")] = 20_000
    """Sessions at which the intervals are narrowest."""
    audit_queries: Annotated[Positive, Unit("queries")] = 150
    """Queries that raters are given a day."""
    audit_draw: Literal["traffic", "strata"] = "traffic"
    """How these are drawn: by traffic, or more of those that the releases' towers doubt (A58)."""
    adjust_conversion: bool = False
    """Take off conversion what shoppers' visits before the rollout explain of it (A59)."""
    error_margin: Share | None = 0.001
    """Rise of the share of failed requests that must be ruled out; null: not judged."""
    latency_ratio: Annotated[float, Unit("ratio")] | None = 1.25
    """Bound of p99 over the stable release's; null: not judged."""
    failures: Annotated[Positive, Unit("evaluations")] = 1
    """Failed evaluations in a row that roll back."""
    errors: Annotated[Positive, Unit("evaluations")] = 3
    """Unreadable evaluations in a row after which a person is asked."""
    holdout: Annotated[int, Field(ge=0, le=20), Unit("percent of sessions")] = 0
    """Sessions kept on the release before, after the last step."""
    holdout_days: Days = 14
    """How long they are kept there."""
    approvers: tuple[str, ...] = ()
    """Airflow users who are asked for approval; none named: whoever may."""
    approval_hours: Annotated[Positive, Unit("hours")] = 72
    """Hours without an answer after which the release is rejected."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        weights = [(step.weight, step.interleave) for step in self.steps]
        if weights != sorted(set(weights)):
            shown = [f"{w} and {i} interleaved" if i else w for w, i in weights]
            raise ValueError(f"each step's weight must be above the one before, not {shown}")
        return self


class Retention(Section):
    """What is never collected, beside the live releases and what is being rolled out."""

    recent_days: Days = 35
    """Artifacts younger than this are kept."""
    rollback_days: Days = 90
    """What ledger rows younger than this name is kept."""
