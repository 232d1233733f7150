"""What Airflow costs: parsing the DAG files of 1 and of 50 markets, and its share of a run.

Parsing is what the dag-processor does to every file again and again; it must not grow with what
the product imports. ``overhead_share`` is the part of ``dag.test()`` of a chain of ``tasks`` tasks
that is not the tasks' own work, against the same functions called in a plain loop (the peer).
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Timing, closing_line, table, timing_rows

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
CHAIN = """
import os, time
from airflow.sdk import DAG, task
def burn(before=0):
    end = time.process_time() + float(os.environ["CHAIN_WORK"])
    while time.process_time() < end:
        pass
    return before + 1
with DAG("chain", schedule=None) as dag:
    last = 0
    for i in range(int(os.environ["CHAIN_TASKS"])):
        last = task(task_id=f"t{i}")(burn)(last)
"""
RUN_CHAIN = """
import sys, time
from airflow.utils.db import initdb
sys.path.insert(0, sys.argv[1])
import chain
initdb()
start = time.perf_counter()
run = chain.dag.test()
print(f"CHAIN {time.perf_counter() - start}")
assert run.state == "success", run.state
start = time.perf_counter()
for _ in chain.dag.tasks:
    chain.burn()
print(f"LOOP {time.perf_counter() - start}")
"""


def environment(home: Path, markets: Path) -> dict[str, str]:
    """An Airflow home of its own on SQLite; its DAG folder is that of the chain."""
    return os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "chain"),
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


def run_chain(env: dict[str, str], folder: Path, tasks: int, work: float) -> dict[str, list[str]]:
    """Run ``tasks`` tasks of ``work`` CPU seconds each, as a DAG and as a loop."""
    folder.mkdir()
    (folder / "chain.py").write_text(CHAIN, encoding="utf-8")
    about = {"CHAIN_TASKS": str(tasks), "CHAIN_WORK": str(work)}
    return python(RUN_CHAIN, env | about, str(folder))


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


def main(quick: bool) -> None:
    """Print the table and the figures parse_s_1, parse_s_50 (quick: parse_s_5), overhead_share."""
    sizes, rounds = ((1, 5), 1) if quick else ((1, 50), 6)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        markets = {n: copy_markets(home / f"markets{n}", n) for n in sizes}
        env = {n: environment(home, m) for n, m in markets.items()}
        seconds: dict[int, list[float]] = {n: [] for n in sizes}
        for n in sizes * rounds:  # in turn
            found = python(PARSE, env[n], str(ROOT / "dags"))
            assert found["DAGS"] == dag_ids(markets[n]), f"{found['DAGS']} of {n} markets"
            seconds[n].append(float(found["PARSED"][0]))
        # The first of several is a warm-up.
        parsed = {f"parse, {n} market(s)": Timing(tuple(s[1:] or s)) for n, s in seconds.items()}
        start = time.perf_counter()
        chain = run_chain(env[1], home / "chain", *((5, 0.1) if quick else (40, 0.5)))
        whole, loop = float(chain["CHAIN"][0]), float(chain["LOOP"][0])
        print(table(timing_rows(parsed, 1, "parses/s")))
        print(f"\nchain of tasks: {whole:.2f} s in Airflow, {loop:.2f} s as a plain loop ", end="")
        print(f"(the process in all: {time.perf_counter() - start:.1f} s)\n")
        figures = {"overhead_share": (whole - loop) / whole}
        for n, timing in zip(sizes, parsed.values(), strict=True):
            figures[f"parse_s_{n}"] = timing.median
        print(closing_line("orchestration", figures, ("apache-airflow",)))
