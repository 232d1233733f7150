"""From a snapshot's task pairs to rows of the query-category and query-item tasks (A3, A40)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.dataset.sides import text_ids
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import DataError
from csrm_tasks.llm.data import LabelRows, in_fold
from csrm_tasks.llm.prompt.prompts import (
    QC,
    TASK_SPACES,
    ProductFields,
    QueryFields,
    language_name,
)
from csrm_tasks.llm.soft_targets import one_hot, smoothed
from csrm_tasks.records import TASK_PAIRS, WEIGHTS, read_table
from csrm_tasks.text import normalised

FILE = "task_pairs.parquet"
HALVES = ("chosen", "reported")  # of dev: thresholds are chosen on one, and reported on the other


def load_task_pairs(snapshot: Path) -> pl.DataFrame:
    """Return TASK_PAIRS of a snapshot, by task; none of a snapshot from before there were tasks.

    Raises :class:`DataError` for a label that is neither of the two tokens.
    """
    if not (snapshot / FILE).is_file():
        return pl.DataFrame(schema=TASK_PAIRS)
    pairs = table(snapshot, "task_pairs")
    odd = pairs.filter(~pl.col("grade").is_in([0, 1]) | ~pl.col("task").is_in([*TASK_SPACES]))
    if odd.height:
        task, pair, grade = odd.select("task", "pair_id", "grade").row(0)
        raise DataError(
            f"{snapshot / FILE}: pair {pair} of task {task} has label {grade}; known are 0 (no) "
            f"and 1 (yes) of {', '.join(TASK_SPACES)}; run snapshot again"
        )
    return pairs


def held_out_task_texts(snapshot: Path) -> pl.Series:
    """Return the query texts of dev and gold pairs of the tasks: nothing is learnt of them."""
    return load_task_pairs(snapshot).filter(pl.col("split") != "train")["query"]


class TaskTexts:
    """Prompt fields of task pairs, which carry their own texts."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._queries: dict[tuple[str, str], QueryFields] = {}
        self._items: dict[str, ProductFields] = {}

    def of(self, pairs: pl.DataFrame) -> tuple[list[QueryFields], list[ProductFields]]:
        """Return the fields of ``pairs`` (locale, query, item), aligned; equal ones are one."""
        queries = [
            self._queries.setdefault(
                (locale, query), QueryFields(query, language=language_name(locale))
            )
            for locale, query in pairs.select("locale", "query").iter_rows()
        ]
        is_path = self._task == QC.name
        items = [
            self._items.setdefault(
                item, ProductFields("", path=item) if is_path else ProductFields(item)
            )
            for item in pairs["item"]
        ]
        return queries, items


def training_task_pairs(
    snapshot: Path, fold: int | None, filtered: Path | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return train and dev pairs: of half ``fold`` of the queries (A18), as the filter weighs them.

    Dev is whole in either half, as that of relevance is.
    """
    pairs = load_task_pairs(snapshot)
    train, dev = (pairs.filter(split=split) for split in ("train", "dev"))
    if fold is not None:
        train = in_fold(train, fold)
    if filtered is None:
        return train, dev
    return _without_flagged(train, filtered, learns_tasks_alone(snapshot)), dev


def learns_tasks_alone(snapshot: Path) -> bool:
    """Whether the snapshot has train pairs of qc or qi, and none of relevance."""
    learnt = table(snapshot, "pairs").filter(split="train")
    return learnt.is_empty() and not load_task_pairs(snapshot).filter(split="train").is_empty()


def task_rows(pairs: pl.DataFrame, smoothing: float = 0.0) -> list[LabelRows]:
    """Return pairs (TASK_PAIRS and perhaps ``weight``) as rows by task, labels smoothed (A53)."""
    return [_rows(own, smoothing) for own in pairs.partition_by("task", maintain_order=True)]


def _rows(pairs: pl.DataFrame, smoothing: float) -> LabelRows:
    task = str(pairs["task"][0])
    space = TASK_SPACES[task]
    labels = one_hot(pairs["grade"].to_numpy().astype(np.int64), len(space.tokens))
    weights = pairs["weight"].to_numpy() if "weight" in pairs.columns else None
    fields = TaskTexts(task).of(pairs)
    return LabelRows(
        space, pairs["pair_id"].to_list(), *fields, smoothed(labels, smoothing), weights
    )


def _without_flagged(pairs: pl.DataFrame, filtered: Path, alone: bool) -> pl.DataFrame:
    """Weigh the pairs as the filter has weighed the relevance labels they were read from (A39).

    ``filtered``: a folder with ``decisions.parquet``. Pairs of qc are of other labels, and stay;
    where no relevance is learnt (``alone``) the filter has judged every pair itself.
    """
    known = read_table(filtered / "decisions.parquet", WEIGHTS).select("pair_id", "weight")
    joined = pairs.join(known, on="pair_id", how="left", maintain_order="left")
    lost = joined["weight"].null_count()
    if alone and lost:
        raise DataError(
            f"the filter's decisions say nothing of {lost} of {pairs.height} train pairs of the "
            "tasks; run filter_fold and filter_noise of this snapshot"
        )
    judged = pl.lit(True) if alone else pl.col("task") == "qi"
    weight = pl.when(judged).then(pl.col("weight").fill_null(1.0)).otherwise(1.0)
    return joined.with_columns(weight.cast(pl.Float32).alias("weight")).filter(pl.col("weight") > 0)


def halves(queries: pl.Series) -> pl.Series:
    """Return ``half``, which of :data:`HALVES` of dev each query is in, aligned (A40).

    Texts are dealt to the halves in turn, in the order of their digests: so the halves are of one
    size, and a text judged in two tasks or locales is in one of them.
    """
    texts = text_ids(normalised(queries))
    known = texts.unique().sort()
    found = [HALVES[i % 2] for i in range(len(known))]
    return texts.replace_strict(known, found, return_dtype=pl.String).alias("half")
