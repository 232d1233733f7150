"""Which admitted variant of the query tower serves on this machine, by a short probe (A34).

Two servers may come to different answers, and their scores then differ within the bounds that the
export was held to. So the variant that the export chose stays unless another clearly pays, which
small towers never do; and ``CSRM_TOWER_BACKEND`` names one for all: ``exported`` for what the
export chose, ``fp32`` or ``int8``.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from csrm_tasks.errors import ConfigError
from csrm_tasks.towers.serving.runtime import ONNX, open_session, read_about

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger("csrm")

VARIABLE = "CSRM_TOWER_BACKEND"
VARIANTS = ("fp32", "int8")
TOKENS = 12  # of the probe's query
SECONDS, LEAST_RUNS = 0.15, 5  # of timing per variant
SHARE, SAVED = 0.75, 0.0005  # another must take less than this share, and save so many seconds


def choose_backend(folder: Path, threads: int) -> str:
    """Return the variant of the query tower in ``folder`` to serve with.

    A variant that the export refused is not in the folder, so it is never chosen; asking for one by
    name fails when the tower is loaded. Raises :class:`ConfigError` for another name.
    """
    exported = str(read_about(folder)["serve"]["query"])
    wanted = os.environ.get(VARIABLE)
    if wanted is not None:
        if wanted not in (*VARIANTS, "exported"):
            raise ConfigError(f"{VARIABLE} is {wanted!r}; give exported, fp32 or int8, or unset it")
        return exported if wanted == "exported" else wanted
    variants = [v for v in VARIANTS if (folder / ONNX["query", v]).exists()]
    if len(variants) == 1:
        return variants[0]
    seconds = {v: time_query(open_session(folder / ONNX["query", v], threads)) for v in variants}
    chosen = quickest(seconds, exported)
    times = ", ".join(f"{v} {s * 1e3:.2f} ms" for v, s in seconds.items())
    log.info("query tower: %s a query of %d tokens; %s serves", times, TOKENS, chosen)
    return chosen


def quickest(seconds: dict[str, float], exported: str) -> str:
    """Return the quickest variant where it is worth leaving ``exported`` for it."""
    best = min(seconds, key=lambda v: seconds[v])
    ours = seconds[exported]
    worth = seconds[best] < SHARE * ours and ours - seconds[best] > SAVED
    return best if worth else exported


def time_query(session: InferenceSession) -> float:
    """Return the median seconds of one query, after two to warm up."""
    shape = (1, TOKENS)
    feed = {"input_ids": np.zeros(shape, np.int64), "attention_mask": np.ones(shape, np.int64)}
    for _ in range(2):
        session.run(None, feed)
    taken: list[float] = []
    while len(taken) < LEAST_RUNS or sum(taken) < SECONDS:
        began = time.perf_counter()
        session.run(None, feed)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
