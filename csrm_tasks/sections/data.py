"""Sections of ingest, snapshot and data health."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from csrm_tasks.sections.base import Positive, Section, Share


class Spark(Section):
    """Where Spark runs. A cluster's machines must all see CSRM_LAKE and CSRM_HOME."""

    master: str = "local[*]"
    conf: dict[str, str] = Field(default_factory=dict)  # Spark properties


class Behaviour(Section):
    """How often one shopper counts in a day, and what is more than a person could do in it.

    A shopper is a client, or the session of an event without one. Other bounds hold for days that
    are summed up from then on.
    """

    impressions: Positive = 50  # of one product for one query
    actions: Positive = 3  # likewise clicks, carts and purchases, each
    per_minute: Positive = 60  # searches, or actions, in a minute: more is a machine
    per_day: Positive = 1000  # searches, or actions, in a day
    breadth: Positive = 500  # distinct queries, or products acted on, in a day
    click_share: Share = 0.9  # clicks by impressions, from 200 impressions on


class Ingest(Section):
    """Nightly ingest."""

    tolerance: Share = 0.01  # share of a night's rows that may be quarantined before it fails
    complement: Literal["irrelevant", "substitute"] = "irrelevant"  # what ESCI's grade C means
    category_separator: Annotated[str, Field(max_length=10, pattern=r"\S")] = " > "  # of levels
    applications: tuple[str, ...] = ()  # UBI rows of others are ignored; none named: all count
    late_days: Positive = 30  # a search or event is at most so many days older than its delivery
    engine: Literal["duckdb", "spark"] = "duckdb"  # of the aggregates
    spark: Spark = Spark()
    behaviour: Behaviour = Behaviour()


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
    machines: Limits = Limits(warn=0.1)
