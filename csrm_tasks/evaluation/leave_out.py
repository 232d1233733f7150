"""What each source language is worth to the others: a model without it, judged on its own dev.

A control (A36): the linear baseline of :mod:`.baselines`, for it takes seconds, is trained on all
train pairs and on all but one language's; both judge that language's dev pairs. A query text is in
one split in all languages (A10), so neither has seen one of these queries in any. Gold is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.evaluation.baselines import CharacterModel, texts_of
from csrm_tasks.evaluation.metrics import Floats, confusion_by_query, micro_f1
from csrm_tasks.evaluation.paired import difference, interval, resample, verdict

Json = dict[str, Any]
GRADES = 3


def leave_out(
    pairs: pl.DataFrame,
    queries: pl.DataFrame,
    products: pl.DataFrame,
    sources: Sequence[str],
    target: str,
) -> list[Json]:
    """Return of each source language what was learnt of it without it, and with it.

    ``pairs`` (PAIRS) that the other two tables know. Each has locale, train_pairs (of the other
    languages), pairs and queries (of its dev), and micro_f1 ``without``, ``with`` and their
    difference with intervals by query (A45); where nothing can be said, ``reason`` in their place.
    Regularisation is chosen on the target's dev, or on that of all languages but the one left out.
    """
    train, dev = (pairs.filter(pl.col("split") == s).sort("pair_id") for s in ("train", "dev"))
    texts = (queries, products)
    everything = _fit(train, _choosing(dev, target, None), texts)
    return [_one(locale, train, dev, target, texts, everything) for locale in sources]


def _one(
    locale: str,
    train: pl.DataFrame,
    dev: pl.DataFrame,
    target: str,
    texts: tuple[pl.DataFrame, pl.DataFrame],
    everything: CharacterModel | None,
) -> Json:
    own, others = dev.filter(pl.col("locale") == locale), train.filter(pl.col("locale") != locale)
    about: Json = {"locale": locale, "train_pairs": others.height, "pairs": own.height}
    about["queries"] = own["query_id"].n_unique()
    if own.is_empty():
        return about | {"reason": "it has no dev pairs"}
    without = _fit(others, _choosing(dev, target, locale), texts)
    if without is None or everything is None:
        return about | {"reason": "the other languages' labels are of fewer than two grades"}
    given = [_confusions(model, own, texts) for model in (without, everything)]
    weights = resample(about["queries"])
    change = difference(given[0], given[1], micro_f1, weights)
    figures = [interval(one, micro_f1, weights).as_json() for one in given]
    about |= dict(zip(("without", "with"), figures, strict=True))
    return about | {"difference": change.as_json() | {"verdict": verdict(change)}}


def _choosing(dev: pl.DataFrame, target: str, left_out: str | None) -> pl.DataFrame:
    local = dev.filter(pl.col("locale") == target)
    if local.height or left_out is None:
        return local if local.height else dev
    return dev.filter(pl.col("locale") != left_out)


def _fit(
    train: pl.DataFrame, dev: pl.DataFrame, texts: tuple[pl.DataFrame, pl.DataFrame]
) -> CharacterModel | None:
    if train["grade"].n_unique() < 2:
        return None
    grades = [frame["grade"].cast(pl.Int64).to_numpy() for frame in (train, dev)]
    return CharacterModel().fit(
        texts_of(train, *texts), grades[0], texts_of(dev, *texts), grades[1]
    )


def _confusions(
    model: CharacterModel, own: pl.DataFrame, texts: tuple[pl.DataFrame, pl.DataFrame]
) -> Floats:
    said = model.probabilities(texts_of(own, *texts)).argmax(1)
    ids = own["query_id"].unique(maintain_order=True).to_list()
    row = {q: i for i, q in enumerate(ids)}
    query = np.array([row[q] for q in own["query_id"]], dtype=np.int64)
    truth = own["grade"].cast(pl.Int64).to_numpy()
    return confusion_by_query(truth, said, query, len(ids), GRADES)
