"""Child processes of a demo: started in sessions of their own, recorded, ended by their id.

A component forks (api workers, LocalExecutor's workers, the tasks). All of them stay in the
session of the component, so ending "everything with this session id" ends exactly what was
started here, also after the component itself was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from csrm_tasks.errors import CsrmError

GRACE = 8.0  # seconds between SIGTERM and SIGKILL
POLL = 0.1


class Processes:
    """The children of one run; ``with`` ends them however the block is left."""

    def __init__(self, record: Path, logs: Path, env: Mapping[str, str]) -> None:
        self._record = record
        self._logs = logs
        self._env = env
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        """Nothing is running yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End everything that was started."""
        self.stop()

    def run(self, name: str, command: Sequence[str]) -> None:
        """Run ``command`` to its end; raises :class:`CsrmError` with its last line if it fails."""
        with (self._logs / f"{name}.log").open("ab") as out:
            done = subprocess.run(
                command, env=self._env, stdout=out, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode != 0:
            raise CsrmError(
                f"{' '.join(command)} failed ({done.returncode}): {self.log_hint(name)}"
            )

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start ``command`` in a session of its own, its output in ``{logs}/{name}.log``."""
        with (self._logs / f"{name}.log").open("ab") as out:
            child = subprocess.Popen(
                command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[name] = child
        sessions = {n: {"session": c.pid} for n, c in self._children.items()}
        started = time.time()
        text = json.dumps({"boot": psutil.boot_time(), "started": started, "sessions": sessions})
        self._record.write_text(text, encoding="utf-8")

    def require_alive(self) -> None:
        """Raise :class:`CsrmError` naming the first child that has ended by itself."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise CsrmError(
                    f"{name} ended with {child.returncode}: {self.log_hint(name)}; "
                    "run the same command again to go on"
                )

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        """Return when ``ready()``; raises :class:`CsrmError` when a child dies or time is up."""
        end = time.monotonic() + seconds
        while not ready():
            self.require_alive()
            if time.monotonic() > end:
                raise CsrmError(f"{what} was not ready after {seconds:.0f} s: see {self._logs}")
            time.sleep(POLL)

    def log_hint(self, name: str) -> str:
        """Return the last line of a child's log and where the rest is."""
        path = self._logs / f"{name}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1][:300] if lines else 'no output'} (log: {path})"

    def stop(self) -> None:
        """End every child and what it forked: SIGTERM, a grace period, SIGKILL."""
        stop_sessions([c.pid for c in self._children.values()])
        for child in self._children.values():
            child.wait()
        self._children.clear()
        self._record.unlink(missing_ok=True)


def stop_leftovers(record: Path) -> list[str]:
    """End what an earlier, killed run recorded and left running; return the names."""
    if not record.exists():
        return []
    left = json.loads(record.read_text(encoding="utf-8"))
    found = {}
    if abs(left["boot"] - psutil.boot_time()) < 60:  # ids of before a reboot mean nothing
        own = {n: s["session"] for n, s in left["sessions"].items()}
        found = {n: s for n, s in own.items() if _members([s]) and not _newer(s, left["started"])}
        stop_sessions(list(found.values()))
    record.unlink()
    return sorted(found)


def _newer(session: int, started: float) -> bool:
    """Whether the leader of a session is of after ``started``: its number was given anew."""
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(session).create_time() > started + 1)
    return False


def stop_sessions(sessions: Sequence[int]) -> None:
    """SIGTERM the members of ``sessions``, and SIGKILL what is left after the grace period."""
    for sign, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        for pid in _members(sessions):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        end = time.monotonic() + seconds
        while _members(sessions) and time.monotonic() < end:
            time.sleep(POLL)


def _members(sessions: Sequence[int]) -> list[int]:
    """Process ids in ``sessions`` that are alive (a session id is its leader's process id)."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) in sessions:
                found.append(process.pid)
    return found


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold ``lock`` for the block; raises :class:`CsrmError` when another process holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise CsrmError(
                f"another run or ui is using {lock.parent}: wait for it or end it with Ctrl-C"
            ) from e
        yield


def terminate_as_interrupt() -> None:
    """Make SIGTERM, and a terminal that is closed, unwind like Ctrl-C, so that ``with`` blocks end
    the children; whoever ignores SIGHUP (nohup) goes on ignoring it.
    """

    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, raise_interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, raise_interrupt)
