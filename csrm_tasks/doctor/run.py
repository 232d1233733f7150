"""All checks of an installation: each in a process of its own, at once, cut off after a while.

A check that hangs, dies or is killed for its memory is told of in its place; the others go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from csrm_tasks.doctor.checks import CHECKS
from csrm_tasks.doctor.findings import Finding
from csrm_tasks.settings import Settings, load_settings

AT_ONCE = 4  # processes; two of them import MLflow and transformers
ONCE = ("machine", "airflow", "bases")  # of the machine, not of where a market's state lies
# What clients wait for by themselves is minutes; whoever sets one of these knows better.
PATIENCE = {
    "PGCONNECT_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "AWS_MAX_ATTEMPTS": "2",
    "HF_HUB_OFFLINE": "1",  # nothing is fetched
}


@dataclass(frozen=True)
class Job:
    """A check of the installation that some markets share."""

    check: str
    markets: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """How it is started."""
        return [sys.executable, "-m", "csrm_tasks.doctor.child", self.check, *self.markets]


def jobs(market: str | None) -> list[Job]:
    """Return the checks of one market's installation, or of all.

    Markets share one where ``CSRM_HOME`` or the variables of each place say so; else each has its
    own (``.csrm/MARKET``), and store, storage and MLflow are checked for each.
    """
    folder = load_settings(market=market).markets
    names = [market] if market else sorted(p.stem for p in folder.glob("*.yaml"))
    homes: dict[Settings, list[str]] = {}
    for name in names:
        homes.setdefault(load_settings(market=name), []).append(name)
    groups = [tuple(group) for group in homes.values()] or [()]
    return [
        Job(check, group)
        for check in CHECKS
        for group in ([tuple(names)] if check in ONCE else groups)
    ]


def diagnose(asked: Sequence[Job], seconds: float) -> Iterator[tuple[Job, list[Finding]]]:
    """Yield each check with its findings, in order; one takes ``seconds`` at most."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from zip(asked, pool.map(lambda job: _done(job, seconds), asked), strict=True)


def _done(job: Job, seconds: float) -> list[Finding]:
    out, code = _output(job.command, seconds)
    found, check = list(_read(out)), CHECKS[job.check]
    if code is None:
        said = f"{check.hangs}: cut off after {seconds:g} s"
        found.append(Finding(job.check, "fault", said, check.cure))
    elif code:
        found.append(Finding(job.check, "fault", *_ended(code)))
    return found


def _output(command: Sequence[str], seconds: float) -> tuple[bytes, int | None]:
    """Return what a command has printed and its exit code; None: it was cut off."""
    child = subprocess.Popen(
        command, env=PATIENCE | os.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = child.communicate(timeout=seconds)
        return out, child.returncode
    except subprocess.TimeoutExpired as e:
        return e.output or b"", None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # one that waits for a disk cannot be killed
            child.communicate(timeout=1)


def _ended(code: int) -> tuple[str, str]:
    """Say what it means that a check's process ended by itself."""
    if code == -signal.SIGKILL:
        return (
            "the check was killed, most likely for want of memory",
            "grant this machine or container more memory",
        )
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"the check ended {how}", "the installation is damaged; docs/INSTALL.md"


def _read(out: bytes) -> Iterator[Finding]:
    for line in out.decode("utf-8", errors="replace").splitlines():
        with suppress(ValueError, TypeError):  # half a line of one that was cut off
            yield Finding(**json.loads(line))
