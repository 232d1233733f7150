"""Where things live: one frozen object, read from the environment once per process.

Market files say what a market *is*; settings say where this installation *keeps* things. Every
variable has an embedded default under ``CSRM_HOME`` so that a laptop needs none of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from csrm_tasks.errors import ConfigError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
# A checkout keeps its state and markets in itself, an installed package where it is started.
STATE_ROOT = PROJECT_ROOT if (PROJECT_ROOT / "dags").is_dir() else Path.cwd()


@dataclass(frozen=True)
class Settings:
    """Locations of one installation. Roots that may be remote are strings (path or ``s3://``)."""

    home: Path  # CSRM_HOME: scratch, SQLite files, caches of this machine
    artifacts: str  # CSRM_ARTIFACTS: step outputs, a path or s3://bucket/prefix
    lake: str  # CSRM_LAKE: raw events and daily aggregates as Parquet
    landing: Path  # CSRM_LANDING: {market}/{day}/{locale}/{kind}.{ext}
    routing: str  # CSRM_ROUTING: {market}.json, the routing documents
    db_url: str  # CSRM_DB_URL: SQLAlchemy URL of the relational store and the ledger
    mlflow_uri: str  # MLFLOW_TRACKING_URI
    markets: Path  # CSRM_MARKETS: folder of market YAML files
    threads: int  # CSRM_THREADS: torch threads of one step

    @property
    def work(self) -> Path:
        """Resumable scratch of running steps; never read by another step."""
        return self.home / "work"

    @property
    def cache(self) -> Path:
        """Local copies of remote artifacts."""
        return self.home / "cache"


def default_home(env: Mapping[str, str], market: str | None = None) -> Path:
    """Return ``CSRM_HOME``, else the project's ``.csrm/{market}``, or ``.csrm`` of no market."""
    return Path(env.get("CSRM_HOME") or STATE_ROOT / ".csrm" / (market or "")).resolve()


def bases_folder(env: Mapping[str, str] | None = None) -> Path:
    """Return where ``csrm base add`` keeps base models: ``CSRM_BASES``, else ``bases`` of the home.

    It is every market's, so that a base is added once on a machine.
    """
    e = os.environ if env is None else env
    return Path(e.get("CSRM_BASES") or default_home(e) / "bases").resolve()


def load_settings(env: Mapping[str, str] | None = None, *, market: str | None = None) -> Settings:
    """Read :class:`Settings` from ``env`` (default: the process environment).

    ``market``: whose state it is, where ``CSRM_HOME`` names no folder; the same for the command
    line and for Airflow's tasks. Raises :class:`ConfigError` naming the variable that cannot be
    read.
    """
    e = os.environ if env is None else env
    home = default_home(e, market)
    return Settings(
        home=home,
        artifacts=e.get("CSRM_ARTIFACTS", str(home / "artifacts")),
        lake=e.get("CSRM_LAKE", str(home / "lake")),
        landing=Path(e.get("CSRM_LANDING", home / "landing")),
        routing=e.get("CSRM_ROUTING", str(home / "routing")),
        db_url=e.get("CSRM_DB_URL", f"sqlite:///{home / 'csrm.db'}"),
        mlflow_uri=_mlflow(e.get("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")),
        markets=Path(e.get("CSRM_MARKETS", STATE_ROOT / "dags" / "markets")),
        threads=_threads(e.get("CSRM_THREADS", "1")),
    )


def _mlflow(given: str) -> str:
    """Refuse a server's address with a login in it: its client puts addresses into its errors."""
    scheme, _, rest = given.partition("://")
    if scheme in ("http", "https") and "@" in rest:
        raise ConfigError(
            "MLFLOW_TRACKING_URI holds a login, which errors and logs would show: give the address "
            "without it, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return given


def _threads(given: str) -> int:
    if given.isdecimal() and int(given) > 0:
        return int(given)
    raise ConfigError(f"CSRM_THREADS is {given!r}; use a whole number of 1 or more")
