"""What a market may deliver: each column's type, range and vocabulary, declared once.

The readers look values up by ``sources`` (a dotted source is a nested field, or a name with dots),
the validation turns each declaration into checks over a whole batch, ``docs/DATA.md`` is generated
from it, and error texts name it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

import polars as pl

from csrm_tasks.errors import ConfigError
from csrm_tasks.sections.data import Columns

ColumnType = Literal["text", "identifier", "integer", "time", "list"]


class Reason(StrEnum):
    """Why a row, or a whole file, was quarantined; :data:`REASONS` says what each means."""

    UNREADABLE = "unreadable_file"
    MISSING_COLUMN = "missing_column"
    MALFORMED = "malformed_row"
    QUOTES = "ambiguous_quotes"
    ENCODING = "encoding"
    NUL = "nul_byte"
    MISSING = "missing_value"
    TYPE = "wrong_type"
    VOCABULARY = "unknown_value"
    RANGE = "out_of_range"
    TOO_LONG = "too_long"
    FUTURE = "future_time"
    TOO_OLD = "too_old"
    CONFLICT = "conflicting_id"
    PRODUCT = "unknown_product"
    QUERY = "unknown_query"


REASONS: dict[Reason, str] = {
    Reason.UNREADABLE: "the file cannot be read to its end (damaged or truncated compression, no "
    "Parquet, no header, empty); its first bytes are kept as row 0 and nothing of it is stored",
    Reason.MISSING_COLUMN: "the file lacks a required column (the detail names it and what the "
    "file has instead: often another separator); every row is kept here",
    Reason.MALFORMED: "not a JSON object, a required value that is an object or a list, another "
    "number of fields than the header, or the header again",
    Reason.QUOTES: "a CSV line whose quotes or backslashes can be read in two ways, or that lies "
    "between two such lines and may be part of a text over several lines; deliver it quoted as RFC "
    "4180 says, a replay leaves it",
    Reason.ENCODING: "not UTF-8",
    Reason.NUL: "a NUL byte, or half a UTF-16 character, inside a value",
    Reason.MISSING: "a required value is empty",
    Reason.TYPE: "not a time, or one that could be two; or an identifier written as a decimal "
    "number so long that it may have lost digits, or so small that it has several writings",
    Reason.VOCABULARY: "not one of the column's words",
    Reason.RANGE: "below the least or above the greatest value",
    Reason.TOO_LONG: "longer than the column may be",
    Reason.FUTURE: "later than half a day after the delivery's day ends in the market's time zone",
    Reason.TOO_OLD: "a search or event from more than `ingest.late_days` before the delivery's "
    "day: a clock that runs wrong, or a file of another time",
    Reason.CONFLICT: "the identifier is known with other content; the first one stays",
    Reason.PRODUCT: "the catalogue of the locale has not had the product up to this day",
    Reason.QUERY: "no search with this identifier was delivered up to this day",
}
OWN = "csrm"  # what our serving writes as its application
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)  # of any time: what is older is a clock never set


@dataclass(frozen=True)
class Column:
    """One column: where it is found, and what its values may be."""

    name: str
    about: str
    holds: ColumnType = "text"
    required: bool = True
    sources: tuple[str, ...] = ()  # the first that is not empty wins; default: the own name
    also: tuple[str, ...] = ()  # looked at after those: shapes that few writers use
    vocabulary: Mapping[str, str | int] | None = None  # spelling in lower case → stored value
    at_least: int | None = None
    at_most: int | None = None
    max_chars: int = 200
    late: bool = False  # refused when older than the market's ``ingest.late_days``
    unless: str = ""  # not required in a row whose value of this column is 1
    default: int | None = None  # what an empty value means
    kept: bool = True  # else it decides about its row and is not stored

    @property
    def usual(self) -> tuple[str, ...]:
        """Where most deliveries carry the value."""
        return self.sources or (self.name,)

    @property
    def paths(self) -> tuple[str, ...]:
        """Where a delivery may carry the value."""
        return self.usual + self.also

    @property
    def dtype(self) -> pl.DataType | type[pl.DataType]:
        """Type of the clean value."""
        if self.vocabulary is not None and any(
            isinstance(v, int) for v in self.vocabulary.values()
        ):
            return pl.Int8
        if self.holds == "time":
            return pl.Datetime("us", "UTC")
        return pl.Int64 if self.holds == "integer" else self.read_as

    @property
    def read_as(self) -> pl.DataType | type[pl.DataType]:
        """Type that the readers give: text, or a list of texts."""
        return pl.List(pl.String) if self.holds == "list" else pl.String


@dataclass(frozen=True)
class Contract:
    """What one kind of delivery consists of."""

    kind: str
    about: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> dict[str, pl.DataType | type[pl.DataType]]:
        """Columns of the clean table; ``row`` counts from 1 in the delivered file."""
        row: dict[str, pl.DataType | type[pl.DataType]] = {"row": pl.Int64}
        return row | {c.name: c.dtype for c in self.columns if c.kept}


GRADES: dict[str, str | int] = {
    "2": 2, "1": 1, "0": 0, "2.0": 2, "1.0": 1, "0.0": 0,
    "exact": 2, "substitute": 1, "irrelevant": 0,
    "e": 2, "s": 1, "c": 0, "i": 0, "complement": 0,  # ESCI; see with_grades
}  # fmt: skip
# As UBI 1.3 and its public clients spell what we sum up; every other action is ignored.
ACTIONS: dict[str, str | int] = {
    "impression": "impression",
    "click": "click", "click_through": "click", "item_click": "click",
    "add_to_cart": "add_to_cart", "add-to-cart": "add_to_cart", "addtocart": "add_to_cart",
    "purchase": "purchase",
}  # fmt: skip
FLAGS: dict[str, str | int] = {
    "true": 1, "yes": 1, "1": 1, "1.0": 1, "false": 0, "no": 0, "0": 0, "0.0": 0,
}  # fmt: skip
TRANSLATION_KINDS = ("category", "brand", "title", "query")  # A7


def with_grades(contract: Contract, complement: str, own: Mapping[str, str]) -> Contract:
    """Return ``contract`` with a market's meaning of grades.

    ``complement``: what ESCI's C means, irrelevant by default: a case for the phone that was asked
    for is not that phone. ``own``: a market's scale, word → exact, substitute or irrelevant; it
    takes the place of every other spelling, for a 2 of four grades is not the 2 of three.
    """
    if own:
        grades = {word.strip().lower(): GRADES[meaning] for word, meaning in own.items()}
        grades |= {f"{word}.0": grade for word, grade in grades.items() if word.isdecimal()}
    else:
        grades = GRADES | dict.fromkeys(("c", "complement"), GRADES[complement])
    columns = tuple(
        replace(c, vocabulary=grades) if c.vocabulary is GRADES else c for c in contract.columns
    )
    return replace(contract, columns=columns)


def _words(values: tuple[str, ...]) -> dict[str, str | int]:
    return {v: v for v in values}


CATALOGUE = Contract("catalogue", "Products, new and changed; the latest day wins.", (
    Column("product_id", "identifier, unique within the locale", holds="identifier"),
    Column("title", "as shown to shoppers; of a deleted product it may be empty", max_chars=2_000,
           unless="deleted"),
    Column("brand", "empty where the merchant gave none", required=False),
    Column("category", "path, levels joined by ' > '", required=False, max_chars=1_000),
    Column("description", "free text", required=False, max_chars=20_000),
    Column("deleted", "it is no longer offered", required=False, vocabulary=FLAGS, default=0),
))  # fmt: skip

DIRECTION = (
    "Pairs of texts. In the folder of a source language: from it into the target's. In any other: "
    "from the market's first source into that one."
)
TRANSLATIONS = Contract("translations", DIRECTION, (
    Column("translation_id", "identifier, unique within the market", holds="identifier"),
    Column("kind", "what is translated", vocabulary=_words(TRANSLATION_KINDS)),
    Column("source_text", "in the source language", max_chars=2_000),
    Column("target_text", "in the target language", max_chars=2_000),
))  # fmt: skip

LABELS = Contract("labels", "One rater's grade of one query-product pair.", (
    Column("label_id", "identifier, unique within the market", holds="identifier"),
    Column("query", "as shown to the rater", max_chars=500),
    Column("product_id", "of the catalogue in the same locale", holds="identifier"),
    Column("grade", "2/1/0, exact/substitute/irrelevant, or ESCI's E/S/C/I", vocabulary=GRADES),
    Column("rater_id", "who judged; empty counts as someone else each time", holds="identifier",
           required=False),
    Column("guideline_version", "what the rater was told", required=False),
    Column("rated_at", "when", holds="time", required=False),
    Column("explanation", "why, in the rater's words", required=False, max_chars=2_000),
    Column("held_out", "judged to measure by, never to learn from: gold as delivered",
           required=False, vocabulary=FLAGS, default=0),
))  # fmt: skip

QUERY_CATEGORIES = Contract(
    "query_categories", "One rater's answer: is this category right for this query?", (
    Column("label_id", "identifier, unique among these of the market", holds="identifier"),
    Column("query", "as shown to the rater", max_chars=500),
    Column("category", "path, levels joined by ' > '", max_chars=1_000),
    Column("label", "whether it is right", vocabulary=FLAGS),
    Column("rater_id", "who judged; empty counts as someone else each time", holds="identifier",
           required=False),
    Column("guideline_version", "what the rater was told", required=False),
    Column("rated_at", "when", holds="time", required=False),
))  # fmt: skip

APPLICATION = Column(
    "application", "see `ingest.applications`", required=False, max_chars=1_000, kept=False
)

UBI_QUERIES = Contract("ubi_queries", "User Behavior Insights: searches.", (
    Column("query_id", "identifier of one search", holds="identifier"),
    Column("user_query", "as typed", max_chars=500),
    Column("client_id", "browser or device", holds="identifier", required=False),
    Column("session_id", "visit", holds="identifier", required=False,
           sources=("session_id", "query_attributes.session_id")),
    Column("timestamp", "of the search", holds="time", late=True),
    Column("bucket", "experiment arm", required=False, sources=("query_attributes.bucket",)),
    Column("release", "release that answered", required=False,
           sources=("query_attributes.release",)),
    Column("query_response_hit_ids", "products shown, best first", holds="list", required=False,
           sources=("query_response_hit_ids", "query_response_object_ids",
                    "query_response_objects_ids")),
    APPLICATION,
))  # fmt: skip

UBI_EVENTS = Contract("ubi_events", "User Behavior Insights: what followed a search.", (
    Column("action_name", "what was done", sources=("action_name", "action"),
           vocabulary=ACTIONS),
    Column("query_id", "the search that it followed", holds="identifier"),
    Column("object_id", "product", holds="identifier", sources=(
        "event_attributes.object.object_id", "object_id", "asin")),
    Column("position", "ordinal in the result list", holds="integer", required=False,
           sources=("event_attributes.position.ordinal", "position", "event_attributes.rank",
                    "rank"),
           also=("event_attributes.position.ordinal.index", "event_attributes.position",
                 "position.ordinal"),
           at_least=0, at_most=100_000),
    Column("client_id", "browser or device", holds="identifier", required=False),
    Column("session_id", "visit", holds="identifier", required=False,
           sources=("session_id", "event_attributes.session_id")),
    Column("timestamp", "of the event", holds="time", late=True),
    Column("user_query", "of a flat event that carries its query", required=False,
           sources=("user_query", "query"), max_chars=500),
    Column("bucket", "experiment arm", required=False, sources=("event_attributes.bucket",)),
    Column("release", "release that answered", required=False,
           sources=("event_attributes.release",)),
    APPLICATION,
))  # fmt: skip

# In this order a day is stored: what refers to something comes after it.
CONTRACTS: dict[str, Contract] = {
    c.kind: c for c in (CATALOGUE, TRANSLATIONS, LABELS, QUERY_CATEGORIES, UBI_QUERIES, UBI_EVENTS)
}


def contract_of(kind: str, columns: Columns, kept: bool = False) -> Contract:
    """Return what files of ``kind`` must keep, under the names that a market gave its columns.

    ``kept``: for rows that the store kept, some of them under the contract's own names.

    Raises :class:`ConfigError` while a market's names are a proposal that nobody confirmed,
    whichever kind they are of.
    """
    contract = CONTRACTS[kind]
    given: dict[str, dict[str, str]] = columns.model_dump(exclude={"confirmed"})
    if not columns.confirmed and any(given.values()):
        raise ConfigError(
            "ingest.columns is a proposal that nobody has confirmed; read it in the market's file "
            "and set ingest: {columns: {confirmed: true}}"
        )
    own = given.get(kind) or {}
    found = tuple(
        replace(c, sources=(own[c.name],), also=(c.name,) if kept else ()) if c.name in own else c
        for c in contract.columns
    )
    return replace(contract, columns=found) if own else contract
