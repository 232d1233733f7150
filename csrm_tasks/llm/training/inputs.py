"""What one training of the LLM reads, and the tasks that it learns from it (A6-A9, A37-A39)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.llm.augmented import joined, load_negatives, misspelt_rows, negative_rows
from csrm_tasks.llm.data import (
    Fields,
    LabelRows,
    TranslationRows,
    corrected_targets,
    cvr_rows,
    distilled_targets,
    human_targets,
    in_fold,
    load_fields,
    load_pairs,
    load_translations,
    relevance_rows,
    selection_dev,
    translation_rows,
    weighted,
)
from csrm_tasks.llm.languages import families, load_meanings
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import LABEL_SPACES
from csrm_tasks.llm.scoring.transfer import ParallelPairs, parallel_pairs
from csrm_tasks.llm.task_augmented import (
    load_task_negatives,
    load_texts,
    with_negatives,
    with_task_negatives,
    with_translated,
)
from csrm_tasks.llm.task_data import held_out_task_texts, task_rows, training_task_pairs
from csrm_tasks.llm.training.mixture import Mixture, TaskShare
from csrm_tasks.llm.training.tasks import LabelTask, TranslationTask
from csrm_tasks.llm.translated import load_translated, translated_rows
from csrm_tasks.markets import MarketConfig

log = logging.getLogger("csrm")


@dataclass(frozen=True)
class FinetuneInputs:
    """What one training starts from."""

    snapshot: Path
    rqa: Path | None
    soft: Path | None
    arm: str
    round: int
    fold: int | None = None  # train on the pairs of this half of the queries only (A18)
    warm: Path | None = None  # the model whose adapter is the start instead of a fresh one
    ranker: bool = False  # it is to rank by conversion only (A21)
    pretraining: Path | None = None  # stage 0's adapter, merged into the base
    filtered: Path | None = None  # what the filter has decided about the train pairs (A39)
    negatives: Path | None = None  # irrelevant pairs that nobody judged (A38)
    translated: Path | None = None  # train pairs with translated queries (A37)

    def leaving_out(self, names: Collection[str]) -> FinetuneInputs:
        """Return them without the optional ones of ``names``: of options that are off (A41)."""
        return FinetuneInputs(**(vars(self) | dict.fromkeys(names)))


@dataclass(frozen=True)
class TrainingData:
    """All rows of one training."""

    train: LabelRows  # what people judged
    grades: npt.NDArray[np.int64]  # human, of the train rows
    negatives: LabelRows
    misspelt: LabelRows
    translated: LabelRows
    cvr: LabelRows
    translations: TranslationRows
    dev: pl.DataFrame
    source_dev: pl.DataFrame
    fields: Fields
    parallel: ParallelPairs  # held-out translations (A44)
    meanings: Mapping[str, str] | None  # of queries in other languages, where these are mixed
    tasks: Sequence[LabelRows]  # what people said in the tasks besides relevance
    task_dev: pl.DataFrame  # TASK_PAIRS

    @property
    def spaces(self) -> list[str]:
        """Names of the label spaces that are learnt."""
        own = list(LABEL_SPACES) if len(self.train) else []
        return own + [rows.space.name for rows in self.tasks]

    @property
    def labels(self) -> tuple[LabelRows, npt.NDArray[np.int64]]:
        """The rows by which it is told what was learnt, and their labels."""
        if len(self.train):
            return self.train, self.grades
        return self.tasks[0], self.tasks[0].targets.argmax(axis=1).astype(np.int64)


def load_training_data(market: MarketConfig, given: FinetuneInputs) -> TrainingData:
    """Read all rows; raises :class:`DataError` where there is nothing to learn from."""
    fields = load_fields(given.snapshot, given.rqa, market.llm.pivot)
    pairs = load_pairs(given.snapshot, "train")
    task_train, task_dev = training_task_pairs(given.snapshot, given.fold, given.filtered)
    if given.ranker:
        task_train = task_train.clear()
    only_tasks = pairs.is_empty() and not task_train.is_empty()
    if given.fold is not None:
        pairs = in_fold(pairs, given.fold)
    if pairs.is_empty() and not only_tasks:
        raise DataError("the snapshot has no train pairs; ingest labels before training")
    weights = None
    if given.filtered is not None:
        pairs, weights = weighted(pairs, given.filtered)
        if pairs.is_empty() and not only_tasks:
            raise DataError("the filter has left no train pair; look at its decisions.parquet")
    target = market.target_locale
    both_devs = (pairs, pairs) if only_tasks else selection_dev(given.snapshot, target)
    alpha, smoothing = market.llm.distillation.alpha, market.llm.label_smoothing
    if given.soft is None:
        targets = human_targets(pairs, smoothing)
    else:
        targets = distilled_targets(pairs, given.soft, alpha, smoothing)
    rows = replace(relevance_rows(fields, pairs, targets), weights=weights)
    if market.llm.noise_correction:
        corrected = corrected_targets(pairs, given.snapshot, given.soft, alpha)
        rows = replace(rows, corrected=corrected)
    negatives = _negatives(given, only_tasks)
    translated = load_translated(given.snapshot, given.translated)
    lighter = market.llm.negatives.weight, market.llm.augmentation.weight
    if not task_train.is_empty():
        held_out = held_out_task_texts(given.snapshot)
        texts = load_texts(given.snapshot, given.translated)
        task_train = with_translated(task_train, held_out, texts, lighter[1])
        task_train = with_negatives(task_train, fields, negatives, lighter[0])
        if only_tasks:
            drawn = load_task_negatives(given.snapshot, given.negatives)
            task_train = with_task_negatives(task_train, drawn, lighter[0])
    return TrainingData(
        rows,
        pairs["grade"].to_numpy().astype(np.int64),
        negative_rows(fields, negatives, lighter[0]),
        misspelt_rows(fields, pairs, rows, market.llm.misspelt_share, market.seed),
        translated_rows(fields, translated, rows, lighter[1]),
        cvr_rows(fields, given.snapshot),  # not learnt by tasks alone
        translation_rows(given.snapshot),
        *both_devs,
        fields,
        parallel_pairs(load_translations(given.snapshot, "dev")),
        load_meanings(given.snapshot) if market.llm.mix_languages else None,
        task_rows(task_train, smoothing),
        task_dev,
    )


def _negatives(given: FinetuneInputs, only_tasks: bool) -> pl.DataFrame:
    """Return what was drawn for the train queries, of this half only where cross-fitting (A38).

    Without relevance there are none: those of its tasks are in a file of their own.
    """
    found = load_negatives(given.snapshot, None if only_tasks else given.negatives)
    return found if given.fold is None else in_fold(found, given.fold)


def mixture_of(
    market: MarketConfig, data: TrainingData, model: Model, encoder: PromptEncoder
) -> Mixture:
    """Return the tasks that are learnt, each with its share of a batch (A6)."""
    config, seed = market.llm, market.seed
    shares = config.mixture
    label_task = partial(
        LabelTask, model, encoder=encoder, rqa_dropout=config.rqa_dropout, siblings=config.siblings
    )
    parts = []
    if len(data.train):
        relevance = joined(data.train, data.negatives, data.misspelt, data.translated)
        kin = None if data.meanings is None else families(relevance.queries, data.meanings)
        parts.append(TaskShare(label_task(rows=relevance, seed=seed, families=kin), 1.0))
    if len(data.translations):
        task = TranslationTask(model, data.translations, encoder, seed + 1)
        parts.append(TaskShare(task, shares.mt, shares.mt_weight))
        if config.augmentation.translator == "llm":  # which is asked the way back, too (A37)
            turned = data.translations.turned()
            back = TranslationTask(model, turned, encoder, seed + 5, "mt_back")
            parts.append(TaskShare(back, shares.mt, shares.mt_weight))
    if len(data.cvr) and len(data.train):
        cvr = label_task(rows=data.cvr, seed=seed + 2)
        parts.append(TaskShare(cvr, shares.cvr, shares.cvr_weight))
    for number, rows in enumerate(data.tasks, seed + 3):
        share = {"qc": shares.qc, "qi": shares.qi}[rows.space.name]
        parts.append(TaskShare(label_task(rows=rows, seed=number), share))
    log.info(
        "training on %d judged pairs, %d negatives, %d pairs of misspelt and %d of translated "
        "queries, %d translations, %d conversion examples",
        len(data.train), len(data.negatives), len(data.misspelt), len(data.translated),
        len(data.translations), len(data.cvr),
    )  # fmt: skip
    for rows in data.tasks:
        log.info("and on %d pairs of task %s", len(rows), rows.space.name)
    return Mixture(parts, config.batch, seed)
