"""A worker's name, by which Airflow tells who ran a task: all of a cluster are on one machine."""

from __future__ import annotations

import os


def hostname() -> str:
    """Return it; Airflow's ``hostname_callable``, of every process."""
    return os.environ.get("CSRM_TEST_WORKER", "scheduler")
