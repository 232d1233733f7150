"""What dev says of a model in the query-category and query-item tasks (A40).

Dev is cut into two halves by the queries' texts. On one a task's threshold is chosen, and where no
relevance is learnt also the best state of a training; the other only reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.tasks import by_language, figures, mean_f1
from csrm_tasks.json_files import write_json
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import TASK_SPACES
from csrm_tasks.llm.scoring.calibration import log_loss
from csrm_tasks.llm.scoring.predict import predict
from csrm_tasks.llm.task_data import HALVES, TaskTexts, halves
from csrm_tasks.llm.training.train import DevScore
from csrm_tasks.towers.thresholds import choose_threshold

CHOSEN, REPORTED = HALVES
SCORES, FILE = "task_dev.parquet", "tasks.json"


class TaskJudge:
    """Scores the dev pairs of the tasks with the model as it is."""

    def __init__(
        self, model: Model, encoder: PromptEncoder, dev: pl.DataFrame, target: str
    ) -> None:
        """``dev``: TASK_PAIRS of dev; of a task with pairs of ``target`` these alone choose (A10).

        Raises :class:`DataError` where the half to choose on has no yes or no no.
        """
        self._model, self._encoder = model, encoder
        self.last: pl.DataFrame | None = None  # what was found last
        self._dev = with_halves(dev, target)

    def scored(self) -> pl.DataFrame:
        """Return the dev pairs with ``p`` of yes."""
        parts = []
        for (task,), pairs in self._dev.group_by("task", maintain_order=True):
            texts = TaskTexts(str(task)).of(pairs)
            found = predict(self._model, self._encoder, TASK_SPACES[str(task)], *texts)
            parts.append(pairs.with_columns(pl.Series("p", found[:, 1], dtype=pl.Float32)))
        self.last = pl.concat(parts)
        return self.last

    def score(self) -> DevScore:
        """Return the tasks' mean accuracy (at one half) and log loss on the half that chooses."""
        accuracy, loss = [], []
        for _, pairs in self.scored().filter("chooses").group_by("task", maintain_order=True):
            p = pairs["p"].to_numpy().astype(np.float64)
            labels = pairs["grade"].to_numpy().astype(np.int64)
            accuracy.append(float(((p >= 0.5) == labels).mean()))
            loss.append(log_loss(np.stack([1.0 - p, p], 1), labels))
        return DevScore(float(np.mean(accuracy)), float(np.mean(loss)))

    def write(self, out: Path, known: pl.DataFrame | None = None) -> dict[str, Any]:
        """Choose the thresholds; write :data:`SCORES` and :data:`FILE` below ``out``; return facts.

        ``known``: what :meth:`scored` said of the model as it is now; None: it is asked again.
        The facts are of the half that reports: F1 of yes by task, and their mean (A42).
        """
        scored = self.scored() if known is None else known
        scored.select("task", "pair_id", "query_id", "locale", "grade", "half", "p").write_parquet(
            out / SCORES
        )
        found = {
            str(task): task_figures(str(task), pairs)
            for (task,), pairs in scored.group_by("task", maintain_order=True)
        }
        write_json(out / FILE, found)
        reported = {task: one["reported"] for task, one in found.items()}
        facts: dict[str, Any] = {"task_dev_mean_f1": mean_f1(reported)}
        for task, one in found.items():
            facts[f"{task}_threshold"] = one["threshold"]
            facts[f"{task}_dev_f1"] = one["reported"]["f1"]["value"]
        return facts


def with_halves(dev: pl.DataFrame, target: str) -> pl.DataFrame:
    """Add to dev pairs of tasks their ``half``, and whether thresholds are chosen on them (A10).

    Raises :class:`DataError` where a task's half to choose on has no yes or no no.
    """
    halved = dev.with_columns(halves(dev["query"]))
    own = pl.col("locale") == target
    chooses = (pl.col("half") == CHOSEN) & (own | ~own.any().over("task"))
    found = halved.with_columns(chooses=chooses)
    for (task,), pairs in found.group_by("task", maintain_order=True):
        grades = pairs.filter("chooses")["grade"]
        if grades.n_unique() < 2:
            raise _no_choice(str(task), grades.to_list())
    return found


def task_figures(task: str, scored: pl.DataFrame) -> dict[str, Any]:
    """Choose the threshold of one task, and say what it gives on either half.

    ``scored``: dev pairs with ``p``, ``half`` and ``chooses``. What is reported is of the same
    locales as what was chosen on; by language it is of all.
    """
    chosen = scored.filter("chooses")
    threshold = choose_threshold(
        task, chosen["p"].to_numpy(), (chosen["grade"] == 1).to_numpy(), floor=None
    )
    rest = scored.filter(pl.col("half") == REPORTED)
    rest = rest.with_columns(said=(pl.col("p").cast(pl.Float64) >= threshold.value).cast(pl.Int8))
    alike = rest.join(chosen.select("locale").unique(), on="locale", how="semi")
    plain = alike.with_columns(said=(pl.col("p").cast(pl.Float64) >= 0.5).cast(pl.Int8))
    return {
        "threshold": threshold.value,
        "chosen": {"pairs": chosen.height, "f1": threshold.f1},
        "reported": figures(alike),
        "at_one_half": figures(plain)["f1"],
        "languages": by_language(rest),
    }


def _no_choice(task: str, grades: list[int]) -> DataError:
    lacking = "yes" if 1 not in grades else "no"
    return DataError(
        f"task {task}: the half of dev that the threshold is chosen on has no pair that is "
        f"{lacking!r}; judge more queries, or raise snapshot.dev_share"
    )
