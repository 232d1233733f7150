"""``csrm doctor``, check by check: an installation that works, and each fault planted once."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from csrm_tasks import threads
from csrm_tasks.bases.record import Origin, describe
from csrm_tasks.blobs import LocalBlobs, S3Blobs, open_blobs
from csrm_tasks.doctor import machine, registry
from csrm_tasks.doctor.checks import CHECKS, examine
from csrm_tasks.doctor.findings import Asked, Finding, Said, address, explained
from csrm_tasks.errors import ConfigError
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.store import HEAD, open_store
from csrm_tasks.store.engine import connect, downgrade
from tests.conftest import administer, drop_database, new_database
from tests.llm_fixtures import make_base
from tests.object_store import credentials, new_bucket, run_seaweed

SECRET = "s3cr3t-of-the-test"
PRIVATE = Path("/proc/sys")  # where not even root may make a file


def look(name: str, settings: Settings, *markets: str) -> list[Finding]:
    return list(examine(name, Asked(settings, markets)))


def faults(found: list[Finding], level: str = "fault") -> list[str]:
    """Return what is said of that level; each with a cure, one line, no secret."""
    for finding in found:
        assert finding.level in ("ok", "skipped") or finding.said
        assert "\n" not in finding.said + finding.cure
        assert SECRET not in finding.said + finding.cure
    return [f.said for f in found if f.level == level]


def all_ok(found: list[Finding]) -> bool:
    assert [f for f in found if f.level != "ok"] == []
    return bool(found)


def cures(found: list[Finding]) -> str:
    return "; ".join(f.cure for f in found if f.level in ("warning", "fault"))


# The store


def test_a_store_that_works_has_no_fault_and_stays_as_it_is(both_settings: Settings) -> None:
    open_store(both_settings.db_url)
    found = look("store", both_settings)
    assert all_ok(found)
    said = " ".join(f.said for f in found)
    assert f"the newest, {HEAD}" in said and "a second writer waits for the first" in said


def test_an_empty_database_is_no_fault_and_gets_no_table(database: str, tmp_path: Path) -> None:
    settings = load_settings({"CSRM_HOME": str(tmp_path), "CSRM_DB_URL": database})
    assert faults(look("store", settings)) == []
    url = sa.make_url(database)
    if url.get_backend_name() == "sqlite":
        assert not Path(str(url.database)).exists()
    else:
        assert sa.inspect(connect(database)).get_table_names() == []


def test_an_older_schema_is_told_of_and_not_migrated(both_settings: Settings) -> None:
    engine = open_store(both_settings.db_url)
    downgrade(engine, "0009")
    found = look("store", both_settings)
    assert faults(found) == []
    (said,) = faults(found, "warning")
    assert f"is 0009; the next command or task brings it to {HEAD}" in said
    assert "back it up" in cures(found)
    with engine.connect() as connection:
        version = connection.exec_driver_sql("SELECT version_num FROM csrm_alembic_version")
        assert version.scalar() == "0009"


def test_a_newer_schema_is_a_fault(settings: Settings) -> None:
    with open_store(settings.db_url).begin() as connection:
        connection.exec_driver_sql("UPDATE csrm_alembic_version SET version_num = '9999'")
    (said,) = faults(look("store", settings))
    assert "9999, newer than" in said


@pytest.mark.postgres
def test_a_wrong_password_and_a_role_without_rights(server: str, tmp_path: Path) -> None:
    url = new_database(server)
    name = sa.make_url(url).database
    administer(server, f"CREATE ROLE reader_{name} LOGIN PASSWORD 'x'")
    try:
        there = sa.make_url(url).set(username=f"reader_{name}", password="x")
        role = there.render_as_string(hide_password=False)
        settings = load_settings({"CSRM_HOME": str(tmp_path), "CSRM_DB_URL": role})
        found = look("store", settings)
        (said,) = faults(found)
        assert "this role may create no tables" in said and "GRANT CREATE" in cures(found)
        open_store(url)
        (said,) = faults(look("store", settings))
        assert "may not read and write" in said or "permission" in said or "let us in" in said
        connect(role).dispose()

        wrong = there.set(username="nobody_here", password=SECRET, database=name)
        given = wrong.render_as_string(hide_password=False)
        found = look("store", replace(settings, db_url=given))
        (said,) = faults(found)
        assert "does not let us in" in said and "CSRM_DB_URL" in cures(found)

        absent = there.set(database="not_there").render_as_string(hide_password=False)
        (said,) = faults(look("store", replace(settings, db_url=absent)))
        assert "there is no such database" in said
    finally:
        drop_database(server, url)
        administer(server, f"DROP ROLE reader_{name}")


@pytest.mark.postgres
def test_a_server_that_takes_no_writes_is_a_fault(server: str, tmp_path: Path) -> None:
    url = new_database(server)
    try:
        open_store(url).dispose()
        name = sa.make_url(url).database
        administer(server, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        settings = load_settings({"CSRM_HOME": str(tmp_path), "CSRM_DB_URL": url})
        assert any("read-only" in said for said in faults(look("store", settings)))
        connect(url).dispose()
    finally:
        drop_database(server, url)


@pytest.mark.parametrize(
    ("host", "said"),
    [("127.0.0.1:1", "nothing listens"), ("no.such.host.invalid", "host name is not known")],
)
def test_a_database_that_is_not_there(settings: Settings, host: str, said: str) -> None:
    url = f"postgresql+psycopg2://csrm:{SECRET}@{host}/csrm"
    found = look("store", replace(settings, db_url=url))
    (fault,) = faults(found)
    assert said in fault and host in fault and cures(found)


def test_locks_of_a_file_system_that_do_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(settings.db_url)
    path, plain = str(settings.home / "csrm.db"), sqlite3.connect
    # as it would be if no process saw the locks of another: by two databases
    other = str(settings.home / "other.db")
    opened: list[str] = []

    def connected(name: str, **how: object) -> sqlite3.Connection:
        opened.append(name)
        return plain(other if len(opened) == 2 else path, **how)  # type: ignore[call-overload]

    engine = connect(settings.db_url)
    monkeypatch.setattr("csrm_tasks.doctor.store.sqlite3.connect", connected)
    monkeypatch.setattr("csrm_tasks.doctor.store.connect", lambda _: engine)
    with engine.connect():  # its pool has a connection before sqlite3's is replaced
        pass
    (said,) = faults(look("store", settings))
    assert "keeps no locks" in said


def test_a_writer_that_holds_the_store_is_no_fault(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(settings.db_url)
    monkeypatch.setattr("csrm_tasks.doctor.store.BUSY", 0.05)
    holder = sqlite3.connect(settings.home / "csrm.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    found = look("store", settings)
    holder.close()
    assert faults(found) == []
    assert "a writer has held" in faults(found, "warning")[0]


def test_a_database_that_is_none_of_ours(settings: Settings) -> None:
    (said,) = faults(look("store", replace(settings, db_url=f"mysql://u:{SECRET}@h/d")))
    assert "mysql is not supported" in said


# Artifacts, lake, routing


def test_folders_that_work_are_left_as_they_were(settings: Settings) -> None:
    settings.landing.mkdir(parents=True)
    LocalBlobs(Path(settings.artifacts)).put_if_absent("m/s/x", b"1")
    found = look("storage", settings)
    assert all_ok(found)
    left = {p.relative_to(settings.home).as_posix() for p in settings.home.rglob("*")}
    assert left == {"landing", "artifacts", "artifacts/m", "artifacts/m/s", "artifacts/m/s/x"}


def test_a_folder_that_cannot_be_written_and_a_file_in_its_way(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    there = replace(
        settings, artifacts=str(PRIVATE / "csrm"), lake=str(tmp_path / "file"), home=PRIVATE
    )
    found = look("storage", there)
    closed, in_its_way, *home = faults(found)
    assert "CSRM_ARTIFACTS" in closed and "CSRM_LAKE" in in_its_way
    assert "a file stands in its way" in in_its_way and len(home) == 2
    assert "let the user of this process write there" in cures(found)
    assert "no night finds files" in faults(found, "warning")[0]


def test_a_disk_without_space_is_told_of(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(122, os.strerror(122))  # EDQUOT: statvfs says nothing of a quota

    monkeypatch.setattr("csrm_tasks.blobs.local._write_durably", full)
    found = look("storage", settings)
    assert len(faults(found)) == 3 and all("no space left" in s for s in faults(found))


@pytest.fixture
def on_s3(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    settings.landing.mkdir(parents=True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    yield settings


@pytest.mark.s3
def test_an_object_store_that_honours_conditions_and_checks_signatures(
    seaweed: str, on_s3: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials(monkeypatch, seaweed)
    root = new_bucket(monkeypatch)
    there = replace(on_s3, artifacts=f"{root}/a", lake=f"{root}/l", routing=f"{root}/r")
    found = look("storage", there)
    assert faults(found) == [] and faults(found, "warning") == []
    # asked once of the bucket, not of each place
    assert [f.said for f in found].count("it lets our credentials in, and a wrong secret not") == 1
    assert list(open_blobs(root).entries("")) == []
    gone = replace(on_s3, artifacts="s3://not-there/a")
    (said,) = faults(look("storage", gone))
    assert "there is no such bucket" in said


@pytest.mark.s3
def test_an_object_store_that_checks_no_signatures(
    on_s3: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "objects").mkdir()
    with run_seaweed(tmp_path / "objects", keys=False) as url:
        credentials(monkeypatch, url)
        found = look("storage", replace(on_s3, artifacts=new_bucket(monkeypatch)))
    assert faults(found) == []
    (said,) = faults(found, "warning")
    assert "checks no signatures" in said


@pytest.mark.s3
def test_an_object_store_that_ignores_conditions_or_does_not_know_us(
    rclone: str, on_s3: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials(monkeypatch, rclone)
    root = new_bucket(monkeypatch)
    there = replace(on_s3, routing=f"{root}/r")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    (said,) = faults(look("storage", there))
    assert "ignores conditional writes" in said and "CSRM_ROUTING" in said
    assert list(open_blobs(root).entries("")) == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it has read the environment
    found = look("storage", there)
    assert "does not let us in" in faults(found)[0]
    assert "AWS_ACCESS_KEY_ID" in cures(found)


def test_an_object_store_that_is_not_there(
    on_s3: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3Blobs, "honoured", set())
    (said,) = faults(look("storage", replace(on_s3, lake="s3://b/l")))
    assert "CSRM_LAKE s3://b/l" in said and "nothing listens" in said


# Market files and bases


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


def market(settings: Settings, base: str) -> Settings:
    folder = settings.home / "markets"
    folder.mkdir(parents=True, exist_ok=True)
    keys = {"source_locale": "ko-KR", "target_locale": "zh-TW", "llm": {"base": base}}
    keys |= {"retrieval": {"ebr": {"encoder": base}}, "towers": {"encoder": base}}
    (folder / "m.yaml").write_text(json.dumps({"market": "m"} | keys))
    return replace(settings, markets=folder)


def test_a_base_that_is_there_is_known_by_its_digest_and_its_labels(
    settings: Settings, base: Path
) -> None:
    found = look("bases", market(settings, str(base)), "m")
    assert all_ok(found)
    assert any("each label is one token" in f.said for f in found)


def test_a_base_that_is_missing(settings: Settings, tmp_path: Path) -> None:
    found = look("bases", market(settings, str(tmp_path / "not-there")), "m", "n")
    assert "llm.base" in faults(found)[0] and "is not on this machine" in faults(found)[0]
    assert "on every worker" in cures(found)
    assert "n.yaml does not exist" in faults(found)[-1]
    found = look("bases", market(settings, "base:not-kept"), "m")
    assert "csrm base add not-kept" in cures(found)
    found = look("bases", market(settings, f"org/name@{'0' * 40}"), "m")
    assert faults(found) == [] and "was not fetched" in faults(found, "warning")[0]


def test_a_base_that_was_changed_since_it_was_added(
    settings: Settings, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = settings.home / "bases" / "tiny"
    shutil.copytree(base, kept)
    describe(kept, Origin("folder:tiny", "0", "unknown")).write(kept)
    monkeypatch.setenv("CSRM_BASES", str(kept.parent))
    assert faults(look("bases", market(settings, "base:tiny"), "m")) == []
    (kept / "config.json").write_text((kept / "config.json").read_text() + " ")
    assert "config.json was changed" in faults(look("bases", market(settings, "base:tiny"), "m"))[0]


def test_a_base_whose_labels_are_no_tokens_of_their_own(
    settings: Settings, base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "split"
    shutil.copytree(base, other)
    document = json.loads((other / "tokenizer.json").read_text())
    document["pre_tokenizer"] = None
    document["model"]["merges"] = [[":", "2"], *document["model"]["merges"]]
    document["model"]["vocab"][":2"] = len(document["model"]["vocab"])
    (other / "tokenizer.json").write_text(json.dumps(document))
    (said,) = faults(look("bases", market(settings, str(other)), "m"))
    assert "one token" in said or "different tokens" in said


def test_a_folder_that_is_no_model_and_a_file_that_is_no_market(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    said = faults(look("bases", market(settings, str(tmp_path / "empty")), "m"))
    assert "no config.json" in said[0]
    (settings.home / "markets" / "m.yaml").write_text("market: m\nsteps: 3\n")
    there = replace(settings, markets=settings.home / "markets")
    assert any("steps" in said for said in faults(look("bases", there, "m")))
    assert "no market file" in faults(look("bases", there))[0]


# This machine


def test_disks_that_are_full_or_nearly(settings: Settings) -> None:
    """A quota is faked: how much room there is comes from a function."""
    full = list(machine.disks(settings, lambda _: (machine.DISK_FAULT - 1, 10**6)))
    assert faults(full) and len(faults(full)) == len(full) and "csrm release" not in cures(full)
    low = list(machine.disks(settings, lambda _: (machine.DISK_FAULT, 10**6)))
    assert faults(low) == [] and len(faults(low, "warning")) == len(low)
    assert "csrm release prune" in cures(low)
    no_entries = list(machine.disks(settings, lambda _: (machine.DISK_WARNED, 9)))
    assert "no file entries left" in faults(no_entries)[0]
    much = list(machine.disks(settings, lambda _: (machine.DISK_WARNED, 10**6)))
    assert all_ok(much)
    names = [name for f in much for name in ("CSRM_HOME", "CSRM_LAKE", "TMPDIR") if name in f.said]
    assert sorted(names) == ["CSRM_HOME", "CSRM_LAKE", "TMPDIR"]  # each once, by file system


def test_memory_that_the_cgroup_grants(
    settings: Settings, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(threads, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("0::/a/b\n")
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    (tmp_path / "groups" / "a" / "b" / "memory.max").write_text("max\n")
    asked = Asked(market(settings, str(base)), ("m",))
    assert faults(list(machine.memory(asked))) == []
    (tmp_path / "groups" / "a" / "memory.max").write_text(f"{10**8}\n")
    monkeypatch.setattr(machine, "COPIES", 10**5)
    found = list(machine.memory(asked))
    assert "0.1 GB granted by the cgroup" in faults(found)[0]
    assert f"market m: training {base}" in faults(found, "warning")[0]


def test_few_open_files(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    found = list(machine.memory(Asked(settings, ())))
    assert "only 256 files" in faults(found, "warning")[0]


def test_threads_that_spin_or_are_too_many(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "granted_cpus", lambda: 2)
    passive = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}
    assert faults(list(machine.threads(settings, passive)), "warning") == []
    for spinning in ({"OMP_WAIT_POLICY": "active"}, passive | {"GOMP_SPINCOUNT": "300000"}):
        found = list(machine.threads(settings, spinning))
        (said,) = faults(found, "warning")
        assert "spin while they wait" in said and "PASSIVE" in cures(found)
    alone = list(machine.threads(settings, passive | {"GOMP_SPINCOUNT": "10000"}))
    assert faults(alone, "warning") == []
    assert "for a machine that nobody else computes on" in alone[-1].said
    many = list(machine.threads(replace(settings, threads=8), passive | {"OMP_NUM_THREADS": "9"}))
    assert [s.split(" is ")[0] for s in faults(many, "warning")] == [
        "CSRM_THREADS",
        "OMP_NUM_THREADS",
    ]


def test_every_task_waits_asleep_as_it_is_said() -> None:
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"  # set by importing csrm_tasks


def test_clocks() -> None:
    assert next(machine.clock()).level == "ok"
    assert next(machine.clock(lambda: 0.0)).level == "fault"
    say, now = Said("store"), time.time()
    levels = [say.clock(now + off, now, "it").level for off in (0, -4, 4, -60, 60, -3600, 3600)]
    assert levels == ["ok"] * 3 + ["warning"] * 2 + ["fault"] * 2


# What is said


@given(
    password=st.text(st.characters(codec="utf-8", exclude_characters="@"), max_size=12),
    host=st.sampled_from(["db.example", "10.0.0.1:5432", "[::1]:80"]),
)
def test_no_part_of_a_login_is_shown(password: str, host: str) -> None:
    for scheme in ("postgresql+psycopg2", "http", "s3"):
        shown = address(f"{scheme}://user:{SECRET}{password}@{host}/name?token={SECRET}#{SECRET}")
        assert shown == f"{scheme}://{host}/name"


def test_an_error_of_nobody_we_know_is_shown_by_its_kind_alone() -> None:
    said, cure = explained(ValueError(f"http://u:{SECRET}@h"), "MLflow")
    assert said == "MLflow fails (ValueError)" and cure
    said, cure = explained(ModuleNotFoundError(name="boto3"), "the storage")
    assert "boto3 is not installed" in said and "INSTALL" in cure


def test_a_check_that_fails_by_itself_is_one_finding(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Asked) -> Iterator[Finding]:
        yield Finding("store", "ok", "first")
        raise ZeroDivisionError(SECRET)

    monkeypatch.setitem(CHECKS, "store", replace(CHECKS["store"], look=broken))
    found = look("store", settings)
    assert [f.level for f in found] == ["ok", "fault"] and "ZeroDivisionError" in found[1].said
    assert faults(found)


# MLflow


def test_a_registry_that_works_is_left_as_it_was(settings: Settings) -> None:
    assert all_ok(look("mlflow", settings))
    assert not (settings.home / "mlflow.db").exists()
    from csrm_tasks.tracking import client

    api = client(settings)
    api.search_experiments(max_results=1)
    found = look("mlflow", settings)
    assert all_ok(found)
    assert any("versions and aliases" in f.said for f in found)
    assert api.search_registered_models() == []

    with pytest.MonkeyPatch.context() as patched:

        def denied(*_: object) -> None:
            raise RuntimeError(SECRET)

        patched.setattr(type(api), "set_registered_model_alias", denied)
        assert faults(look("mlflow", settings))
        assert api.search_registered_models() == []  # removed all the same


def test_an_mlflow_database_of_another_version(settings: Settings) -> None:
    error = ConfigError("Detected out-of-date database schema (found version x)")
    said, cure = registry.in_words(error, Asked(settings, ()))
    assert "older version of MLflow" in said and "mlflow db upgrade" in cure


def test_an_mlflow_that_is_not_there_or_not_writable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://u:{SECRET}@127.0.0.1:1"
    found = look("mlflow", replace(settings, mlflow_uri=uri))
    assert "nothing listens" in faults(found)[0] and "127.0.0.1:1" in faults(found)[0]
    closed = replace(settings, mlflow_uri=f"sqlite:///{PRIVATE}/mlflow.db")
    assert "cannot be written" in faults(look("mlflow", closed))[0]
