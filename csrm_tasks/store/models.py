"""The relational tables. Every row belongs to a market; texts are UTF-8, days are ISO dates.

Raw events are not here: they are Parquet files in the lake, listed by their ``files`` row.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Text,
    TypeDecorator,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def _name(length: int) -> String:
    """An identifier: compared byte by byte, which is quick and the same order on every engine."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


Market = _name(32)
Locale = _name(5)
Day = _name(10)  # YYYY-MM-DD: sorts as text
Key = _name(200)


class Moment(TypeDecorator[datetime]):
    """A point in time; comes back in UTC also from SQLite, which keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return ``value`` in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names every constraint, so that a migration can drop it on any engine."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class File(Base):
    """One delivered file, stored once: rows_in = stored + quarantined + known + ignored.

    A corrected delivery of the same name is a new row; the old one stays, no longer live.
    """

    __tablename__ = "files"
    __table_args__ = (
        Index(
            "uq_files_live", "market", "day", "name", unique=True,
            sqlite_where=text("live"), postgresql_where=text("live"),
        ),
        Index(None, "market", "locale", "kind", "last_at"),  # which files overlap with a time
    )  # fmt: skip

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    market: Mapped[str] = mapped_column(Market)
    day: Mapped[str] = mapped_column(Day)
    locale: Mapped[str] = mapped_column(Locale)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(255))  # below the day's landing folder
    digest: Mapped[str] = mapped_column(String(64))  # sha256 of the bytes as delivered
    rows_in: Mapped[int] = mapped_column(BigInteger)
    stored: Mapped[int] = mapped_column(BigInteger)
    quarantined: Mapped[int] = mapped_column(BigInteger)
    known: Mapped[int] = mapped_column(BigInteger)
    ignored: Mapped[int] = mapped_column(BigInteger, server_default="0")  # about something else
    notes: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # why, and which
    # columns could not be read: topic → name → rows
    fault: Mapped[str | None] = mapped_column(String(32))  # reason when no row could be read
    first_at: Mapped[datetime | None] = mapped_column(Moment)  # of events and queries: what the
    last_at: Mapped[datetime | None] = mapped_column(Moment)  # file can overlap with
    live: Mapped[bool] = mapped_column(Boolean, server_default=true())  # what it stored counts
    supersedes: Mapped[int | None] = mapped_column(ForeignKey("files.id"))
    part: Mapped[str | None] = mapped_column(String(64))  # its lake file, of events and queries
    # Lake file of its good rows that are not stored: known, or refused for what else is stored
    known_part: Mapped[str | None] = mapped_column(String(64))
    judged_until: Mapped[str | None] = mapped_column(Day)  # a replay let it see later days' rows
    header: Mapped[bytes | None] = mapped_column(LargeBinary)  # first line of CSV: a quarantined
    # row of it can be read again


class Product(Base):
    """A version of a product; a snapshot sees the latest one up to its last day.

    Of two files of one day that say different things, the one whose name sorts later counts.
    """

    __tablename__ = "products"

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    locale: Mapped[str] = mapped_column(Locale, primary_key=True)
    product_id: Mapped[str] = mapped_column(Key, primary_key=True)
    day: Mapped[str] = mapped_column(Day, primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    brand: Mapped[str] = mapped_column(Text)
    category: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    deleted: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # 1: no longer offered
    row: Mapped[int] = mapped_column(Integer, server_default="0")  # in its file, from 1
    file_id: Mapped[int] = mapped_column(Integer, primary_key=True)


class Label(Base):
    """One rater's grade of one pair."""

    __tablename__ = "labels"
    __table_args__ = (  # rows of a day lie together: on PostgreSQL an entry per range is enough
        Index(
            None, "market", "locale", "day", postgresql_using="brin",
            postgresql_with={"autosummarize": True},
        ),
    )  # fmt: skip

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    label_id: Mapped[str] = mapped_column(Key, primary_key=True)
    locale: Mapped[str] = mapped_column(Locale)
    day: Mapped[str] = mapped_column(Day)
    query: Mapped[str] = mapped_column(Text)
    product_id: Mapped[str] = mapped_column(Key)
    grade: Mapped[int] = mapped_column(SmallInteger)
    rater_id: Mapped[str] = mapped_column(Key)
    guideline_version: Mapped[str] = mapped_column(Key)
    rated_at: Mapped[datetime | None] = mapped_column(Moment)
    explanation: Mapped[str] = mapped_column(Text, server_default="")
    held_out: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # 1: gold as delivered
    row: Mapped[int] = mapped_column(Integer, server_default="0")  # in its file, from 1
    file_id: Mapped[int] = mapped_column(Integer)


class CategoryLabel(Base):
    """One rater's answer whether a category is right for a query: the query-category task."""

    __tablename__ = "category_labels"
    __table_args__ = (Index(None, "market", "locale", "day"),)

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    label_id: Mapped[str] = mapped_column(Key, primary_key=True)
    locale: Mapped[str] = mapped_column(Locale)
    day: Mapped[str] = mapped_column(Day)
    query: Mapped[str] = mapped_column(Text)
    category: Mapped[str] = mapped_column(Text)  # path
    label: Mapped[int] = mapped_column(SmallInteger)  # 1: it is right
    rater_id: Mapped[str] = mapped_column(Key)
    guideline_version: Mapped[str] = mapped_column(Key)
    rated_at: Mapped[datetime | None] = mapped_column(Moment)
    row: Mapped[int] = mapped_column(Integer, server_default="0")  # in its file, from 1
    file_id: Mapped[int] = mapped_column(Integer)


class Translation(Base):
    """A text in the source language and the same in the target language."""

    __tablename__ = "translations"
    __table_args__ = (Index(None, "market", "day"),)

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    translation_id: Mapped[str] = mapped_column(Key, primary_key=True)
    locale: Mapped[str] = mapped_column(Locale)
    day: Mapped[str] = mapped_column(Day)
    kind: Mapped[str] = mapped_column(String(16))
    source_text: Mapped[str] = mapped_column(Text)
    target_text: Mapped[str] = mapped_column(Text)
    row: Mapped[int] = mapped_column(Integer, server_default="0")  # in its file, from 1
    file_id: Mapped[int] = mapped_column(Integer)


class Quarantined(Base):
    """A row that broke its contract, with the bytes as they came."""

    __tablename__ = "quarantine"

    file_id: Mapped[int] = mapped_column(ForeignKey("files.id"), primary_key=True)
    row: Mapped[int] = mapped_column(BigInteger, primary_key=True)  # from 1; 0 is the whole file
    reason: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(String(200))  # the field at fault
    raw: Mapped[bytes] = mapped_column(LargeBinary)


class Aggregate(Base):
    """What happened between one query and one product in one day's deliveries."""

    __tablename__ = "aggregates"

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    day: Mapped[str] = mapped_column(Day, primary_key=True)
    locale: Mapped[str] = mapped_column(Locale, primary_key=True)
    query_id: Mapped[str] = mapped_column(_name(16), primary_key=True)
    product_id: Mapped[str] = mapped_column(Key, primary_key=True)
    query: Mapped[str] = mapped_column(Text)  # as most often typed that day
    impressions: Mapped[int] = mapped_column(BigInteger)
    clicks: Mapped[int] = mapped_column(BigInteger)
    carts: Mapped[int] = mapped_column(BigInteger)
    purchases: Mapped[int] = mapped_column(BigInteger)
    position_sum: Mapped[int] = mapped_column(BigInteger)  # over impressions with a position
    positions: Mapped[int] = mapped_column(BigInteger)  # how many of those
    skips: Mapped[int] = mapped_column(BigInteger)  # searches in which it stood above the sale


class Session(Base):
    """What a visit came to in one day's deliveries; its arm is that of its first search."""

    __tablename__ = "sessions"

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    day: Mapped[str] = mapped_column(Day, primary_key=True)
    locale: Mapped[str] = mapped_column(Locale, primary_key=True)
    session_id: Mapped[str] = mapped_column(Key, primary_key=True)
    bucket: Mapped[str] = mapped_column(Key)  # "" when none was logged
    release: Mapped[str] = mapped_column(Key)  # likewise
    mixed: Mapped[bool] = mapped_column(Boolean)  # it met more than one bucket or release
    searches: Mapped[int] = mapped_column(BigInteger)
    impressions: Mapped[int] = mapped_column(BigInteger)
    clicks: Mapped[int] = mapped_column(BigInteger)
    carts: Mapped[int] = mapped_column(BigInteger)
    purchases: Mapped[int] = mapped_column(BigInteger)
    converted: Mapped[bool] = mapped_column(Boolean)  # bought anything
    first_at: Mapped[datetime] = mapped_column(Moment)
    last_at: Mapped[datetime] = mapped_column(Moment)
    client_id: Mapped[str] = mapped_column(Key, server_default="")  # "": none was logged


class Interleaved(Base):
    """What an interleaved session did in one day's deliveries with what one release picked."""

    __tablename__ = "interleaved"

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    day: Mapped[str] = mapped_column(Day, primary_key=True)
    locale: Mapped[str] = mapped_column(Locale, primary_key=True)
    session_id: Mapped[str] = mapped_column(Key, primary_key=True)
    release: Mapped[str] = mapped_column(Key, primary_key=True)
    credits: Mapped[int] = mapped_column(BigInteger)  # products clicked, and carted, by search
    first_at: Mapped[datetime] = mapped_column(Moment)


class Traffic(Base):
    """Rows of one day's deliveries, and those that its sums leave out as nobody's shopping."""

    __tablename__ = "traffic"

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    day: Mapped[str] = mapped_column(Day, primary_key=True)
    locale: Mapped[str] = mapped_column(Locale, primary_key=True)
    events: Mapped[int] = mapped_column(BigInteger)  # all
    searches: Mapped[int] = mapped_column(BigInteger)  # likewise
    machines: Mapped[int] = mapped_column(BigInteger)  # clients, or sessions without one
    machine_events: Mapped[int] = mapped_column(BigInteger)
    machine_searches: Mapped[int] = mapped_column(BigInteger)
    over_bound: Mapped[int] = mapped_column(BigInteger)  # people's events, too many of one pair


class PublishedDay(Base):
    """A day that snapshots may use; ``digest`` covers its files and their counts.

    One with the digest ``""`` is not published: it was stored, and changed since by another day's.
    """

    __tablename__ = "days"

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    day: Mapped[str] = mapped_column(Day, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    rows_in: Mapped[int] = mapped_column(BigInteger)
    quarantined: Mapped[int] = mapped_column(BigInteger)
    share: Mapped[float] = mapped_column(Float)  # quarantined / rows_in
    # Corrections that changed what the day holds since: it is to be summed up and published again.
    stale: Mapped[int] = mapped_column(Integer, server_default="0")


class QuerySide(Base):
    """The side that a query's text was on in the first snapshot that held it; never changed.

    The logic is :mod:`csrm_tasks.dataset.sides`.
    """

    __tablename__ = "sides"

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    text: Mapped[str] = mapped_column(_name(16), primary_key=True)  # digest, of no locale
    side: Mapped[str] = mapped_column(String(5))  # train, dev, gold
    snapshot: Mapped[str] = mapped_column(Key)  # reference of that first snapshot


class LedgerEntry(Base):
    """One thing that was done to a release; append-only, each row hashes the one before.

    The logic is :mod:`csrm_tasks.release.ledger`.
    """

    __tablename__ = "ledger"

    market: Mapped[str] = mapped_column(Market, primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(String(40))  # ISO 8601 UTC, as text: it is hashed
    actor: Mapped[str] = mapped_column(Key)
    action: Mapped[str] = mapped_column(String(32))
    release_id: Mapped[str | None] = mapped_column(Key)
    previous: Mapped[str | None] = mapped_column(Key)  # the release that was expected to be live
    reason: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    prev_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))
