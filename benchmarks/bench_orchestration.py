"""What Airflow costs: parsing the DAG files of 1 and 50 markets, and a week with empty steps.

Parsing is what the dag-processor does to every file again and again; it must not grow with what
the product imports: at most 1 s for 1 market and 5 s for 50 (``parse_s_1``, ``parse_s_50``).

A week: the product's own ``csrm_retrain`` of the demo market, run by Airflow's processes with the
demo's settings (LocalExecutor, the scheduler that has imported what trainings need), seconds from
trigger to end; everything happens but what the steps do. Beside it the same graph by Prefect with
its server, Dagster with its daemon (both at most as fast as ours: ratios of 1 or more) and DBOS,
which has no scheduler: the floor. All on one PostgreSQL, by turns. With ``CSRM_PREVIOUS``
(benchmarks/previous.py) an earlier build and its own DAG, too: ``ratio_previous`` is to be 1.67 or
more (0.6 of its time), by task where its graph is another.

With ``CSRM_DEMO_HOME``, the home of a demo that has ended: ``overhead_share``, the share of its
wall time in which no step was at work (at most 0.12).
"""

from __future__ import annotations

import ast
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.database import postgres
from benchmarks.harness import Timing, closing_line, ratio, table, timing_rows
from benchmarks.orchestrators import Contest, rows
from benchmarks.previous import THIS
from benchmarks.retrain_graph import graph_of

ROOT = Path(__file__).resolve().parent.parent
PARSE = """
import time, sys
from airflow.dag_processing.dagbag import BundleDagBag
folder = sys.argv[1]
start = time.perf_counter()
bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags")
seconds = time.perf_counter() - start
assert not bag.import_errors, bag.import_errors
print(f"PARSED {seconds}")
print("DAGS", *sorted(bag.dags))
"""


def environment(home: Path, markets: Path) -> dict[str, str]:
    """An Airflow home of its own on SQLite."""
    return os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "CSRM_MARKETS": str(markets),
    }


def python(script: str, env: dict[str, str], *args: str) -> dict[str, list[str]]:
    """Run a script; return its result lines by their first word."""
    done = subprocess.run(
        [sys.executable, "-c", script, *args], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stderr[-3000:])
    lines = (line.split() for line in done.stdout.splitlines() if line[:5].isupper())
    return {words[0]: words[1:] for words in lines if words}


def copy_markets(folder: Path, count: int) -> Path:
    """Write ``count`` copies of the demo market under other names."""
    folder.mkdir()
    text = (ROOT / "dags" / "markets" / "demo.yaml").read_text(encoding="utf-8")
    for i in range(count):
        copy = text.replace("market: demo", f"market: copy{i}")
        (folder / f"copy{i}.yaml").write_text(copy, encoding="utf-8")
    return folder


def dag_ids(markets: Path) -> list[str]:
    """Return the DAGs that every market gets, as the DAG files name them to ``market_dag``."""
    calls = [
        node
        for file in sorted((ROOT / "dags").glob("csrm_*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "market_dag"
    ]
    names = [ast.literal_eval(call.args[0]) for call in calls]
    return sorted(f"{name}__{market.stem}" for name in names for market in markets.glob("*.yaml"))


def parses(sizes: Sequence[int], rounds: int) -> dict[int, Timing]:
    """Parse the DAG files of so many markets, each in a fresh process, in turn."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        markets = {n: copy_markets(home / f"markets{n}", n) for n in sizes}
        env = {n: environment(home, m) for n, m in markets.items()}
        seconds: dict[int, list[float]] = {n: [] for n in sizes}
        for n in [*sizes] * rounds:
            found = python(PARSE, env[n], str(ROOT / "dags"))
            assert found["DAGS"] == dag_ids(markets[n]), f"{found['DAGS']} of {n} markets"
            seconds[n].append(float(found["PARSED"][0]))
    return {n: Timing(tuple(s[1:] or s)) for n, s in seconds.items()}  # the first warms up


def weeks(quick: bool) -> dict[str, float]:
    """Run the week's graph by every orchestrator, print their seconds, return the ratios."""
    graph = graph_of(THIS)
    size = f"{len(graph.tasks)} tasks, {graph.edges} edges, {graph.depth} on the longest path"
    print(f"\nA week of the demo market with empty steps, seconds from trigger to end ({size}):\n")
    with postgres() as (server, _), tempfile.TemporaryDirectory() as folder:
        contest = Contest(server, Path(folder), graph, warm=not quick)
        found = contest.compete(peers=not quick, rounds=1 if quick else 3, runs=1 if quick else 3)
    lines = rows(found, contest)
    print(table(lines))
    ours = found["this"]
    figures = {"week_s": ours.median}
    for name in ("prefect", "dagster", "dbos"):
        if name in found:
            figures[f"ratio_{name}"] = ratio(found[name], ours)
    if "previous" in found:  # per task, where its graph is another
        tasks = {str(line["contestant"]): float(str(line["tasks"])) for line in lines}
        by_task = tasks["this"] / tasks["previous"]
        figures["ratio_previous"] = ratio(found["previous"], ours) * by_task
    return figures


def main(quick: bool) -> None:
    """Print both tables and the figures; quick: five markets for fifty, and no peers.

    Each peer would be installed in an environment of its own, which takes minutes.
    """
    sizes, rounds = ((1, 5), 1) if quick else ((1, 50), 6)
    parsed = parses(sizes, rounds)
    named = {f"parse, {n} market(s)": timing for n, timing in parsed.items()}
    print(table(timing_rows(named, 1, "parses/s")))
    figures = {f"parse_s_{n}": timing.median for n, timing in parsed.items()} | weeks(quick)
    demo = os.environ.get("CSRM_DEMO_HOME")
    if demo:
        figures["overhead_share"] = overhead_share(Path(demo))
    print("\n" + closing_line("orchestration", figures, ("apache-airflow",)))


def overhead_share(home: Path) -> float:
    """Return the share of a demo's wall time in which no step was at work.

    From its first run's trigger to its last run's end, as Airflow's database says; when a step
    worked is noted beside what it made. Raises :class:`SystemExit` where it has not ended.
    """
    with sqlite3.connect(f"file:{home / 'airflow' / 'airflow.db'}?mode=ro", uri=True) as db:
        begun, ended, unfinished = db.execute(
            "SELECT MIN(queued_at), MAX(end_date), SUM(state != 'success') FROM dag_run"
        ).fetchone()
    if ended is None or unfinished:
        sys.exit(f"{home}: not every run of this demo has ended well")
    first, last = (datetime.fromisoformat(t).replace(tzinfo=UTC) for t in (begun, ended))
    spans = [
        (made["created_at"] - made["spent"]["wall_seconds"], made["created_at"])
        for path in (home / "artifacts").rglob("manifest.json")
        if (made := json.loads(path.read_text(encoding="utf-8")))["spent"]
    ]
    wall = last.timestamp() - first.timestamp()
    return 1 - covered(spans, first.timestamp(), last.timestamp()) / wall


def covered(spans: Iterable[tuple[float, float]], first: float, last: float) -> float:
    """Return the seconds between ``first`` and ``last`` that lie in at least one span."""
    total, until = 0.0, first
    for start, end in sorted(spans):
        total += max(0.0, min(end, last) - max(start, until))
        until = max(until, end)
    return total
