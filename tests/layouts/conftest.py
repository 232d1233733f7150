"""An installation of its own for every import."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(tmp_path / "markets"))
    return tmp_path / "home"
