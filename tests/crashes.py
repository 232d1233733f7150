"""Kills ``csrm`` commands at every durable write in turn; the tests run them again and compare.

A durable write is what outlives the process: a rename or link of a file, the commit of a
transaction that wrote. They are counted by wrapping them here, in the child; the product knows
nothing of it. To be killed just before write n + 1 is to be killed after write n.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import alembic.script
import ibis
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import mlflow.tracking
import psycopg2
import sqlalchemy as sa
import yaml
from sqlalchemy.orm import configure_mappers

import csrm_tasks.ingest.aggregates.sums
import csrm_tasks.release.manage
import csrm_tasks.release.reconcile
from csrm_tasks.cli.main import main
from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps.declaration import all_steps
from csrm_tasks.store import open_store
from tests.conftest import new_database

PRELOADED = (  # once, before the forks
    ibis.duckdb, psycopg2, alembic.script, csrm_tasks.ingest.aggregates.sums,
    csrm_tasks.release.manage, csrm_tasks.release.reconcile,
    mlflow.store.model_registry.sqlalchemy_store,
    mlflow.store.tracking.sqlalchemy_store, mlflow.tracking, configure_mappers(), all_steps(),
)  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])

DURABLE = ("replace", "rename", "link")  # of os; pathlib and shutil call these
CHANGES = ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP")
END = "the end"

Environment = dict[str, str]


class Counter:
    """Counts durable writes; the process dies just before number ``deadly`` (0: it lives)."""

    def __init__(self, deadly: int) -> None:
        self.seen: list[str] = []
        self._deadly = deadly

    def step(self, name: str) -> None:
        self.seen.append(name)
        if len(self.seen) == self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def listen(self) -> None:
        """Count from now on: renames and links, commits of our store and of MLflow's."""
        for name in DURABLE:
            self._wrap(name)
        sa.event.listen(sa.Engine, "before_cursor_execute", _note_changes)
        sa.event.listen(sa.Engine, "commit", self._commits)

    def _wrap(self, name: str) -> None:
        original: Callable[..., Any] = getattr(os, name)

        def counted(source: Any, target: Any, *args: Any, **more: Any) -> Any:
            self.step(f"{name} {Path(target).name}")
            return original(source, target, *args, **more)

        setattr(os, name, counted)

    def _commits(self, connection: sa.Connection) -> None:
        writing = connection.get_execution_options().get("writing")  # its COPY is not seen here
        table = connection.info.pop("csrm.changed", "")
        if writing or table:
            self.step(f"commit {table}".strip())


def _note_changes(connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
    words = statement.split()
    if words and words[0].upper() in CHANGES:
        connection.info["csrm.changed"] = next((w for w in words if w.islower()), "")


def command(environment: Environment, args: Sequence[str], deadly: int, told: Any) -> None:
    """``csrm ARGS``, killed before durable write ``deadly``; runs in a forked process."""
    os.environ.update(environment)
    counter = Counter(deadly)
    counter.listen()
    code = main(args)
    if told is not None:
        told.put((code, counter.seen))
    counter.step(END)


def gated_command(environment: Environment, args: Sequence[str], gate: Any, told: Any) -> None:
    """``csrm ARGS`` once all who share ``gate`` are ready; tells its exit code and stderr."""
    os.environ.update(environment)
    gate.wait()
    with redirect_stderr(StringIO()) as said:
        code = main(args)
    told.put((code, said.getvalue()))


def together(*commands: tuple[Sequence[str], Environment]) -> list[tuple[int, str]]:
    """Run ``csrm ARGS`` in as many processes, which begin when all are there.

    Returns exit code and stderr of each.
    """
    gate = CONTEXT.Barrier(len(commands))
    queues = [CONTEXT.SimpleQueue() for _ in commands]
    for (args, environment), told in zip(commands, queues, strict=True):
        given = (environment, args, gate, told)
        CONTEXT.Process(target=gated_command, args=given, daemon=True).start()
    return [told.get() for told in queues]


def durable_writes(environment: Environment, args: Sequence[str]) -> list[str]:
    """Run ``csrm ARGS`` in a process of its own that lives; returns what it wrote durably."""
    told = CONTEXT.SimpleQueue()
    child = CONTEXT.Process(target=command, args=(environment, args, 0, told), daemon=True)
    child.start()
    code, seen = told.get()
    child.join(60)
    assert (code, child.exitcode) == (0, 0)
    return list(seen)


def kill(environment: Environment, args: Sequence[str], number: int) -> None:
    """Run ``csrm ARGS`` in a process that is killed just before durable write ``number``, from 0.

    Number ``len(durable_writes)`` is after the last one.
    """
    child = CONTEXT.Process(target=command, args=(environment, args, number + 1, None), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL, f"{args}: {child.exitcode}"


def deaths(homes: Homes, args: Sequence[str]) -> Iterator[tuple[str, Environment]]:
    """Kill ``csrm ARGS`` before its first durable write, and after every one of them.

    Yields (before what it died, the installation it died in).
    """
    for number, write in enumerate([*durable_writes(homes.new(), args), END]):
        killed = homes.new()
        kill(killed, args, number)
        yield write, killed


def settings_of(environment: Environment) -> Settings:
    """Return the settings that a child gets."""
    return load_settings({**os.environ, **environment})


class Homes:
    """Installations that begin with the same files and the same store."""

    def __init__(
        self, root: Path, market: MarketConfig, new_url: Callable[[Path, str | None], str]
    ) -> None:
        """Take ``new_url(home, url of the store to copy or None)``."""
        self._root = root
        self._new_url = new_url
        self._count = 0
        self._begin: Environment | None = None
        (root / "markets").mkdir()
        text = yaml.safe_dump(market.model_dump(mode="json", exclude_defaults=True))
        (root / "markets" / f"{market.market}.yaml").write_text(text)

    def new(self) -> Environment:
        """Return the environment of another installation."""
        self._count += 1
        home = self._root / f"home{self._count}"
        url = None
        if self._begin:
            shutil.copytree(self._begin["CSRM_HOME"], home)
            url = self._begin["CSRM_DB_URL"]
        return {
            "CSRM_HOME": str(home),
            "CSRM_MARKETS": str(self._root / "markets"),
            "CSRM_DB_URL": self._new_url(home, url),
        }

    def begin_with(self, environment: Environment) -> None:
        """Let every further installation begin as this one is now."""
        open_store(environment["CSRM_DB_URL"]).dispose()  # nobody else may be in what is copied
        self._begin = environment


def sqlite_homes(root: Path, market: MarketConfig) -> Homes:
    """Return installations on SQLite."""
    open_store(f"sqlite:///{root / 'csrm.db'}").dispose()

    def new_url(home: Path, begin: str | None) -> str:
        if begin is None:
            home.mkdir()
            shutil.copy(root / "csrm.db", home)
        return f"sqlite:///{home / 'csrm.db'}"

    return Homes(root, market, new_url)


def postgres_homes(root: Path, market: MarketConfig, server: str, empty: str) -> Homes:
    """Return installations on a PostgreSQL server; ``empty`` names a database to copy."""

    def new_url(_: Path, begin: str | None) -> str:  # they go with the server
        return new_database(server, str(sa.make_url(begin).database) if begin else empty)

    return Homes(root, market, new_url)
