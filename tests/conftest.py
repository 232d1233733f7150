"""Shared by all tests: an installation in a temporary folder, one thread, no network hubs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports them: one thread per worker (xdist runs one per core), no hub look-ups.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from csrm_tasks.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation of its own: SQLite, local folders, everything under ``tmp_path``."""
    return load_settings({"CSRM_HOME": str(tmp_path / "home")})
