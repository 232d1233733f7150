"""The graph of a week of the demo market, read from its DAG, and the same DAG with empty steps."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.previous import Checkout

DAG = "csrm_retrain__demo"
WEEK = "2026-W02"  # that every run is for: which, matters to no step
# Run by the checkout whose DAG it is. A mapped task counts as what it is mapped to.
READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
from csrm_retrain import csrm_retrain__demo as dag
def instances(one):
    if not one.is_mapped:
        return [one.task_id]
    many = next(iter(one.op_kwargs_expand_input.value.values()))
    return [f"{one.task_id}_{k}" for k in range(len(many))]
print("GRAPH" + json.dumps({
    name: sorted(i for up in one.upstream_task_ids for i in instances(dag.get_task(up)))
    for one in dag.topological_sort() for name in instances(one)
}))
"""
# A DAG file: the product's own DAG, in whose tasks everything happens but what a step does.
EMPTY = """\
\"\"\"The weekly retraining of the demo market as an Airflow DAG, with empty steps.\"\"\"
import sys

sys.path.insert(0, {dags!r})
import csrm_tasks.steps
from csrm_retrain import csrm_retrain__demo as dag

csrm_tasks.steps.run_step = lambda step, market, *_, **__: market + "/" + step + "/0123456789abcdef"
dag.get_task("is_approved").python_callable = lambda *_, **__: True
"""


@dataclass(frozen=True)
class Graph:
    """Task → those it reads, in an order in which they can run."""

    tasks: dict[str, list[str]]

    @property
    def edges(self) -> int:
        """How many there are."""
        return sum(map(len, self.tasks.values()))

    @property
    def depth(self) -> int:
        """Tasks on the longest path."""
        depths: dict[str, int] = {}
        for name, read in self.tasks.items():
            depths[name] = 1 + max((depths[r] for r in read), default=0)
        return max(depths.values())


def graph_of(checkout: Checkout) -> Graph:
    """Read the graph of a checkout's own DAG."""
    with tempfile.TemporaryDirectory() as home:
        markets = str(checkout.root / "dags" / "markets")
        said = checkout.run(READ, checkout.root / "dags", AIRFLOW_HOME=home, CSRM_MARKETS=markets)
    line = next(line for line in said.splitlines() if line.startswith("GRAPH"))
    return Graph(json.loads(line.removeprefix("GRAPH")))


def write_empty(checkout: Checkout, folder: Path) -> None:
    """Write the DAG folder with a checkout's DAG, its steps empty."""
    folder.mkdir()
    text = EMPTY.format(dags=str(checkout.root / "dags"))
    (folder / "csrm_empty.py").write_text(text, encoding="utf-8")
