"""What one locale delivered in one week, in a few numbers: what two weeks are compared by.

A window is seven days that end with a snapshot's last day, or a whole number of weeks before it.
All is counted by the day of delivery, in tables that the snapshot has read anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date

import polars as pl

from csrm_tasks.text import language_of

DAYS = 7
EARLIER = 4  # windows before the newest that are looked at for one that was accepted
# Columns that a delivery may leave empty, by table; positions are counted where events are summed.
OPTIONAL = {
    "labels": ("rater_id", "guideline_version", "rated_at"),
    "catalogue": ("brand", "category", "description"),
}
SHOWN = {"query_id": pl.String, "impressions": pl.Int64}
Key = tuple[str, int]  # locale, window: 0 is the newest


@dataclass(frozen=True)
class Delivered:
    """Rows of one kind of file, less those that were ignored."""

    rows: int
    quarantined: int
    known: int


@dataclass
class Profile:
    """One locale in one window."""

    days: tuple[str, ...]  # of the window that are published
    files: dict[str, Delivered] = field(default_factory=dict)  # by kind
    shares: dict[str, dict[str, int]] = field(default_factory=dict)  # grades, languages: counts
    empty: dict[str, tuple[int, int]] = field(default_factory=dict)  # column → empty, of
    shown: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SHOWN))
    machines: tuple[int, int] | None = None  # events of machines, of all; None: not summed up


@dataclass(frozen=True)
class Seen:
    """The rows that a snapshot has read, each with its locale and day of delivery."""

    files: pl.DataFrame  # kind, rows_in, quarantined, known, ignored
    ratings: pl.DataFrame  # query, grade and the optional columns
    versions: pl.DataFrame  # of products: title and the optional columns
    log: pl.DataFrame  # one row per day and query: query_id, query, impressions, positions
    traffic: pl.DataFrame  # one row per day: events, machine_events


def window_of(until: str) -> pl.Expr:
    """Return the window of column ``day``: 0 for the newest, null when too old to matter."""
    ago = (pl.lit(date.fromisoformat(until)) - pl.col("day").str.to_date()).dt.total_days()
    window = ago // DAYS
    return pl.when(window <= EARLIER).then(window).alias("window")


def profiles(seen: Seen, days: Sequence[str], until: str) -> dict[Key, Profile]:
    """Profile every window that a locale delivered something in."""
    published = pl.DataFrame({"day": sorted(days)}, {"day": pl.String})
    spans = {w: tuple(p["day"]) for w, p in _by_window(published, until)}
    by_key: dict[Key, Profile] = {}
    for locale, window, part in _parts(seen.files, until):
        rows = (pl.col("rows_in") - pl.col("ignored")).alias("rows")
        kinds = part.select("kind", rows, "quarantined", "known").group_by("kind").sum()
        counted = {kind: Delivered(*n) for kind, *n in kinds.sort("kind").iter_rows()}
        by_key[locale, window] = Profile(spans[window], counted)
    _add_labels(by_key, seen.ratings, until)
    _add_products(by_key, seen.versions, until)
    _add_behaviour(by_key, seen.log, until)
    _add_queries(by_key, seen, until)
    for locale, window, part in _parts(seen.traffic, until):
        machines, events = int(part["machine_events"].sum()), int(part["events"].sum())
        by_key[locale, window].machines = (machines, events)
    return by_key


def _by_window(frame: pl.DataFrame, until: str) -> Iterator[tuple[int, pl.DataFrame]]:
    placed = frame.with_columns(window_of(until)).filter(pl.col("window").is_not_null())
    for (window,), part in placed.group_by("window", maintain_order=True):
        yield int(str(window)), part


def _parts(frame: pl.DataFrame, until: str) -> Iterator[tuple[str, int, pl.DataFrame]]:
    for window, part in _by_window(frame, until):
        for (locale,), rows in part.group_by("locale", maintain_order=True):
            yield str(locale), window, rows


def _add_labels(into: dict[Key, Profile], ratings: pl.DataFrame, until: str) -> None:
    for locale, window, part in _parts(ratings, until):
        profile = into[locale, window]
        profile.shares["grades"] = _counts(part["grade"].cast(pl.String))
        profile.empty |= _empty("labels", part)


def _add_products(into: dict[Key, Profile], versions: pl.DataFrame, until: str) -> None:
    for locale, window, part in _parts(versions, until):
        profile = into[locale, window]
        profile.shares["language of titles"] = _languages(part["title"])
        profile.empty |= _empty("catalogue", part)


def _add_behaviour(into: dict[Key, Profile], log: pl.DataFrame, until: str) -> None:
    for locale, window, part in _parts(log, until):
        profile = into[locale, window]
        shown = int(part["impressions"].sum())
        profile.empty["ubi_events.position"] = (shown - int(part["positions"].sum()), shown)
        profile.shown = part.group_by("query_id").agg(pl.col("impressions").sum())


def _add_queries(into: dict[Key, Profile], seen: Seen, until: str) -> None:
    """Count each text once: a popular query does not outweigh a thousand rare ones."""
    columns = ("locale", "day", "query")
    typed = pl.concat([seen.ratings.select(columns), seen.log.select(columns)])
    for locale, window, part in _parts(typed, until):
        into[locale, window].shares["language of queries"] = _languages(part["query"].unique())


def _languages(texts: pl.Series) -> dict[str, int]:
    return _counts(texts.to_frame("text").select(language_of(pl.col("text")))["text"])


def _counts(values: pl.Series) -> dict[str, int]:
    counted = values.value_counts().sort(values.name)
    return dict(counted.iter_rows())


def _empty(table: str, rows: pl.DataFrame) -> dict[str, tuple[int, int]]:
    counts = {}
    for column in OPTIONAL[table]:
        texts = rows[column].cast(pl.String).fill_null("")
        counts[f"{table}.{column}"] = (int((texts == "").sum()), rows.height)
    return counts
