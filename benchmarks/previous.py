"""An earlier checkout of this project as a contestant, named in ``CSRM_PREVIOUS``.

It has its own environment: ``git worktree add ../previous 27ac4c9 && make -C ../previous setup``.
What it runs is handed to it as text, written in names that it has, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from csrm_tasks.settings import PROJECT_ROOT


@dataclass(frozen=True)
class Checkout:
    """A work tree with its environment."""

    root: Path
    python: Path

    def command(self, name: str) -> str:
        """Return where a command of its environment is."""
        return str(self.python.parent / name)

    def environment(self) -> dict[str, str]:
        """Return the variables by which its own modules are imported."""
        return os.environ | {"PYTHONPATH": str(self.root)}

    def run(self, code: str, *arguments: str | Path, **env: str) -> str:
        """Run Python code there; returns what it printed. Raises where it fails."""
        done = subprocess.run(
            [self.python, "-c", code, *map(str, arguments)], check=True,
            capture_output=True, text=True, cwd=self.root, env=self.environment() | env,
        )  # fmt: skip
        return done.stdout


THIS = Checkout(PROJECT_ROOT, Path(sys.executable))


def previous() -> Checkout | None:
    """Return the earlier checkout, None where none is given."""
    given = os.environ.get("CSRM_PREVIOUS")
    if not given:
        return None
    root = Path(given).resolve()
    return Checkout(root, root / ".venv" / "bin" / "python")


def contestants() -> dict[str, Checkout]:
    """Return this checkout and, where one is given, the earlier one, by what a table calls them."""
    earlier = previous()
    return {"this": THIS} | ({"previous": earlier} if earlier else {})
