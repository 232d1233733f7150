"""A peer's process: its packages first on the path, then ours; one line of JSON each way."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from csrm_tasks.settings import PROJECT_ROOT, load_settings

HERE = Path(__file__).resolve().parent


class PeerError(Exception):
    """The peer's packages could not be installed, or its process ended."""


def install(name: str) -> Path:
    """Return the folder with the packages of ``peers/{name}.txt``, installed on first use."""
    wanted = HERE / f"{name}.txt"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]
    folder = load_settings().home / "peers" / f"{name}-{digest}"
    if not folder.exists():
        fresh = folder.with_suffix(".new")
        command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-deps", "--python",
                   sys.executable, "--target", str(fresh), "-r", str(wanted)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PeerError(f"{wanted.name} cannot be installed: {done.stderr.strip()[-300:]}")
        fresh.rename(folder)
    return folder


class Peer:
    """``python -m benchmarks.peers.{name} ARGUMENTS`` with which lines of JSON are exchanged."""

    def __init__(self, name: str, *arguments: str) -> None:
        path = os.pathsep.join([str(install(name)), str(PROJECT_ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.peers.{name}", *arguments],
            env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}, cwd=PROJECT_ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
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
