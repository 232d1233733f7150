"""One check in a process of its own: its findings as JSON lines, each as soon as it is there.

    python -m csrm_tasks.doctor.child CHECK MARKET …

What libraries print is kept from the report, and from the screen: it may hold secrets.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from csrm_tasks.doctor.checks import examine
from csrm_tasks.doctor.findings import Asked
from csrm_tasks.settings import load_settings


def main(given: Sequence[str]) -> None:
    """Do the check that is named first, for the markets named behind it."""
    name, *markets = given
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = load_settings(market=markets[0] if markets else None)
    for finding in examine(name, Asked(settings, tuple(markets))):
        report.write(json.dumps(asdict(finding)) + "\n")
        report.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
