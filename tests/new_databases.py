"""New SQLite databases without their migrations: what those make is made once and written again.

Migrations take a tenth of a second for a store of ours and more than one for MLflow's, and most
tests begin with new ones. Where migrations are themselves what is asked, and in processes that a
test starts, they run.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from csrm_tasks import tracking
from csrm_tasks.settings import Settings
from csrm_tasks.store import engine as store

migrate, client = store.upgrade, tracking.client


@contextmanager
def written_at_once() -> Iterator[None]:
    """For the block, have new SQLite files of ours and of MLflow begin with all their tables."""
    with tempfile.TemporaryDirectory(prefix="csrm-new-") as name, pytest.MonkeyPatch.context() as p:
        folder = Path(name)
        p.setattr(store, "upgrade", upgrade)
        p.setattr(tracking, "client", lambda settings: with_tables(settings, folder))
        yield


def upgrade(engine: Engine, revision: str = "head") -> None:
    """As the true one; where SQLite has no table yet, by the statements that it comes to.

    In one transaction that holds the write lock, as the true one: others may open it, too.
    """
    if engine.dialect.name == "sqlite" and revision == "head":
        with store._migrating(engine) as connection:
            if not sa.inspect(connection).get_table_names():
                for statement in migrated():
                    connection.exec_driver_sql(statement)
                return
    migrate(engine, revision)


@cache
def migrated() -> tuple[str, ...]:
    """Return the statements that make what our migrations make of an empty SQLite file."""
    with tempfile.TemporaryDirectory(prefix="csrm-new-") as folder:
        path = Path(folder) / "csrm.db"
        engine = store.connect.__wrapped__(f"sqlite:///{path}")
        migrate(engine)
        engine.dispose()
        with sqlite3.connect(path) as connection:
            lines = tuple(connection.iterdump())
        connection.close()
    return tuple(line for line in lines if line not in ("BEGIN TRANSACTION;", "COMMIT;"))


def with_tables(settings: Settings, folder: Path) -> Any:
    """Return an ``MlflowClient`` whose SQLite file, where new, is a copy of a migrated one."""
    url = sa.make_url(settings.mlflow_uri)
    if url.get_backend_name() == "sqlite" and url.database:
        path = Path(url.database)
        if not path.exists():
            copy_new(empty_mlflow(folder), path)
    return client(settings)


def empty_mlflow(folder: Path) -> Path:
    """Return a file with MLflow's tables and nothing in them, made on first use."""
    from mlflow.store.db.utils import _initialize_tables

    path = folder / "mlflow.db"
    if not path.exists():
        engine = sa.create_engine(f"sqlite:///{path}.new")
        _initialize_tables(engine)
        engine.dispose()
        Path(f"{path}.new").rename(path)
    return path


def copy_new(source: Path, path: Path) -> None:
    """Copy a file whole or not at all; who made ``path`` meanwhile, or forbids it, has his way."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            shutil.copy(source, whole)
            os.link(whole, path)
        finally:
            whole.unlink(missing_ok=True)
