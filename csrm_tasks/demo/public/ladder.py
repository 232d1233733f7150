"""The ladder of a study on the tasks qc and qi: majority, a linear model, the LLM of the market.

All learn from the train pairs of one snapshot, and each task's threshold is chosen on the same half
of the same dev (A40). They are judged on rows that no snapshot has held: the public test rows, or
names of categories kept apart. Those rows choose nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.evaluation.baselines import CharacterModel, Texts
from csrm_tasks.evaluation.tasks import by_language, figures, mean_f1
from csrm_tasks.llm.prompt.prompts import TASK_SPACES
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.llm.task_data import TaskTexts, load_task_pairs
from csrm_tasks.llm.training.task_judge import FILE, task_figures, with_halves
from csrm_tasks.markets import MarketConfig
from csrm_tasks.options import OPTIONS, options_on, without
from csrm_tasks.settings import Settings
from csrm_tasks.steps.running import run_step

Floats = np.ndarray[Any, np.dtype[np.float64]]
MAJORITY, LINEAR, SFT, MARKET = "majority", "linear", "LLM SFT", "LLM, market's options"
# Beside these the rows have ``grade``, null where there is no label.
ROWS = ("task", "locale", "query", "query_id", "item")


@dataclass(frozen=True)
class Rung:
    """What one model says of the rows: ``p`` of yes, aligned with them, and where it says yes."""

    name: str
    p: pl.Series
    thresholds: Mapping[str, float]  # by task
    dev_f1: float  # mean of the tasks' F1 on the half of dev that only reports

    def only(self, mask: pl.Series) -> Rung:
        """Return what it says of the rows of ``mask``."""
        return replace(self, p=self.p.filter(mask))

    def said(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return ``rows`` with ``p`` and ``said``, 1 for a yes."""
        limits = rows["task"].replace_strict(dict(self.thresholds), return_dtype=pl.Float64)
        yes = (self.p.cast(pl.Float64) >= limits).cast(pl.Int8)
        return rows.with_columns(self.p.alias("p"), yes.alias("said"))


@dataclass(frozen=True)
class Study:
    """A market's installation and the snapshot that its models learn from."""

    market: MarketConfig
    settings: Settings
    snapshot: str

    def rungs(self, rows: pl.DataFrame) -> Sequence[Rung]:
        """Return every rung of the ladder on ``rows`` (ROWS); what is trained is found again."""
        store = ArtifactStore(self.settings.artifacts, self.settings.cache)
        pairs = load_task_pairs(store.open(self.snapshot).path)
        train, dev = (pairs.filter(split=split) for split in ("train", "dev"))
        found = [_fitted(MAJORITY, _majority, train, dev, rows, self.market.target_locale)]
        found.append(_fitted(LINEAR, _linear, train, dev, rows, self.market.target_locale))
        for name, llm in train_rungs(self.market, self.settings, self.snapshot):
            found.append(_llm(name, llm, rows))
        return found


def train_rungs(
    market: MarketConfig, settings: Settings, snapshot: str
) -> Iterator[tuple[str, Artifact]]:
    """Yield the LLM without the options that must earn their place (A41), and with the market's.

    What is trained is found again. One that has learnt nothing is a finding, too: a study is no
    release.
    """
    plain = without(market, options_on(market))
    own = without(market, left_to_the_week(market))
    store = ArtifactStore(settings.artifacts, settings.cache)
    for name, arm in ((SFT, plain), (MARKET, own))[: 1 if own.llm == plain.llm else 2]:
        llm = arm.llm.model_copy(update={"must_learn": False})
        arm = arm.model_copy(update={"llm": llm})
        ref = run_step("train_llm", arm, {"snapshot": snapshot}, {"arm": "study"}, settings)
        yield name, store.open(ref)


def left_to_the_week(market: MarketConfig) -> list[str]:
    """Return the options that are on and that other steps of ``csrm_retrain`` bring."""
    on = options_on(market)
    return [o.key for o in OPTIONS if o.key in on and o.brought_by is not None]


def _llm(name: str, llm: Artifact, rows: pl.DataFrame) -> Rung:
    scorer = RelevanceScorer.load(llm.path)

    def score(task: str, own: pl.DataFrame) -> pl.Series:
        scored = scorer.score(TASK_SPACES[task], TaskTexts(task), own)
        return scored["p1"].cast(pl.Float64)

    dev = json.loads(llm.file(FILE).read_text(encoding="utf-8"))
    return _rung(name, _by_task(rows, score), dev)


def judged(rows: pl.DataFrame, rung: Rung) -> dict[str, Any]:
    """Return of the labelled ``rows`` each task's figures, by language too, and their mean F1."""
    said = rung.said(rows).drop_nulls("grade")
    found = {
        str(task): figures(own) | {"languages": by_language(own)}
        for (task,), own in said.group_by("task", maintain_order=True)
    }
    return {"by_task": found, "mean_f1": mean_f1(found)}


def _by_task(rows: pl.DataFrame, score: Callable[[str, pl.DataFrame], pl.Series]) -> pl.Series:
    """Return ``score`` of the rows of each task, aligned with ``rows``."""
    placed = rows.with_row_index("place")
    parts = [
        own.select("place").with_columns(p=score(str(task), own))
        for (task,), own in placed.group_by("task", maintain_order=True)
    ]
    return pl.concat(parts).sort("place")["p"]


Fit = Callable[[pl.DataFrame, pl.DataFrame], Callable[[pl.DataFrame], Floats]]


def _fitted(
    name: str, fit: Fit, train: pl.DataFrame, dev: pl.DataFrame, rows: pl.DataFrame, target: str
) -> Rung:
    """Fit a model on each task's pairs, and choose its threshold as the LLM's is chosen."""
    said: dict[str, Any] = {}

    def score(task: str, own: pl.DataFrame) -> pl.Series:
        known = dev.filter(task=task)
        model = fit(train.filter(task=task), known)
        scored = with_halves(known, target).with_columns(pl.Series("p", model(known)))
        said[task] = task_figures(task, scored)
        return pl.Series("p", model(own), dtype=pl.Float64)

    return _rung(name, _by_task(rows, score), said)


def _rung(name: str, p: pl.Series, dev: Mapping[str, Any]) -> Rung:
    """``dev``: by task what :func:`task_figures` says."""
    limits = {task: float(said["threshold"]) for task, said in dev.items()}
    f1 = mean_f1({task: said["reported"] for task, said in dev.items()})
    return Rung(name, p, limits, 0.0 if f1 is None else f1)


def _majority(train: pl.DataFrame, dev: pl.DataFrame) -> Callable[[pl.DataFrame], Floats]:
    yes = train.filter(grade=1).height / max(1, train.height)
    return lambda rows: np.full(rows.height, yes)


def _linear(train: pl.DataFrame, dev: pl.DataFrame) -> Callable[[pl.DataFrame], Floats]:
    grades = [f["grade"].to_numpy().astype(np.int64) for f in (train, dev)]
    model = CharacterModel().fit(_texts(train), grades[0], _texts(dev), grades[1])
    return lambda rows: model.probabilities(_texts(rows))[:, 1]


def _texts(pairs: pl.DataFrame) -> Texts:
    low = pairs.select(pl.col("query", "item").str.to_lowercase())
    return Texts(low["query"].to_list(), low["item"].to_list(), [""] * pairs.height)
