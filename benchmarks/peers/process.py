"""A peer's process: its packages first on the path, then ours; one line of JSON each way.

A peer that needs other versions of what we have, or much of its own, gets an environment instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from csrm_tasks.settings import PROJECT_ROOT, load_settings

HERE = Path(__file__).resolve().parent


class PeerError(Exception):
    """The peer's packages could not be installed, or its process ended."""


def install(name: str) -> Path:
    """Return the folder with the packages of ``peers/{name}.txt``, installed on first use."""
    folder = _folder(name)
    if not folder.exists():
        fresh = folder.with_suffix(".new")
        _install(name, "--no-deps", "--python", sys.executable, "--target", str(fresh))
        fresh.rename(folder)
    return folder


def environment(name: str) -> Path:
    """Return the Python of an environment with ``peers/{name}.txt`` alone, made on first use."""
    folder = _folder(name)
    python, made = folder / "bin" / "python", folder / "made"
    if not made.exists():  # a path is written into its programs: it is not moved into its place
        _uv(name, "venv", "-q", "--clear", "--python", sys.executable, str(folder))
        _install(name, "--compile-bytecode", "--python", str(python))
        made.touch()
    return python


def _folder(name: str) -> Path:
    digest = hashlib.sha256((HERE / f"{name}.txt").read_bytes()).hexdigest()[:12]
    return load_settings().home / "peers" / f"{name}-{digest}"


def _install(name: str, *where: str) -> None:
    _uv(name, "pip", "install", "-q", *where, "-r", str(HERE / f"{name}.txt"))


def _uv(name: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "uv", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerError(f"{name}.txt cannot be installed: {done.stderr.strip()[-300:]}")


class Process:
    """A command of the project's folder with which lines of JSON are exchanged."""

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str]) -> None:
        # Compiled modules are kept, else every process of a contestant compiles what it imports.
        kept = {k: v for k, v in env.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            command, env=kept, cwd=PROJECT_ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.hello = self._read()

    def ask(self, question: Any) -> Any:
        """Send one question and return the answer."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> Any:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise PeerError(f"the peer ended: {self._process.communicate()[1].strip()[-600:]}")
        return json.loads(line)


class Peer(Process):
    """``python -m benchmarks.peers.{name} ARGUMENTS``.

    ``alone``: in an environment that has nothing of ours but the code of the benchmarks.
    """

    def __init__(self, name: str, *arguments: str, alone: bool = False) -> None:
        python = environment(name) if alone else Path(sys.executable)
        found = [] if alone else [str(install(name))]
        path = os.pathsep.join([*found, str(PROJECT_ROOT)])
        super().__init__(
            [python, "-m", f"benchmarks.peers.{name}", *arguments],
            os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        )
