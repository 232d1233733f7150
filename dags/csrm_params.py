"""Parameters of a training that a person starts: what may differ from the market's file, and how.

Airflow checks a value against its bounds when a run is triggered, in the form, by REST and by
``airflow dags trigger --conf`` alike; what one value says of another, and names that there are
none, :func:`csrm_windows.asked` refuses in every task's first moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Param
from csrm_wiring import DRY_RUN, UNTIL, WEEK

from csrm_tasks.bases.record import causal_bases
from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import bases_folder

FORCE = Param(
    False,
    type="boolean",
    title="Train again",
    description="Make every training and scoring of this run again, although the window's result "
    "exists. Where the same comes out, the first one stands for it.",
)
REASON = Param(
    None,
    type=["null", "string"],
    minLength=3,
    maxLength=500,
    title="Reason",
    description="Why this run differs from the market's normal one; needed where it does. It "
    "stands in the verdict, in MLflow and, of what is released, in the ledger.",
)
RELEASE = Param(
    False,
    type="boolean",
    title="May release",
    description="Let a run that differs from the market's normal one release what passes the gate; "
    "else nothing of it is registered or promoted.",
)
COLD_START = {
    "train_llm_plain": "train_llm", "train_ebr": "train_ebr", "train_llm_stage1": "train_llm",
    "train_towers": "train_towers",
}  # fmt: skip
RETRAIN = {
    "train_ebr": "train_ebr", "train_llm_stage2": "train_llm", "train_towers": "train_towers",
}  # fmt: skip
TASKS = {"train_llm": "train_llm"}  # of a market without relevance


def retrain_params(market: MarketConfig) -> dict[str, Param]:
    """Return what a retraining may be given."""
    if "relevance" not in market.tasks:
        return {"week": WEEK} | changes(market, TASKS)
    rounds = market.llm.distillation.rounds
    trained = RETRAIN | {f"train_llm_round{n}": "train_llm" for n in range(1, rounds + 1)}
    more = {"rounds": rounds_of(rounds)} if rounds else {}
    warm = market.llm.warm_start == "live"
    return {"week": WEEK} | more | changes(market, trained, warm=warm)


def beyond(n: int) -> str:
    """Return the template of whether a run asks for fewer rounds than the ``n``-th."""
    return f"{{{{ params.rounds < {n} }}}}"


def cold_start_params(market: MarketConfig) -> dict[str, Param]:
    """Return what a cold start may be given."""
    return {"until": UNTIL} | changes(market, COLD_START)


def changes(
    market: MarketConfig, trained: Mapping[str, str], *, warm: bool = False
) -> dict[str, Param]:
    """Return the parameters by which a run differs from the market's normal one.

    ``trained``: its trainings, task → step; ``warm``: whether they start from the live adapter.
    """
    if market.llm.pretraining.steps:
        trained = {"pretrain_llm": "pretrain_llm", **trained}
    return {
        "base": base_of(market, warm=warm), "force": FORCE, "reuse": reuse_of(market, trained),
        "reason": REASON, "dry_run": DRY_RUN, "release": RELEASE,
    }  # fmt: skip


def rounds_of(most: int) -> Param:
    """Return the parameter of the rounds of self-distillation, at most those of the market."""
    return Param(
        most,
        type="integer",
        minimum=0,
        maximum=most,
        title="Rounds",
        description="Rounds of self-distillation; as many as the market's file says, or fewer.",
    )


def base_of(market: MarketConfig, *, warm: bool) -> Param:
    """Return the parameter of the LLM's base: the market's, or one that is kept by name."""
    kept = [] if warm else causal_bases(bases_folder())
    why = " (llm.warm_start is live, which takes no other)" if warm else ""
    return Param(
        market.llm.base,
        type="string",
        enum=list(dict.fromkeys([market.llm.base, *kept])),
        title="Base model",
        description="Base of the relevance LLM: the market's, or one that csrm base add keeps"
        f"{why}.",
    )


def reuse_of(market: MarketConfig, trained: Mapping[str, str]) -> Param:
    """Return the parameter of the trainings whose artifact an earlier run lends."""
    shapes: dict[str, Any] = {
        task: {"type": "string", "pattern": rf"^{market.market}/{step}/[0-9a-f]{{20}}$"}
        for task, step in trained.items()
    }
    return Param(
        None,
        type=["null", "object"],
        properties=shapes,
        additionalProperties=False,
        title="Reuse",
        description="Trainings of an earlier run on the same data to take instead of new ones, "
        f"although code or file have changed since: task to artifact, of {', '.join(trained)}.",
    )
