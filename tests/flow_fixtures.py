"""A market small enough to go through every step in a test: its files thinned."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from csrm_tasks.demo.market.generate import generate_demo
from csrm_tasks.settings import Settings

MARKET = "mini"
ROOT = Path(__file__).resolve().parent
KEEP = 4  # one query in so many


def make_flow_market(folder: Path) -> None:
    """Write ``folder/home/landing`` and ``folder/markets/mini.yaml``."""
    landing = folder / "home" / "landing"
    generate_demo(landing, MARKET, products=500)
    for day in sorted((landing / MARKET).glob("*-*-*")):
        thin_day(day)
    (folder / "markets").mkdir()
    shutil.copy(ROOT / "markets" / "mini.yaml", folder / "markets")


def kept(query: str) -> bool:
    """Whether a query stays: by its text, so that labels and logs agree; broken rows stay."""
    return query == "" or crc32(query.encode()) % KEEP == 0


def thin_day(day: Path) -> None:
    """Keep some of the queries in the day's labels and logs, with all that belongs to them."""
    for path in day.glob("*/labels*.csv"):
        with path.open(encoding="utf-8", newline="") as f:
            rows = list(csv.DictReader(f))
        with path.open("w", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(r for r in rows if kept(r["query"]))
    for path in day.glob("*/labels*.jsonl"):
        with path.open(encoding="utf-8") as f:  # by "\n" alone: texts may hold other separators
            lines = [x for x in f if kept(field(x, "query"))]
        path.write_text("".join(lines), encoding="utf-8")
    for path in day.glob("*/ubi_queries.jsonl.gz"):
        searches = [x for x in gzipped(path) if kept(field(x, "user_query"))]
        stay = {field(x, "query_id") for x in searches}
        rewrite(path, searches)
        events = path.with_name("ubi_events.jsonl.gz")
        rewrite(events, [x for x in gzipped(events) if field(x, "query_id") in stay])


def field(line: str, name: str) -> str:
    """Return a field of a JSON line; "" where the line is broken on purpose."""
    try:
        return str(json.loads(line).get(name, ""))
    except ValueError:
        return ""


def gzipped(path: Path) -> Iterator[str]:
    """Yield the lines of a gzip file."""
    with gzip.open(path, "rt", encoding="utf-8") as f:
        yield from f


def rewrite(path: Path, lines: list[str]) -> None:
    """Write a gzip file anew."""
    with gzip.open(path, "wt", encoding="utf-8") as f:
        f.writelines(lines)


def run_flow(settings: Settings, airflow_home: Path, runs: Sequence[Any]) -> list[dict[str, Any]]:
    """Run DAGs in a process of its own (Airflow reads its home when imported); all must succeed."""
    dags = str(ROOT.parent / "dags")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "CSRM"))} | {
        "AIRFLOW_HOME": str(airflow_home), "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGS_FOLDER": dags, "PYTHONPATH": str(ROOT.parent),
        "CSRM_HOME": str(settings.home), "CSRM_MARKETS": str(settings.markets),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "flow_run.py"), dags, json.dumps(runs)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("FLOW")]
    assert lines, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(lines[0].removeprefix("FLOW"))
    failed = [line for line in done.stdout.splitlines() if "Error" in line]
    assert [r["state"] for r in found] == ["success"] * len(runs), "\n".join(failed)
    return found
