"""
### Study: what the papers' steps earn on this market

Trains and judges the arms of both papers' tables, seed by seed (mapped tasks), and writes one
report of all of them after every part of every seed: claims with two intervals and a verdict,
each beside the paper's own figure. On a market of your own a seed is that of trainings and the
judged pairs are its gold, or dev held aside; on `demo` every seed is a generated market. It
releases nothing and changes nothing that is served.

**Window**: everything published so far; by hand. `first` and `seeds` say which seeds; those that
are there already are found again, so a study is widened by more `seeds`. Looks are at 4, 7, 14
and 28 seeds, and a part whose claims are all decided takes no further seed.
**A task failed?** Clear it: finished trainings are found, one that was killed goes on at its
checkpoint. Workers must share the installation's home (`CSRM_HOME`): what is found lies there,
below `paper`. Without Airflow: `csrm study paper --market M`. How to read it: docs/STUDY.md.
"""

from __future__ import annotations

from airflow.sdk import Param, task
from csrm_faults import refusals_fail
from csrm_limits import limits_of
from csrm_wiring import ASKED, market_dag, releasing

from csrm_tasks.markets import MarketConfig

TRAINS = "train_llm"  # as long, and in the same pool, as the training that it mostly is
PARAMS = {
    "seeds": Param(
        7,
        type="integer",
        minimum=1,
        maximum=28,
        title="Seeds",
        description="How many seeds at most; looked at when there are 4, 7, 14 or 28.",
    ),
    "first": Param(
        10,
        type="integer",
        minimum=0,
        maximum=1_000_000,
        title="First seed",
        description="The first of them; a study that is widened keeps it.",
    ),
    "only": Param(
        None,
        type=["null", "string"],
        pattern=r"^[a-z]+(,[a-z]+)*$",
        title="Only",
        description="Parts, comma-separated: ladder, baselines, titles, distil, labels, curation; "
        "empty: all that the market can have.",
    ),
}
ONE = {"first": "{{ params.first }}", "only": "{{ params.only or '' }}"}


@task
def list_seeds(first: str, seeds: str, asked: str) -> list[int]:
    """Say which seeds the run is for; a parameter that there is none of fails here."""
    del asked  # rendered, it has refused what it does not know
    return list(range(int(first), int(first) + int(seeds)))


@task(map_index_template="seed {{ task.op_kwargs['seed'] }}")
def study_seed(seed: int, market: str, first: str, only: str) -> None:
    """Run every part of one seed, and write the report after each of them."""
    from csrm_tasks.demo.paper.page import reported

    with refusals_fail():
        reported(market, int(first), [seed], only or None)


@task
def report(market: str, first: str) -> str:
    """Write the report of all seeds; returns where it lies."""
    from csrm_tasks.demo.paper.page import written

    with refusals_fail():
        return str(written(market, int(first)))


def study(market: MarketConfig) -> None:
    """seeds → one task each → the report."""
    found = list_seeds(ONE["first"], "{{ params.seeds }}", ASKED)
    one = study_seed.override(**limits_of(market, TRAINS))
    done = one.partial(market=market.market, **ONE).expand(seed=found)
    done >> report(market.market, ONE["first"])


for m in releasing():  # Airflow finds the DAGs among the names of this module
    globals()[f"csrm_study__{m.market}"] = market_dag(
        "csrm_study", m, study, doc=__doc__, schedule=None, params=PARAMS
    )
