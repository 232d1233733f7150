"""What dev says of a model: it keeps the best state and chooses the best candidate (A10, A17)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.llm.data import LabelRows, languages
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE
from csrm_tasks.llm.scoring.calibration import log_loss
from csrm_tasks.llm.scoring.predict import Floats, predict
from csrm_tasks.llm.scoring.probabilities import with_probabilities
from csrm_tasks.llm.training.train import DevScore


class Judge:
    """Scores one fixed set of judged pairs with the model as it is."""

    def __init__(self, model: Model, encoder: PromptEncoder, rows: LabelRows) -> None:
        self._model, self._encoder, self._rows = model, encoder, rows
        self._labels = rows.targets.argmax(axis=1)
        self.last: Floats | None = None  # what was found last

    def probabilities(self) -> Floats:
        """Return (N, 3)."""
        rows = self._rows
        found = predict(self._model, self._encoder, RELEVANCE, rows.queries, rows.products)
        self.last = found
        return found

    def score(self) -> DevScore:
        """Return micro-F1 (which is accuracy, A42) and log loss."""
        return self.of(self.probabilities())

    def of(self, probabilities: Floats) -> DevScore:
        """Return the score of ``probabilities`` (N, 3), found before."""
        right = probabilities.argmax(axis=1) == self._labels
        return DevScore(
            float(right.mean()), log_loss(probabilities.astype(np.float64), self._labels)
        )


def dev_figures(
    score: DevScore,
    dev: pl.DataFrame,
    probabilities: Floats | None,
    source: Judge,
    source_dev: pl.DataFrame,
) -> dict[str, Any]:
    """Return a candidate's facts on dev and on source dev, which ``source`` judges.

    ``score`` and ``probabilities`` (N, 3) are of dev. The two are the same pairs where the target
    has none; None where there are no source pairs. Without dev pairs of relevance the score is that
    of the other tasks, and there are no probabilities.
    """
    source_f1 = None if source_dev.is_empty() else score.micro_f1
    by_locale = {} if probabilities is None else micro_f1_by_locale(dev, probabilities)
    if not source_dev.equals(dev):
        found = None if source_dev.is_empty() else source.probabilities()
        source_f1 = None if found is None else source.of(found).micro_f1
        by_locale |= {} if found is None else micro_f1_by_locale(source_dev, found)
    return {
        "dev_micro_f1": score.micro_f1,
        "dev_log_loss": score.log_loss,
        "dev_locale": languages(dev),
        "source_dev_micro_f1": source_f1,
        "dev_micro_f1_by_locale": by_locale,
    }


def micro_f1_by_locale(pairs: pl.DataFrame, probabilities: Floats) -> dict[str, float]:
    """Return the share of pairs whose grade is the most probable one, by language."""
    right = pl.Series("right", probabilities.argmax(axis=1)) == pairs["grade"]
    shares = pairs.select("locale", right=right).group_by("locale").agg(pl.col("right").mean())
    return dict(shares.sort("locale").iter_rows())


def write_dev_scores(dev: pl.DataFrame, probabilities: Floats, out: Path) -> None:
    """Write ``dev_scores.parquet`` below ``out``: what ``select_llm`` calibrates on (A30)."""
    with_probabilities(dev, probabilities.astype(np.float64)).select(
        "pair_id", "grade", "p0", "p1", "p2"
    ).write_parquet(out / "dev_scores.parquet")
