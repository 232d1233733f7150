"""What each extra of pyproject.toml installs: its closure, an environment of it, its real size.

    python -m tests.installs requirements      # rewrite requirements.txt
    python -m tests.installs locked            # the extras that locks/ pin, as uv's options
    python -m tests.installs sizes [EXTRA …]   # real installs by pip: packages, megabytes, seconds

An environment here is a folder of links to what is installed for the tests already, of the extra's
distributions and no others: it takes no network and well under a second.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OWN = "csrm"
CORE = "core"  # `dependencies`: what is installed without an extra
# Installed by nobody who does not ask: in no lock and no list. What it brings comes under terms.
ON_REQUEST = ("bases",)
LOCK = ROOT / "locks" / f"python{sys.version_info.major}.{sys.version_info.minor}.txt"
HEAD = """\
# Every direct dependency, bounded: what pyproject.toml asks for, of all extras, in one list.
# Made by `make locks`; `make setup` installs locks/, which pin these and all they need.
"""


@cache
def project() -> dict[str, Any]:
    """Return the [project] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def extras() -> list[str]:
    """Return core and every extra but those on request."""
    return [CORE, *(e for e in project()["optional-dependencies"] if e not in ON_REQUEST)]


def asked(extra: str) -> list[str]:
    """Return what an extra asks for itself, as written; other extras of the project among it."""
    if extra == CORE:
        return list(project()["dependencies"])
    return list(project()["optional-dependencies"][extra])


def declared(extra: str) -> list[Requirement]:
    """Return what an extra asks for itself, less the other extras that it includes."""
    return [r for r in map(Requirement, asked(extra)) if r.name != OWN]


def direct(extra: str) -> dict[str, Requirement]:
    """Return name → requirement of core, of an extra, and of the extras that it includes."""
    found = {canonicalize_name(r.name): r for r in (*declared(CORE), *declared(extra))}
    for one in map(Requirement, asked(extra)):
        for included in one.extras if one.name == OWN else ():
            found = direct(included) | found
    return found


def told() -> dict[str, list[str]]:
    """Return what the locks' resolver is told that a distribution asks for (locks/uv.toml)."""
    entries = tomllib.loads((ROOT / "locks/uv.toml").read_text())["dependency-metadata"]
    return {entry["name"]: entry["requires-dist"] for entry in entries}


def closure(extra: str, instead: Mapping[str, list[str]] | None = None) -> set[str]:
    """Return the names of all distributions that an extra installs, by installed metadata.

    ``instead`` has name → requirements that count in place of what the distribution says.
    """
    found: set[str] = set()
    done: set[tuple[str, str]] = set()
    wanted = [(r, "") for r in direct(extra).values()]
    while wanted:
        one, of = wanted.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": of}):
            continue
        name = canonicalize_name(one.name)
        for asked in ("", *one.extras):
            if (name, asked) not in done:
                done.add((name, asked))
                found.add(name)
                lines = (instead or {}).get(name) or metadata.distribution(name).requires or []
                wanted += [(Requirement(line), asked) for line in lines]
    return found


@cache
def _records() -> dict[str, tuple[Path, list[str]]]:
    """Return name → site-packages and files, of every installed distribution but our own."""
    found = {}
    for one in metadata.distributions():
        name = canonicalize_name(one.metadata["Name"])
        lines = (one.read_text("RECORD") or "").splitlines()
        files = [line.strip('"').split(",", 1)[0].rstrip('"') for line in lines]
        if name != OWN:
            found[name] = (Path(str(one.locate_file(""))), [f for f in files if f[:2] != ".."])
    return found


def link_environment(names: Iterable[str], folder: Path) -> Path:
    """Link the files of distributions into ``folder`` and return it: a site-packages of theirs.

    A folder at the top is one link unless several distributions share it (``airflow``, ``google``).
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for name, (_, files) in _records().items():
        for file in files:
            owners[file.split("/", 1)[0]].add(name)
    for name in names:
        site, files = _records()[name]
        for part in {_part(file, owners) for file in files}:
            link = folder / part
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(site / part)
    return folder


def _part(file: str, owners: dict[str, set[str]]) -> str:
    top = file.split("/", 1)[0]
    return file if len(owners[top]) > 1 else top


def write_requirements() -> str:
    """Return the text of requirements.txt: core, then each extra's own, each line once."""
    seen: set[str] = set()
    lines = [HEAD.rstrip()]
    for extra in extras():
        new = [line for line in asked(extra) if line not in seen and not line.startswith(f"{OWN}[")]
        seen.update(new)
        lines += ["", f"# {extra}", *new]
    return "\n".join(lines) + "\n"


def measure(extra: str) -> tuple[int, float, float]:
    """Install extras by pip into a new environment; returns packages, megabytes, seconds.

    ``extra`` may be several with commas between; ``full`` is everything that the lock pins.
    Nothing comes from pip's cache.
    """
    with tempfile.TemporaryDirectory(prefix="csrm-install-") as name:
        folder = Path(name)
        what = ["-r", str(LOCK)] if extra == "full" else ["-c", str(LOCK), _source(extra, folder)]
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        pip = [str(folder / "venv/bin/python"), "-m", "pip"]
        size, had = _size(folder / "venv"), _listed(pip)
        start = time.perf_counter()
        subprocess.run([*pip, "install", "--no-cache-dir", "--quiet", *what], check=True)
        seconds = time.perf_counter() - start
        return len(_listed(pip) - had), (_size(folder / "venv") - size) / 1e6, seconds


def _listed(pip: list[str]) -> set[str]:
    listed = subprocess.check_output([*pip, "list", "--format=json"], text=True)
    return {f"{p['name']} {p['version']}" for p in json.loads(listed) if p["name"] != OWN}


def _source(extra: str, folder: Path) -> str:
    """Copy what is built, so that the build leaves nothing in the checkout; returns what to ask."""
    source = folder / "source"
    shutil.copytree(ROOT / "csrm_tasks", source / "csrm_tasks")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    return str(source) if extra == CORE else f"{source}[{extra}]"


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())


def main(argv: list[str]) -> None:
    """Run one of the commands above."""
    command, *names = argv
    if command == "locked":
        print(" ".join(f"--extra {extra}" for extra in extras() if extra != CORE))
        return
    if command == "requirements":
        (ROOT / "requirements.txt").write_text(write_requirements())
        return
    print("| install | packages | MB | seconds |\n| --- | --- | --- | --- |")
    for name in names or [*extras(), "full"]:
        packages, megabytes, seconds = measure(name)
        print(f"| {name} | {packages} | {megabytes:,.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
