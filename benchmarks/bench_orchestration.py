"""What Airflow costs: parsing the DAG files of 1 and of 50 markets, and its share of a run.

Parsing is what the dag-processor does to every file again and again; it must not grow with what
the product imports. ``overhead_share`` is the part of ``dag.test()`` of a chain of ``tasks`` tasks
that is not the tasks' own work, against the same functions called in a plain loop (the peer).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Timing, alternate, closing_line, table, timing_rows

ROOT = Path(__file__).resolve().parent.parent
PARSE = """
import time, sys
from airflow.dag_processing.dagbag import DagBag
start = time.perf_counter()
bag = DagBag(sys.argv[1], include_examples=False)
seconds = time.perf_counter() - start
assert not bag.import_errors, bag.import_errors
print(f"PARSED {len(bag.dags)} {seconds}")
"""
CHAIN = """
import time, sys
from airflow.sdk import DAG, task
tasks, work = int(sys.argv[1]), float(sys.argv[2])
def burn(before=0):
    end = time.process_time() + work
    while time.process_time() < end:
        pass
    return before + 1
with DAG("chain", schedule=None) as dag:
    last = 0
    for i in range(tasks):
        last = task(task_id=f"t{i}")(burn)(last)
start = time.perf_counter()
dag.test()
print(f"CHAIN {time.perf_counter() - start}")
start = time.perf_counter()
for _ in range(tasks):
    burn()
print(f"LOOP {time.perf_counter() - start}")
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


def main(quick: bool) -> None:
    """Print the table and the figures parse_s_1, parse_s_50 and overhead_share."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        markets = {n: copy_markets(home / f"markets{n}", n) for n in (1, 50)}
        env = {n: environment(home, m) for n, m in markets.items()}
        subprocess.run(
            [str(Path(sys.executable).with_name("airflow")), "db", "migrate"],
            env=env[1], check=True, capture_output=True,
        )  # fmt: skip
        seconds: dict[int, list[float]] = {1: [], 50: []}

        def parse(n: int) -> None:
            found = python(PARSE, env[n], str(ROOT / "dags"))["PARSED"]
            assert int(found[0]) == 3 * n, f"{found[0]} DAGs of {n} markets"
            seconds[n].append(float(found[1]))

        repeats = 2 if quick else 5
        alternate({"1": lambda: parse(1), "50": lambda: parse(50)}, repeats)
        parsed = {f"parse, {n} market(s)": Timing(tuple(s[1:])) for n, s in seconds.items()}
        start = time.perf_counter()
        chain = python(CHAIN, env[1], "10" if quick else "40", "0.5")
        whole, loop = float(chain["CHAIN"][0]), float(chain["LOOP"][0])
        print(table(timing_rows(parsed, 1, "parses/s")))
        print(f"\nchain of tasks: {whole:.2f} s in Airflow, {loop:.2f} s as a plain loop ", end="")
        print(f"(the process in all: {time.perf_counter() - start:.1f} s)\n")
        figures = {
            "overhead_share": (whole - loop) / whole,
            "parse_s_1": parsed["parse, 1 market(s)"].median,
            "parse_s_50": parsed["parse, 50 market(s)"].median,
        }
        print(closing_line("orchestration", figures, ("apache-airflow",)))
