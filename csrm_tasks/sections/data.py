"""Sections of ingest, snapshot and data health."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from csrm_tasks.sections.base import (
    Day,
    Days,
    Positive,
    Products,
    Queries,
    Section,
    Share,
    Unit,
    Whole,
)


class Spark(Section):
    """Where Spark runs. A cluster's machines must all see CSRM_LAKE and CSRM_HOME."""

    master: str = "local[*]"
    """Master URL."""
    conf: dict[str, str] = Field(default_factory=dict)
    """Spark properties, such as `spark.executor.memory`."""


class Behaviour(Section):
    """How often one shopper counts in a day, and what is more than a person could do in it.

    A shopper is a client, or the session of an event without one. Other bounds hold for days that
    are summed up from then on.
    """

    impressions: Positive = 50
    """Impressions of one product for one query that count."""
    actions: Positive = 3
    """Likewise clicks, carts and purchases, each."""
    per_minute: Positive = 60
    """Searches, or actions, in a minute: who makes more is a machine."""
    per_day: Positive = 1000
    """Searches, or actions, in a day: likewise."""
    breadth: Positive = 500
    """Distinct queries, or distinct products acted on, in a day: likewise."""
    click_share: Share = 0.9
    """Clicks by impressions, from 200 impressions on: likewise."""


CatalogueColumn = Literal["product_id", "title", "brand", "category", "description", "deleted"]
TranslationColumn = Literal["translation_id", "kind", "source_text", "target_text"]
LabelColumn = Literal[
    "label_id", "query", "product_id", "grade", "rater_id", "guideline_version", "rated_at",
    "explanation", "held_out",
]  # fmt: skip
CategoryColumn = Literal[
    "label_id", "query", "category", "label", "rater_id", "guideline_version", "rated_at"
]
QueryColumn = Literal[
    "query_id", "user_query", "client_id", "session_id", "timestamp", "bucket", "release",
    "query_response_hit_ids", "application",
]  # fmt: skip
EventColumn = Literal[
    "action_name", "query_id", "object_id", "position", "client_id", "session_id", "timestamp",
    "user_query", "bucket", "release", "application",
]  # fmt: skip
Name = Annotated[str, Field(min_length=1)]


class Columns(Section):
    """What a market's files call the columns of docs/DATA.md; `csrm import propose` writes it.

    A column that is named here is looked for under that name only.
    """

    confirmed: bool = False
    """A person has read the names; ingest refuses them until then."""
    catalogue: dict[CatalogueColumn, Name] = Field(default_factory=dict)
    """Column to its name in files of this kind."""
    translations: dict[TranslationColumn, Name] = Field(default_factory=dict)
    """Likewise."""
    labels: dict[LabelColumn, Name] = Field(default_factory=dict)
    """Likewise."""
    query_categories: dict[CategoryColumn, Name] = Field(default_factory=dict)
    """Likewise."""
    ubi_queries: dict[QueryColumn, Name] = Field(default_factory=dict)
    """Likewise."""
    ubi_events: dict[EventColumn, Name] = Field(default_factory=dict)
    """Likewise."""


class Ingest(Section):
    """Nightly ingest."""

    tolerance: Share = 0.01
    """Share of a day's rows that may be quarantined before the day is not published."""
    complement: Literal["irrelevant", "substitute"] = "irrelevant"
    """What ESCI's grade C means."""
    grades: dict[str, Literal["exact", "substitute", "irrelevant"]] = Field(default_factory=dict)
    """A scale of one's own, word to meaning, in place of docs/DATA.md's; empty: that one."""
    columns: Columns = Columns()
    category_separator: Annotated[str, Field(max_length=10, pattern=r"\S")] = " > "
    """What joins the levels of a delivered category path."""
    applications: tuple[str, ...] = ()
    """UBI rows of other applications are ignored; none named: all count."""
    late_days: Days = 30
    """Age at delivery up to which a search or event is taken in."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What computes the aggregates of behaviour."""
    spark: Spark = Spark()
    behaviour: Behaviour = Behaviour()


class Snapshot(Section):
    """Splits and windows (A10)."""

    dev_share: Share = 0.1
    """Share of each locale's judged queries that go to dev."""
    gold_raters: Annotated[Positive, Unit("raters")] = 8
    """Raters of a target pair from which on it may enter the gold set."""
    gold_agree: Annotated[Positive, Unit("raters")] = 7
    """Of them at least so many agree. Without gold no weekly release passes the gate."""
    consensus: Literal["majority", "dawid_skene"] = "majority"
    """How several raters' grades become one outside gold."""
    qi_substitute: Literal["yes", "no"] | None = None
    """What a substitute is to the query-item task; null: a market that has some is refused."""
    behaviour_days: Days = 30
    """Shopper behaviour of this long before the snapshot's end is learnt from."""
    cvr_negatives: Products = 4
    """Products without conversion for each converted one in the conversion task (A8)."""
    derived_queries: Queries = 2000
    """Target queries derived from titles at the cold start, at most (A21)."""
    distilled_queries: Annotated[Whole, Unit("queries")] = 0
    """Further derived ones for the towers alone, where the log has few queries (A31)."""


class Limits(Section):
    """Distances between 0 and 1 from the last accepted week."""

    warn: Share | None = None
    """A greater distance is reported; null: never."""
    fail: Share | None = None
    """A greater distance stops the week; null: never."""


class Health(Section):
    """What of a week's deliveries may differ from the last accepted week's, and how far.

    The measures are those of `csrm_tasks/dataset/health.py`.
    """

    least: Annotated[Positive, Unit("rows")] = 200
    """Rows on either side below which nothing is compared."""
    accept: tuple[Day, ...] = ()
    """Days that somebody looked at, YYYY-MM-DD: the week of one never fails."""
    columns: Limits = Limits(warn=0.0, fail=0.4)
    """Share of the optional columns once filled that are wholly empty now."""
    volume: Limits = Limits(warn=0.5, fail=0.9)
    """Searches, and events, of a published day."""
    labels: Limits = Limits(warn=0.5)
    """The same of labels, which come in campaigns: nothing fails by default."""
    grades: Limits = Limits(warn=0.1, fail=0.3)
    """Jensen-Shannon distance of the raters' grades."""
    language: Limits = Limits(warn=0.15, fail=0.4)
    """Jensen-Shannon distance of the languages of queries, and of titles."""
    nulls: Limits = Limits(warn=0.1, fail=0.5)
    """Difference of a column's share of empty values."""
    duplicates: Limits = Limits(warn=0.1, fail=0.5)
    """Difference of the share of rows that were stored already."""
    new_queries: Limits = Limits(warn=0.5, fail=0.95)
    """Share of impressions whose query the accepted week did not have."""
    quarantine: Limits = Limits(warn=0.05, fail=0.25)
    """Difference of the share of quarantined rows."""
    machines: Limits = Limits(warn=0.1)
    """Difference of the share of events that machines made (see `ingest.behaviour`)."""
