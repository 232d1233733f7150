"""A demo on real base models (``BASES=real``): what it needs before it starts and before it trains.

``markets/real/{market}.yaml`` holds sections that stand in the place of the market file's own. The
market that comes of both is written into the demo's home, where its Airflow reads markets. A base
that it names ``base:{whole}-{market}`` is cut by the demo itself from the base ``whole``
(:mod:`csrm_tasks.bases.trim`), after the nights: a market's tokens are known once its texts are in.
``base:{whole}-{n}layers-{market}`` keeps its first ``n`` layers only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console

from csrm_tasks.base_models import KEPT, local_folder
from csrm_tasks.bases.packages import PACKAGES, TERMS, installed, known_bases
from csrm_tasks.demo.market.files import put
from csrm_tasks.demo.market.generate import require_data
from csrm_tasks.demo.runner.home import Home, check_disk
from csrm_tasks.demo.runner.plan import Stage
from csrm_tasks.demo.runner.processes import Processes
from csrm_tasks.errors import ConfigError, CsrmError, RefusedError
from csrm_tasks.markets import MarketConfig, bases_of, load_market, validated
from csrm_tasks.presets import with_presets
from csrm_tasks.sections.faults import explained
from csrm_tasks.settings import PROJECT_ROOT, bases_folder, load_settings
from csrm_tasks.yaml_files import read_yaml

EXTRA = "bases"
NEEDED_BYTES = 5 * 1024**3  # of the home: a week of adapters, towers and their checkpoints
BASE_BYTES = 4 * 1024**3  # … and of the bases' folder: whole, trimmed, a GGUF file
TRIMMED = "trimmed.txt"  # below the home: the nights that the bases were cut after
LOCK = PROJECT_ROOT / "locks" / f"python{sys.version_info.major}.{sys.version_info.minor}.txt"


def market_keys(home: Home) -> dict[str, Any]:
    """Return the market's keys with the sections for the home's bases in their place.

    Raises :class:`ConfigError` where the market has no such settings.
    """
    folder = load_settings().markets
    path = folder / home.bases / f"{home.market}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ConfigError(
            f"market {home.market!r} has no settings for {home.bases} bases: {path} does not exist "
            f"(there are some for: {', '.join(known) or 'none'})"
        )
    load_market(home.market, folder)  # says what is wrong there
    return read_yaml(folder / f"{home.market}.yaml") | read_yaml(path)


def market(home: Home) -> MarketConfig:
    """Return the market that comes of both files; raises :class:`ConfigError` as a file's would."""
    try:
        return validated(with_presets(market_keys(home)))
    except ValidationError as e:
        where = f"markets/{home.bases}/{home.market}.yaml over markets/{home.market}.yaml"
        raise ConfigError(f"{where}: {explained(MarketConfig, e)[0]}") from e


def write_market(home: Home) -> None:
    """Write the home's own market file."""
    market(home)
    text = yaml.safe_dump(market_keys(home), allow_unicode=True, sort_keys=False)
    sources = f"markets/{home.market}.yaml and markets/{home.bases}/{home.market}.yaml"
    path = home.settings.markets / f"{home.market}.yaml"
    put(path, f"# Made of {sources} by `csrm demo`: edit those.\n{text}".encode())


@dataclass(frozen=True)
class Cut:
    """What a trimmed base is cut from, and how many layers are left of it; None: all."""

    whole: str
    layers: int | None = None


def cut_bases(home: Home) -> dict[str, Cut]:
    """Return trimmed base → what it is cut from, of all that the market names."""
    named = re.compile(rf"(.+?)(?:-(\d+)layers)?-{re.escape(home.market)}")
    kept = {b.removeprefix(KEPT) for b in bases_of(market(home)).values() if b.startswith(KEPT)}
    found = {base: match for base in sorted(kept) if (match := named.fullmatch(base))}
    return {base: Cut(m[1], int(m[2]) if m[2] else None) for base, m in found.items()}


def missing(home: Home) -> list[str]:
    """Return the whole bases that the market's are cut from and that are not kept here yet."""
    wholes = {cut.whole for cut in cut_bases(home).values()}
    return sorted(w for w in wholes if local_folder(f"{KEPT}{w}") is None)


def refuse(home: Home, data: Path | None, *, accept_terms: bool) -> None:
    """Raise :class:`CsrmError` where the demo could not run to its end; nothing is started yet."""
    absent = missing(home)
    unknown = [name for name in absent if name not in known_bases()]
    if unknown:
        raise ConfigError(
            f"base {unknown[0]} is not kept here: csrm base add {unknown[0]} --from SOURCE"
        )
    terms = [name for name in absent if name in TERMS]
    if terms and not accept_terms:
        name = terms[0]
        raise RefusedError(
            f"base {name} comes under terms that you accept by using it: read {TERMS[name]}, then "
            "add ACCEPT_TERMS=yes (csrm demo run: --accept-terms)"
        )
    require_data(home.market, home.settings, data)
    check_disk(home.root, NEEDED_BYTES)
    if absent:
        check_disk(bases_folder(), BASE_BYTES, "CSRM_BASES")


def add_missing(home: Home, console: Console) -> None:
    """Add the bases that are not kept yet, whose terms are accepted; install their packages."""
    absent = missing(home)
    if absent:
        _install(console)
    for name in absent:
        console.print(f"adding base {name} to {bases_folder()}", soft_wrap=True)
        terms = ["--accept-terms"] if name in TERMS else []
        command = [sys.executable, "-m", "csrm_tasks", "base", "add", name, *terms]
        if subprocess.run(command, env=home.environment(), check=False).returncode:
            raise CsrmError(f"base {name} could not be added, as said above; run this again")


def _install(console: Console) -> None:
    """Install what the extra asks for, within the lock, unless it is there."""
    if all(map(installed, PACKAGES)):
        return
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = project["optional-dependencies"][EXTRA]
    console.print(f"installing the extra {EXTRA}: {', '.join(asked)}", soft_wrap=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(LOCK), *asked]
    if subprocess.run(command, check=False).returncode:
        raise CsrmError(f"the extra {EXTRA} could not be installed, as pip says above")


def trim(home: Home, processes: Processes, nights: Sequence[Stage], console: Console) -> None:
    """Cut the market's bases to the texts that ``nights`` have brought, once.

    In processes of their own: what they load is gone when the trainings begin. Raises
    :class:`CsrmError` with the last line of one that fails.
    """
    stamp = home.root / TRIMMED
    after = "".join(f"{night.run_id}\n" for night in nights)
    cut = cut_bases(home)
    if stamp.is_file() and stamp.read_text("utf-8") == after and all(map(_is_kept, cut)):
        return
    for base, of in cut.items():
        console.print(f"trimming base {of.whole} for market {home.market}: {base}")
        command = [sys.executable, "-m", "csrm_tasks", "base", "trim", of.whole]
        depth = [] if of.layers is None else ["--layers", str(of.layers)]
        processes.run("trim", [*command, "--market", home.market, "--as", base, *depth])
    put(stamp, after.encode())


def _is_kept(base: str) -> bool:
    return local_folder(f"{KEPT}{base}") is not None
