"""RQA of a whole snapshot: every query's titles, thresholds from dev, accuracy (A24, A26)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from csrm_tasks.records import RQA
from csrm_tasks.retrieval.judged import judged_accuracy
from csrm_tasks.retrieval.quality import (
    Accuracy,
    Retrieved,
    choose_threshold,
    judged_titles,
    rqa_accuracy,
)
from csrm_tasks.retrieval.rqa import RqaRetriever, Title

KEEP_ALL = -1.0  # a cosine is never below


@dataclass(frozen=True)
class LocaleRqa:
    """One locale's candidates before the threshold, and what raters said of its products."""

    locale: str
    retrieved: Retrieved
    judged: dict[str, pl.DataFrame]  # split → JUDGED
    answers: pl.DataFrame  # judgements of titles by people (ANSWERS)
    lexical: Retrieved  # of BM25 alone, for the queries of ``answers``: a comparison


def retrieve_locale(
    locale: str,
    retriever: RqaRetriever,
    tables: Mapping[str, pl.DataFrame],
    title_tokens: int,
    answers: pl.DataFrame,
) -> LocaleRqa:
    """Retrieve for every query; ``tables`` are one locale's queries, products and pairs."""
    queries = tables["queries"]
    titles = retriever.retrieve(queries["norm"].to_list())
    judged = {
        str(split): judged_titles(group, tables["products"], title_tokens)
        for (split,), group in tables["pairs"].group_by(["split"], maintain_order=True)
    }
    asked = queries.join(answers, on="query_id", how="semi")
    alone = retriever.without_dense().retrieve(asked["norm"].to_list())
    return LocaleRqa(
        locale, dict(zip(queries["query_id"], titles, strict=True)), judged, answers,
        dict(zip(asked["query_id"], alone, strict=True)),
    )  # fmt: skip


def thresholds(parts: list[LocaleRqa], k: int) -> dict[str, float]:
    """Choose each locale's cosine threshold on its own dev judgements (A24).

    A locale whose dev judges too little (a new market) takes the mean of those that could choose:
    one encoder embeds both languages. Where none could, everything is kept.
    """
    own = {
        p.locale: choose_threshold(p.retrieved, p.judged["dev"], k)
        for p in parts
        if "dev" in p.judged
    }
    chosen = {locale: t for locale, t in own.items() if t is not None}
    shared = sum(chosen.values()) / len(chosen) if chosen else KEEP_ALL
    return {p.locale: chosen.get(p.locale, shared) for p in parts}


def summarise(part: LocaleRqa, titles_of: Retrieved, k: int) -> dict[str, Any]:
    """Return how often titles are right (A26).

    ``judged_*``: by people, beside BM25 alone. ``rqa_accuracy``: the proxy over all
    graded pairs, and over dev and gold alone.
    """
    lexical = {q: titles[:k] for q, titles in part.lexical.items()}
    by_people = {
        "judged_accuracy": judged_accuracy(titles_of, part.answers),
        "judged_accuracy_bm25": judged_accuracy(lexical, part.answers),
    }
    held_out = [part.judged[s] for s in ("dev", "gold") if s in part.judged]
    everything = _accuracy(titles_of, list(part.judged.values()))
    unseen = _accuracy(titles_of, held_out)
    return {
        **{name: share for name, (share, _) in by_people.items()},
        "judged_titles": by_people["judged_accuracy"][1],
        "rqa_accuracy": everything.value,
        "judged": everything.judged,
        "rqa_accuracy_dev_gold": unseen.value,
        "judged_dev_gold": unseen.judged,
        "titles": everything.retrieved,
        "queries_without_title": sum(not titles for titles in titles_of.values()),
    }


def _accuracy(titles_of: Retrieved, judged: list[pl.DataFrame]) -> Accuracy:
    return rqa_accuracy(titles_of, pl.concat(judged)) if judged else Accuracy(None, 0, 0)


def rqa_table(titles_of: Mapping[str, list[Title]]) -> pl.DataFrame:
    """Return the RQA frame, one row a query, sorted by query_id; empty lists where nothing is."""
    rows = [
        (q, [t.title for t in ts], [t.product_id for t in ts], [t.score for t in ts])
        for q, ts in sorted(titles_of.items())
    ]
    return pl.DataFrame(rows, RQA, orient="row")
