"""Where a market's tasks run: executor, queue and pool, and what a pod of Kubernetes gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, get_parsing_context

from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections.workers import DEFAULT, TRAINING, Worker
from csrm_tasks.steps import classes

if TYPE_CHECKING:
    from airflow.sdk.types import Operator
    from kubernetes.client.models import V1Pod

CONTAINER = "base"  # the one of a pod that runs the task, as Airflow calls it
NVIDIA = "nvidia.com/gpu"


def place(dag: DAG, market: MarketConfig) -> None:
    """Have every task of a DAG run where the market's ``workers`` say.

    Raises :class:`ConfigError` where that takes a package which is not installed.
    """
    if not market.workers:
        return
    for one in dag.tasks:
        worker = worker_of(market, step_of(one))
        if worker is not None:
            for name, value in arguments(market, worker).items():
                if one.is_mapped:
                    one.partial_kwargs[name] = value
                else:
                    setattr(one, name, value)


def step_of(one: Operator) -> str:
    """Return the step that a task runs; empty: it runs none."""
    given = (one.partial_kwargs if one.is_mapped else vars(one)).get("op_kwargs") or {}
    return str(given.get("step", ""))


def worker_of(market: MarketConfig, step: str) -> Worker | None:
    """Return the narrowest entry that is for a step; None: there is none."""
    found = market.workers
    training = found.get(TRAINING) if step in classes.TRAINING else None
    return found.get(step) or training or found.get(DEFAULT)


def arguments(market: MarketConfig, worker: Worker) -> dict[str, Any]:
    """Return the arguments of a task that an entry says; what it leaves open stays as it is."""
    given = {
        "executor": worker.executor, "queue": worker.queue, "pool": worker.pool,
        "executor_config": podded(market, worker),
    }  # fmt: skip
    return {name: value for name, value in given.items() if value}


def podded(market: MarketConfig, worker: Worker) -> dict[str, V1Pod]:
    """Return what Airflow lays over the pod template; empty: the template as it is.

    Nothing in a task's own process, which starts no pod: Kubernetes' client takes a second or two
    to import, and need not be in the image that the task runs in.
    """
    if not worker.of_pods or get_parsing_context().task_id:
        return {}
    try:
        return {"pod_override": pod_of(worker)}
    except ImportError as e:
        raise ConfigError(
            f"market {market.market}: workers ask for {', '.join(worker.of_pods)} of a pod, and "
            "the package kubernetes is not here: install the extra csrm[kubernetes]"
        ) from e


def pod_of(worker: Worker) -> V1Pod:
    """Return the part of a pod that an entry says. Memory is asked for and limited alike."""
    from kubernetes.client import models as k8s

    memory = {"memory": f"{round(worker.memory_gb * 1000)}M"} if worker.memory_gb else {}
    cpus = {"cpu": f"{round(worker.cpus * 1000)}m"} if worker.cpus else {}
    gpus = {NVIDIA: str(worker.gpus)} if worker.gpus else {}
    requests, limits = cpus | memory, memory | gpus
    resources = k8s.V1ResourceRequirements(requests=requests or None, limits=limits or None)
    container = k8s.V1Container(
        name=CONTAINER, image=worker.image, resources=resources if requests | limits else None
    )
    labels = dict(worker.node_selector) or None
    return k8s.V1Pod(spec=k8s.V1PodSpec(containers=[container], node_selector=labels))
