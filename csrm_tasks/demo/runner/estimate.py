"""How long a demo's trainings take on this machine, said before they start where that matters."""

from __future__ import annotations

import subprocess
import sys

from csrm_tasks.base_models import weights_bytes
from csrm_tasks.demo.runner.home import Home
from csrm_tasks.markets import load_market

SMALL = 50e6  # bytes of weights: minutes on any machine, and a dry run would be most of them
PATIENCE = 180.0  # seconds; the dry runs themselves take little more than a minute


def estimate(home: Home) -> str:
    """Return what ``csrm llm-cost --market MARKET --here`` says; nothing of a small base.

    In a process of its own: what it imports and loads is gone when the demo runs. A failure is no
    reason not to start: it is said in the line's place.
    """
    if weights_bytes(load_market(home.market, home.settings.markets).llm.base) < SMALL:
        return ""
    command = [sys.executable, "-m", "csrm_tasks", "llm-cost", "--market", home.market, "--here"]
    try:
        done = subprocess.run(
            command, env=home.environment(), capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return f"no estimate of the LLM's hours: the dry run took more than {PATIENCE:.0f} s"
    said = done.stdout.strip() if done.returncode == 0 else done.stderr.strip()
    if done.returncode == 0:
        return said
    last = (said.splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"no estimate of the LLM's hours: {last}"
