"""``python -m tests.browser_walk [--chromium PATH] [--pictures FOLDER]``

What an operator does, in a real Chromium without a window, on an Airflow that is started here on
free ports: log in, read the release board within Airflow, start a retrain by its form, be written
to when a night fails, approve, advance, roll back; and what comes of trying without permission. By
hand: it takes playwright, which no lock has (CONTRIBUTING.md).

A line a step says what was seen; the first that does not show what it should ends the walk with 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from tests.browser_airflow import installation
from tests.browser_people import Walk
from tests.browser_steps import STEPS


def main() -> int:
    """See the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--chromium", help="the browser's program; else playwright's own")
    args.add_argument("--pictures", type=Path, help="folder for pictures; else there are none")
    asked = args.parse_args()
    sync_playwright = import_module("playwright.sync_api").sync_playwright

    with (
        tempfile.TemporaryDirectory(prefix="csrm-walk-") as folder,
        installation(Path(folder)) as found,
        sync_playwright() as playwright,
    ):
        found.begin()
        # As root, which containers are, Chromium starts without its own sandbox only
        browser = playwright.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox"])
        return walk_through(Walk(found, browser, asked.pictures))


def walk_through(walk: Walk) -> int:
    """Take every step, in order; return the exit code."""
    for step in STEPS:
        begun = time.monotonic()
        title = step.__name__.replace("_", " ")
        try:
            saw = step(walk)
        except Exception as e:
            print(f"FAILED  {title}: {type(e).__name__}: {e}", flush=True)
            for name, who in walk.people.items():
                print(f"        {name or 'nobody'} was at {who.page.url}")
                walk.picture(who, f"failed_{name or 'nobody'}")
            return 1
        print(f"ok {time.monotonic() - begun:5.0f} s  {title}: {saw}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
