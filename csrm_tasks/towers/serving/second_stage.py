"""The second stage of a release: a stack with the cross-encoder that re-ranks a search's top.

One folder: the cross-encoder's files, and in ``serving.json`` under ``second_stage`` how many
products are re-ranked, and the stack's weights. What a product is ranked by is

    w₁ · logit of the first stage's EM probability + w₂ · the cross-encoder's EM logit

whose weights dev has fitted (:mod:`csrm_tasks.towers.cross.stack`). Only products that the first
stage has put among the first ``top`` change places, among themselves; who is left out as a defect
is the first stage's to say. Equal scores keep the first stage's order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csrm_tasks.errors import ArtifactError
from csrm_tasks.json_files import write_json
from csrm_tasks.ranking import best_first
from csrm_tasks.towers.serving.cross import ONNX, CrossRuntime
from csrm_tasks.towers.serving.runtime import Vectors, read_about
from csrm_tasks.towers.serving.tokens import TokenTable

Floats = npt.NDArray[np.float64]

SMALLEST = 1e-6  # probability that the first stage's is kept away from 0 and 1
PASSES = 3  # of which each batch's least time counts: what else the machine does only adds


def write_second_stage(cross: Path, out: Path, top: int, weights: Mapping[str, float]) -> None:
    """Write the folder of a second stage: the admitted variant of ``cross``, and the weights."""
    about = read_about(cross)
    for name in ("tokenizer.json", ONNX[about["serve"]]):
        shutil.copyfile(cross / name, out / name)
    about["second_stage"] = {"top": top, "weights": {**weights}}
    write_json(out / "serving.json", about)


def reordered(order: Sequence[int], scores: Sequence[float]) -> list[int]:
    """Return ``order`` with its first ``len(scores)`` by falling score, ties as they stood."""
    first = best_first(list(scores)).tolist()
    return [*(order[i] for i in first), *order[len(first) :]]


def first_logits(em: Vectors) -> Floats:
    """Return the logits (N,) of the first stage's EM probabilities, which float32 may round."""
    p = np.clip(em.astype(np.float64), SMALLEST, 1.0 - SMALLEST)
    logits: Floats = np.log(p / (1.0 - p))
    return logits


@dataclass(frozen=True)
class Costs:
    """Measured seconds of a run by its padded tokens, rising."""

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]

    def of(self, tokens: float) -> float:
        """Return the seconds of a run of so many padded tokens."""
        if tokens > self.tokens[-1]:
            return self.seconds[-1] * tokens / self.tokens[-1]
        return float(np.interp(tokens, self.tokens, self.seconds))

    def affordable(self, query: int, titles: Sequence[int], seconds: float) -> int:
        """Return how many of the first products fit into ``seconds``; of one alone none.

        ``query`` and ``titles`` (n,): lengths in tokens. A batch is padded to its longest pair.
        """
        longest = np.maximum.accumulate(np.array([*titles], np.int64))
        sizes = np.arange(1, len(longest) + 1) * (query + longest)
        fit = int(sum(self.of(float(size)) <= seconds for size in sizes))
        return fit if fit > 1 else 0


class SecondStage:
    """A release's second stage, loaded once; safe to call from several threads."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Load it; raises :class:`ArtifactError` for a folder that is none."""
        self.cross = CrossRuntime(folder, threads=threads)
        about = self.cross.about.get("second_stage")
        if about is None:
            raise ArtifactError(f"{folder} holds a cross-encoder that is no second stage")
        self.top = int(about["top"])
        self._first, self._cross = (float(about["weights"][name]) for name in ("first", "cross"))

    def score(self, query: str, titles: Sequence[Sequence[int]], em: Vectors) -> Floats:
        """Return what n products of one search are ranked by, (n,).

        ``titles``: their tokens, of :attr:`CrossRuntime.title_reader`; ``em`` (n,) the first
        stage's probabilities.
        """
        asked = self.cross.query_reader([query])
        read = TokenTable(titles, asked.pad_id)
        logits = self.cross.logits(asked, read, np.zeros(len(read), np.int64))
        return self.combined(em, logits[:, 0])

    def combined(self, em: Vectors, logits: Vectors) -> Floats:
        """Return the stack's scores (N,) of first-stage probabilities and EM logits (N,)."""
        scores: Floats = self._first * first_logits(em) + self._cross * logits.astype(np.float64)
        return scores

    def measure(self) -> Costs:
        """Time batches of 1, 2, 4, … up to ``top`` pairs of the longest texts, on this machine.

        Shorter pairs cost no more for each padded token, so what is promised by these is kept.
        """
        query, title = self.cross.query_reader.tokens, self.cross.title_reader.tokens
        sizes = [*(2**k for k in range(self.top.bit_length()) if 2**k < self.top), self.top]
        asked = TokenTable([[0] * query], 0)
        seconds = []
        for size in sizes:
            read, rows = TokenTable([[0] * title] * size, 0), np.zeros(size, np.int64)
            seconds.append(min(self._time(asked, read, rows) for _ in range(PASSES)))
        rising = np.maximum.accumulate(seconds)
        return Costs(tuple(float(n * (query + title)) for n in sizes), tuple(rising.tolist()))

    def _time(self, asked: TokenTable, read: TokenTable, rows: npt.NDArray[np.int64]) -> float:
        began = time.perf_counter()
        self.cross.logits(asked, read, rows)
        return time.perf_counter() - began
