"""A training in one process, or in several of this machine (``llm.processes``), one per GPU.

Several are started by torch's elastic launcher and talk through ``accelerate``
(:mod:`csrm_tasks.llm.training.parallel`). All do the same; the first one's files are the output,
and what it found is read from a file. When one dies the launcher ends the others.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from csrm_tasks.errors import ConfigError
from csrm_tasks.file_state import where_kept
from csrm_tasks.llm.training.finetune import Finetuned, finetune
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.learnt import UnlearntError, unlearnt
from csrm_tasks.llm.training.pretrain import PretrainInputs, pretrain
from csrm_tasks.llm.training.train import HALVED, TrainingError
from csrm_tasks.markets import MarketConfig

log = logging.getLogger("csrm")

JOB, RESULT = "job.json", "result.json"

Given = FinetuneInputs | PretrainInputs


def train_once(market: MarketConfig, given: Given, out: Path, work: Path) -> Finetuned:
    """Do :func:`finetune` or :func:`pretrain`, whichever ``given`` is for, in this process."""
    if isinstance(given, PretrainInputs):
        return pretrain(market, given, out, work)
    return finetune(market, given, out, work)


def run_training(market: MarketConfig, given: Given, out: Path, work: Path) -> Finetuned:
    """Do :func:`train_once` with as many processes as ``llm.processes`` says.

    Raises :class:`TrainingError` with the first failure where a process ends early; its
    checkpoints stay below ``work``. One that ran out of memory is started again, once.
    """
    if market.llm.processes == 1:
        return train_once(market, given, out, work)
    _check_gpus(market.llm.processes)
    work.mkdir(parents=True, exist_ok=True)
    (work / RESULT).unlink(missing_ok=True)
    job = {
        "market": market.model_dump(mode="json"),
        "given": asdict(given),
        "kind": type(given).__name__,
        "out": out,
        "work": work,
        "digests": where_kept(),
        "threads": max(1, torch.get_num_threads() // market.llm.processes),
    }
    (work / JOB).write_text(json.dumps(job, default=str), encoding="utf-8")
    halved = (work / HALVED).exists()
    failure = _launch(market.llm.processes, work / JOB)
    if failure and not halved and (work / HALVED).exists():
        log.warning("%s; started again with half as many samples a pass", failure)
        failure = _launch(market.llm.processes, work / JOB)
    if failure:
        raise TrainingError(failure)
    return Finetuned(**json.loads((work / RESULT).read_text(encoding="utf-8")))


def train_anew(
    market: MarketConfig, given: FinetuneInputs, out: Path, work: Path, whose: str, cure: str = ""
) -> Finetuned:
    """Do :func:`run_training` into ``out`` emptied: a training within a step, which may be killed.

    It goes on from its checkpoint below ``work``. Raises :class:`UnlearntError`, which says
    ``whose`` it is and what to do (``cure``), where it has learnt nothing.
    """
    shutil.rmtree(out, ignore_errors=True)  # of a training that was killed while it wrote
    out.mkdir(parents=True)
    result = run_training(market, given, out, work)
    reason = unlearnt(result.facts)
    if reason and market.llm.must_learn:
        raise UnlearntError(f"{whose}: {reason}{cure}")
    return result


def _check_gpus(processes: int) -> None:
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise ConfigError(
            f"llm.processes is {processes}, but this machine has {gpus} GPUs; a process needs one"
        )


def _launch(processes: int, job: Path) -> str | None:
    """Run the workers to their end; return None, or one line about the first that failed."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "csrm_tasks.llm.training.worker", str(job))
    except ChildFailedError as e:
        return _reason(e, processes)
    return None


def _reason(error: ChildFailedError, processes: int) -> str:
    """Return one line about the process that failed first, not those that then missed it.

    A killed one leaves no note of when; the launcher itself ends the rest by SIGTERM.
    """
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            return (
                f"training process {rank} of {processes} was ended by {failure.signal_name()}; "
                "run the step again to go on"
            )
    rank, first = error.get_first_failure()
    message: Any = first.message  # a dict where the worker's own exception was recorded
    text = message["message"] if isinstance(message, dict) else message
    return f"training process {rank} of {processes} failed: {' '.join(text.split())}"
