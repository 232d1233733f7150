"""What the benchmark of orchestration reckons: the graph, and the share that is no step's."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from benchmarks.bench_orchestration import covered, overhead_share
from benchmarks.retrain_graph import Graph

BEGUN = 1_767_225_600.0  # 2026-01-01, in seconds since 1970


def test_time_in_which_steps_overlap_counts_once_and_only_within_the_run() -> None:
    assert covered([(2.0, 5.0), (0.0, 3.0), (4.0, 4.5), (8.0, 12.0)], 1.0, 10.0) == 4.0 + 2.0
    assert covered([], 0.0, 5.0) == 0.0


def demo(home: Path, state: str) -> None:
    """Write what a demo leaves: a run of 100 s, and steps that worked in 80 of them."""
    (home / "airflow").mkdir(parents=True)
    with sqlite3.connect(home / "airflow" / "airflow.db") as db:
        db.execute("CREATE TABLE dag_run (queued_at TEXT, end_date TEXT, state TEXT)")
        row = "2026-01-01 00:00:00.000000", "2026-01-01 00:01:40.000000", state
        db.execute("INSERT INTO dag_run VALUES (?, ?, ?)", row)
    for name, start, end in (("a", 10.0, 60.0), ("b", 50.0, 70.0), ("c", 80.0, 100.0)):
        (home / "artifacts" / name).mkdir(parents=True)
        made = {"created_at": BEGUN + end, "spent": {"wall_seconds": end - start}}
        (home / "artifacts" / name / "manifest.json").write_text(json.dumps(made))


def test_the_share_of_a_demo_in_which_no_step_was_at_work(tmp_path: Path) -> None:
    demo(tmp_path, "success")
    assert overhead_share(tmp_path) == pytest.approx(0.2)


def test_a_demo_that_has_not_ended_well_has_no_share(tmp_path: Path) -> None:
    demo(tmp_path, "running")
    with pytest.raises(SystemExit, match="not every run of this demo has ended well"):
        overhead_share(tmp_path)


def test_the_longest_path_of_a_graph() -> None:
    graph = Graph({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": []})
    assert (graph.edges, graph.depth) == (4, 3)
