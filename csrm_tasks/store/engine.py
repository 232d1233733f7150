"""Opening the store: SQLite for a laptop, PostgreSQL by URL; the schema is brought up to date.

SQLite stands several processes at once: write-ahead log, a busy timeout, and writers that take
the write lock at BEGIN (a lock taken later can only fail). PostgreSQL writers of one market queue
on an advisory lock, so that "is this file known?" and its insertion are one step there too.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from csrm_tasks.errors import ConfigError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0013"  # the newest revision; compared on opening, so that Alembic loads only when needed
VERSION_TABLE = "csrm_alembic_version"  # its own name: MLflow and Airflow use the default one
BUSY_SECONDS = 120


def open_store(db_url: str) -> Engine:
    """Return an engine whose schema is at ``HEAD``.

    Raises :class:`ConfigError` on a bad URL, and for a store of a newer CSRM than this one: its
    tables may mean what this code does not know.
    """
    engine = connect(db_url)
    revision = revision_of(engine)
    if revision == HEAD:
        return engine
    if revision is not None and revision > HEAD:  # revisions are numbers of one width
        raise ConfigError(
            f"CSRM_DB_URL: the store's schema is {revision}, newer than {HEAD}, the newest that "
            "this version of CSRM knows; run the newer version, or point CSRM_DB_URL elsewhere"
        )
    upgrade(engine)
    return engine


@lru_cache(maxsize=8)
def connect(db_url: str) -> Engine:
    """Return an engine, whatever the schema there; raises :class:`ConfigError` on a bad URL."""
    url = checked(db_url)
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def checked(db_url: str) -> URL:
    """Return the URL; raises :class:`ConfigError` where it is none, or of another database."""
    try:
        url = make_url(db_url)
    except sa.exc.ArgumentError as e:
        raise ConfigError("CSRM_DB_URL is not a database URL; use sqlite:///path") from e
    if url.drivername not in ("sqlite", "postgresql+psycopg2"):
        raise ConfigError(
            f"CSRM_DB_URL: {url.drivername} is not supported; use sqlite:///path or "
            "postgresql+psycopg2://user@host/database"
        )
    return url


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours, see _begin_sqlite
    for pragma in ("journal_mode=WAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def writing(engine: Engine, market: str) -> Iterator[Connection]:
    """One transaction that holds the market's write lock from its start; commits at the end."""
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            lock = zlib.crc32(f"csrm/{market}".encode())
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One read transaction that sees a single state of the store throughout."""
    connection = engine.connect()
    if engine.dialect.name == "postgresql":
        connection = connection.execution_options(isolation_level="REPEATABLE READ")
    with connection, connection.begin():
        yield connection


def revision_of(engine: Engine) -> str | None:
    """Return the revision of the schema there; None where there is none."""
    version = sa.table(VERSION_TABLE, sa.column("version_num"))
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        found: str | None = connection.scalar(sa.select(version.c.version_num))
        return found


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to ``revision``; processes that open at once take turns."""
    from alembic import command

    with _migrating(engine) as connection:
        command.upgrade(alembic_config(connection), revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Take the schema back to ``revision`` (``base`` removes every table)."""
    from alembic import command

    with _migrating(engine) as connection:
        command.downgrade(alembic_config(connection), revision)


@contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """As :func:`writing`; SQLite alters a table by replacing it, which foreign keys forbid."""
    if engine.dialect.name != "sqlite":
        with writing(engine, "") as connection:
            yield connection
        return
    with engine.connect().execution_options(writing=True) as connection:
        raw: Any = connection.connection.dbapi_connection
        raw.execute("PRAGMA foreign_keys=OFF")  # has no effect within a transaction
        try:
            with connection.begin():
                yield connection
                if broken := raw.execute("PRAGMA foreign_key_check").fetchall():
                    raise ConfigError(f"a migration left {broken[0]} without its parent row")
        finally:
            raw.execute("PRAGMA foreign_keys=ON")


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for our migrations on an open connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    return config
