"""The relational store: reachable, at the newest schema, its locks and isolation hold, its clock.

Nothing is migrated and no table is written.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from csrm_tasks.doctor.findings import Asked, Finding, Said, address, explained
from csrm_tasks.doctor.places import unwritable
from csrm_tasks.store import HEAD, reading
from csrm_tasks.store.engine import checked, connect, revision_of

say = Said("store")
BUSY = 5.0  # seconds to wait for another writer

# What PostgreSQL says of the absence of a database, which is no matter of network or password
NO_DATABASE = "does not exist"
RIGHTS = """
SELECT c.relname FROM pg_class c WHERE c.relkind = 'r'
AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) AND NOT (
  has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
  AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
ORDER BY c.relname
"""


def store(asked: Asked) -> Iterator[Finding]:
    """Check the store of ``CSRM_DB_URL``."""
    url = checked(asked.settings.db_url)
    where = address(asked.settings.db_url)
    if url.get_backend_name() == "sqlite":
        yield from _sqlite(Path(url.database or ""), asked.settings.db_url)
        return
    engine = connect(asked.settings.db_url)
    try:
        with engine.connect() as connection:
            yield say.ok(f"{where} answers")
            yield from _server(connection)
    except sa.exc.OperationalError as e:
        if NO_DATABASE not in str(e.orig) or "role" in str(e.orig):
            raise
        yield say.fault(f"{where}: there is no such database", "create it (createdb)")
        return
    yield from _schema(engine)
    yield from _postgresql_locks(engine)


def _sqlite(path: Path, db_url: str) -> Iterator[Finding]:
    if why := unwritable(path.parent):
        yield say.fault(f"{path.parent} cannot be written: {why}", "let this user write there")
        return
    if not path.exists():
        yield say.ok(f"no store yet; the first command makes {path}")
        return
    engine = connect(db_url)
    with engine.connect() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    yield say.ok(f"{path} answers")
    if mode != "wal":
        yield say.fault(
            f"{path} keeps no write-ahead log (journal_mode {mode}): readers and writers block "
            "each other", "put it on a disk of this machine, or use PostgreSQL (CSRM_DB_URL)",
        )  # fmt: skip
    yield from _schema(engine)
    yield from _sqlite_locks(path)


def _sqlite_locks(path: Path) -> Iterator[Finding]:
    """Two writers at once: the second is refused, unless the file system's locks do nothing."""
    with (
        closing(sqlite3.connect(path, timeout=BUSY, isolation_level=None)) as first,
        closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as second,
    ):
        try:
            first.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as e:
            if "locked" in str(e):
                yield say.warning(
                    f"a writer has held {path} for more than {BUSY:.0f} s",
                    "nothing, if a night is being stored; else end the process that holds it",
                )
                return
            raise
        try:
            second.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            yield say.ok("a second writer waits for the first")
            return
    yield say.fault(
        f"two processes may write {path} at once: its file system keeps no locks",
        "put it on a disk of this machine, or use PostgreSQL (CSRM_DB_URL)",
    )


def _schema(engine: Engine) -> Iterator[Finding]:
    """Yield what the revision means; whoever opens the store next brings an older one up."""
    found = revision_of(engine)
    if found is not None and found > HEAD:
        yield say.fault(
            f"its schema is {found}, newer than {HEAD}, the newest that this version knows",
            "install the newer version of CSRM here, or point CSRM_DB_URL elsewhere",
        )
        return
    if found == HEAD:
        yield say.ok(f"its schema is the newest, {HEAD}")
    elif not _may_migrate(engine):
        yield say.fault(
            f"its schema is {found or 'empty'}, the newest is {HEAD}, and this role may create no "
            "tables", "GRANT CREATE ON SCHEMA to it, or let a role that may run csrm digest once",
        )  # fmt: skip
        return
    elif found is None:
        yield say.ok(f"it has no tables yet; the first command makes them ({HEAD})")
        return
    else:
        yield say.warning(
            f"its schema is {found}; the next command or task brings it to {HEAD}, and workers of "
            "the older version then refuse it",
            "back it up and update every machine; csrm digest --market MARKET then migrates",
        )
    yield from _rights(engine)


def _may_migrate(engine: Engine) -> bool:
    if engine.dialect.name == "sqlite":
        return True
    with engine.connect() as c:
        asked = sa.text("SELECT has_schema_privilege(current_schema(), 'CREATE')")
        return bool(c.scalar(asked))


def _rights(engine: Engine) -> Iterator[Finding]:
    if engine.dialect.name == "sqlite":
        return
    with engine.connect() as c:
        closed = list(c.scalars(sa.text(RIGHTS)))
    if closed:
        yield say.fault(
            f"this role may not read and write {len(closed)} tables, as {closed[0]}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA to it",
        )


def _server(connection: Connection) -> Iterator[Finding]:
    """Yield what a PostgreSQL server says of itself: writable, UTF-8, its clock."""

    def one(sql: str) -> object:
        return connection.exec_driver_sql(sql).scalar()

    before = time.time()
    theirs = one("SELECT extract(epoch FROM clock_timestamp())")
    yield say.clock(float(str(theirs)), before, "the database")
    if one("SELECT pg_is_in_recovery()") or one("SHOW transaction_read_only") == "on":
        yield say.fault(
            "it is read-only (a standby, or default_transaction_read_only)",
            "point CSRM_DB_URL at the server that takes writes",
        )
    if one("SHOW server_encoding") != "UTF8":
        yield say.fault(
            f"its encoding is {one('SHOW server_encoding')}: titles of some languages are refused",
            "create the database anew with ENCODING 'UTF8' TEMPLATE template0",
        )


def _postgresql_locks(engine: Engine) -> Iterator[Finding]:
    """A lock of one connection shuts another out, and a reader sees one state of the store."""
    lock = sa.select(sa.func.pg_try_advisory_xact_lock(random.getrandbits(62)))
    with engine.connect() as first, engine.connect() as second:
        held = bool(first.scalar(lock)) and not second.scalar(lock)
    with reading(engine) as connection:
        isolation = connection.exec_driver_sql("SHOW transaction_isolation").scalar()
    if held and isolation == "repeatable read":
        yield say.ok("a second writer waits for the first, and readers see one state")
        return
    what = "advisory locks" if not held else "REPEATABLE READ"
    yield say.fault(
        f"{what} do not hold: two tasks would write, or read, past each other",
        "connect to PostgreSQL itself, or to a pooler in the mode transaction or session",
    )


def in_words(error: BaseException, asked: Asked) -> tuple[str, str]:
    """Return what an error of this check means, and the cure."""
    return explained(error, f"the database {address(asked.settings.db_url)}")
