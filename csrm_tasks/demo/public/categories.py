"""Category retrieval: from a name in any language to the category's path in English.

An encoder is compared as it comes, trained on the languages that are learnt, and, as a control,
trained on all of them: how much of what it lacks in a language held out is that language's absence.
Every path is a candidate, those of train too. Steps and rates are fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.demo.public.names import Names, relevant
from csrm_tasks.evaluation.measures import share
from csrm_tasks.evaluation.paired import Interval, interval, resample
from csrm_tasks.retrieval.ebr import EbrTrainer
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.exact import exact_search
from csrm_tasks.retrieval.pairs import LocalePairs, TrainingPairs
from csrm_tasks.sections import Ebr

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
DEPTH = 10
FIGURES = ("recall_at_1", "recall_at_10", "mrr_at_10")


@dataclass(frozen=True)
class Retrieved:
    """Figures of one language: of each query (Q, 3), and over all of them with intervals."""

    queries: int
    by_query: Floats  # FIGURES

    def intervals(self) -> dict[str, Interval]:
        """Return each figure's mean with its interval by query."""
        weights = resample(self.queries)
        ones = np.ones(self.queries)
        return {
            name: interval(np.stack([self.by_query[:, i], ones], 1), share, weights)
            for i, name in enumerate(FIGURES)
        }


def training_pairs(names: Names, queries: pl.DataFrame) -> TrainingPairs:
    """Return ``queries`` with their categories' paths, one row for equal texts of all languages.

    So a path never stands among the negatives of its own name in another language.
    """
    texts: dict[str, int] = {}
    query = np.array([texts.setdefault(n, len(texts)) for n in queries["norm"]], np.int64)
    pairs = np.unique(np.stack([queries["category"].to_numpy(), query], 1), axis=0)  # by title
    title, query = pairs[:, 0], pairs[:, 1]
    known = np.sort(query * len(names.paths) + title)
    weight = np.ones(len(title), np.float32)
    catalogue = np.arange(len(names.paths), dtype=np.int64)
    part = LocalePairs("all", query, title, weight, catalogue, known)
    return TrainingPairs(list(texts), names.paths, (part,))


def base_encoder(config: Ebr, seed: int) -> BiEncoder:
    """Return the encoder as it comes; raises :class:`ConfigError` where it cannot be loaded."""
    return BiEncoder.from_base(
        config.encoder, config.dim, config.max_length, seed, config.query_prefix,
        config.title_prefix,
    )  # fmt: skip


def trained(names: Names, queries: pl.DataFrame, config: Ebr, seed: int, work: Path) -> BiEncoder:
    """Train on ``queries``; killed, it goes on from its checkpoint below ``work``."""
    model = base_encoder(config, seed)
    EbrTrainer(model, training_pairs(names, queries), config, seed, work).run()
    return model


def search(model: BiEncoder, names: Names, queries: pl.DataFrame) -> Mapping[str, Retrieved]:
    """Return the figures of ``queries`` by locale."""
    paths = model.encode_titles(names.paths)
    found = {}
    for (locale,), own in queries.group_by("locale", maintain_order=True):
        asked = own.unique("query_id", keep="first", maintain_order=True)
        rows, _ = exact_search(paths, model.encode_queries(asked["norm"].to_list()), DEPTH)
        figures = [_figures(r, right) for r, right in zip(rows, relevant(own), strict=True)]
        found[str(locale)] = Retrieved(asked.height, np.array(figures, np.float64))
    return found


def _figures(rows: Ints, right: Ints) -> tuple[float, float, float]:
    """Recall at 1 and at 10 (of as many as could be found), reciprocal rank of the first hit."""
    hits = np.isin(rows, right)
    first = int(hits.argmax()) + 1 if hits.any() else 0
    within = hits.sum() / min(len(right), DEPTH)
    return float(hits[0]), float(within), 1.0 / first if first else 0.0
