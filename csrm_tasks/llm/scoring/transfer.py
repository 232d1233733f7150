"""The transfer gap of a trained model: one pair in two languages, from held-out translations (A44).

A market translates titles and queries, not pairs, so pairs are put together here: every title with
the query it shares most letters with, which it may answer, and with another one, which it mostly
does not. Both languages show the same fields and no retrieved titles.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields
from csrm_tasks.llm.scoring.gap import median_gap, symmetric_gap, transfer_gap, translation_accuracy
from csrm_tasks.llm.scoring.predict import last_hidden

log = logging.getLogger("csrm")

Floats = npt.NDArray[np.float64]

DIRECTION = ("source_locale", "target_locale")
MAX_TITLES = 150  # two pairs each: under a second for the demo's model
FEWEST_PAIRS = 10  # below, the mean that eq. (6) divides by says nothing


@dataclass(frozen=True)
class ParallelPairs:
    """The same query-product pairs in two languages, aligned."""

    queries: Sequence[tuple[str, str]]  # (source, target)
    titles: Sequence[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.titles)


def parallel_pairs(translations: pl.DataFrame, most_titles: int = MAX_TITLES) -> ParallelPairs:
    """Pair up titles and queries of ``translations`` (TRANSLATIONS); the same rows, the same pairs.

    A title meets queries of its own direction. There are none where titles or queries are missing.
    """
    directions = translations.sort(DIRECTION).partition_by(DIRECTION, maintain_order=True)
    parts = [_paired(own, max(1, most_titles // len(directions))) for own in directions]
    queries = chain.from_iterable(p.queries for p in parts)
    titles = chain.from_iterable(p.titles for p in parts)
    return ParallelPairs([*queries], [*titles])


def _paired(translations: pl.DataFrame, most_titles: int) -> ParallelPairs:
    titles, queries = (
        translations.filter(pl.col("kind") == kind)
        .select("source_text", "target_text")
        .unique()
        .sort("source_text", "target_text")
        .rows()
        for kind in ("title", "query")
    )
    if not queries:
        return ParallelPairs((), ())
    step = max(1, -(-len(titles) // most_titles))
    chosen = titles[::step]
    letters = [set(source) for source, _ in queries]
    pairs = []
    for i, title in enumerate(chosen):
        shared = [len(own & set(title[0])) / len(own) for own in letters]
        best = int(np.argmax(shared))
        other = (best + 1 + i % max(1, len(queries) - 1)) % len(queries)
        pairs += [(queries[best], title), (queries[other], title)]
    pairs = list(dict.fromkeys(pairs))  # a single query is best and other
    return ParallelPairs([query for query, _ in pairs], [title for _, title in pairs])


def measure_transfer(
    model: Model, encoder: PromptEncoder, pairs: ParallelPairs
) -> dict[str, float | int]:
    """Return the figures of A44, or nothing where there are too few pairs."""
    if len(pairs) < FEWEST_PAIRS:
        return {}
    source, target = (_hidden(model, encoder, pairs, side) for side in (0, 1))
    try:
        return _figures(source, target)
    except DataError as e:  # a figure less is no reason to lose a training
        log.warning("no transfer gap: %s", e)
        return {}


def _figures(source: Floats, target: Floats) -> dict[str, float | int]:
    return {
        "transfer_pairs": len(source),
        "transfer_gap": transfer_gap(source, target),
        "transfer_gap_median": median_gap(source, target),
        "transfer_gap_symmetric": symmetric_gap(source, target),
        "translation_accuracy": translation_accuracy(source, target),
    }


def _hidden(model: Model, encoder: PromptEncoder, pairs: ParallelPairs, side: int) -> Floats:
    queries = [QueryFields(both[side]) for both in pairs.queries]
    products = [ProductFields(both[side]) for both in pairs.titles]
    encoder.prepare(RELEVANCE, queries, products)
    prompts = [encoder.prompt(RELEVANCE, q, p) for q, p in zip(queries, products, strict=True)]
    return hidden_states(model, prompts)


def hidden_states(model: Model, prompts: Sequence[Any]) -> Floats:
    """Return the hidden states that feed the label logits, (N, H), dropout off."""
    states = np.empty((len(prompts), model.causal.config.hidden_size))
    for at, hidden in last_hidden(model, [(p[:0], p) for p in prompts]):
        states[at] = hidden.float().cpu().numpy()
    return states
