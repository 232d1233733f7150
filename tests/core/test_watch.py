"""A killed test process leaves no server behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

# Starts a server in a session of its own, guards it, says its number, and waits to be killed or
# for a line that bids it end: the test must have looked at the server before it is gone.
ROOT = Path(__file__).resolve().parents[2]

GUARDED = """
import subprocess, sys
from tests.watch import if_killed
server = subprocess.Popen(["sleep", "600"], start_new_session=True)
with if_killed('kill -9 "$1"; touch "$2"', str(server.pid), sys.argv[1]):
    print(server.pid, flush=True)
    sys.stdin.readline()
server.kill()
"""


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_what_a_killed_process_guarded_is_ended(tmp_path: Path, how: str) -> None:
    swept = tmp_path / "swept"
    command = [sys.executable, "-c", GUARDED, str(swept)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert child.stdout is not None
    server = psutil.Process(int(child.stdout.readline()))
    if how == "killed":
        child.kill()
        while not swept.exists():
            time.sleep(0.01)
    child.communicate("\n")
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert swept.exists() == (how == "killed")
