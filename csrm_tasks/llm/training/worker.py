"""One process of a training in several; :mod:`csrm_tasks.llm.training.launch` starts it."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.elastic.multiprocessing.errors import record

from csrm_tasks.file_state import digests_kept_in
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.launch import RESULT, Given, train_once
from csrm_tasks.llm.training.pretrain import PretrainInputs
from csrm_tasks.markets import MarketConfig

PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


def main(job_file: Path) -> None:
    """Do the job of the file; every process makes the output, the first one's is kept."""
    _die_with_parent()
    job = json.loads(job_file.read_text(encoding="utf-8"))
    # joins the others (NCCL or gloo), and takes this process' GPU
    state = PartialState(cpu=not torch.cuda.is_available())
    torch.set_num_threads(job["threads"])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("csrm").setLevel(logging.INFO if state.is_main_process else logging.ERROR)
    market = MarketConfig.model_validate_json(json.dumps(job["market"]))
    work = Path(job["work"])
    out = Path(job["out"])
    if not state.is_main_process:
        out = work / f"process-{state.process_index}"
        shutil.rmtree(out, ignore_errors=True)  # an attempt that was killed has left it
    out.mkdir(parents=True, exist_ok=True)
    with digests_kept_in(Path(job["digests"])) if job["digests"] else nullcontext():
        result = train_once(market, _inputs(job["kind"], job["given"]), out, work)
    if state.is_main_process:
        part = work / "result.part"
        part.write_text(json.dumps(asdict(result)), encoding="utf-8")
        part.replace(work / RESULT)
    state.destroy_process_group()


def _inputs(kind: str, given: dict[str, Any]) -> Given:
    paths = (
        "snapshot",
        "rqa",
        "soft",
        "warm",
        "pretraining",
        "negatives",
        "filtered",
        "translated",
    )
    values: dict[str, Any] = {k: Path(v) if k in paths and v else v for k, v in given.items()}
    return PretrainInputs(**values) if kind == PretrainInputs.__name__ else FinetuneInputs(**values)


def _die_with_parent() -> None:
    """A step that is killed must not leave workers that go on writing its checkpoints."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the launching process has ended")


if __name__ == "__main__":
    record(main)(Path(sys.argv[1]))
