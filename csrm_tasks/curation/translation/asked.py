"""Which train queries are translated into which languages (A36, A37), and which texts never may be.

Languages are derived: those that models are judged in and that have no train labels. Nothing is
asked of a query that is held out, nor of one whose text is (A10).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

import polars as pl

from csrm_tasks.dataset.sides import text_ids
from csrm_tasks.dataset.splits import held_out_queries, uniform
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import Schema
from csrm_tasks.text import normalised

ASKED: Schema = {
    "query_id": pl.String,
    "locale": pl.String,
    "query": pl.String,
    "norm": pl.String,
    "brand": pl.String,
    "to_locale": pl.String,
}


def missing_locales(market: MarketConfig, pairs: pl.DataFrame) -> list[str]:
    """Return the languages that evaluation has and training labels lack, sorted (A36).

    ``pairs``: PAIRS. Evaluation has the market's gold languages, whether anybody judged them yet or
    not, and every language of dev and gold. (:meth:`MarketConfig.missing_locales` is of a stage,
    this of what was labelled.)
    """
    judged = pairs.filter(pl.col("split") != "train")["locale"]
    trained = pairs.filter(pl.col("split") == "train")["locale"]
    return sorted({*market.gold_locales, *judged} - set(trained))


@dataclass(frozen=True)
class Asked:
    """What is to be translated, and what is not."""

    queries: pl.DataFrame  # ASKED, sorted
    held_out: int  # train queries whose text is a dev or gold one
    capped: int  # queries left out, over all languages, so that none has more rows than originals


def asked_queries(
    queries: pl.DataFrame, pairs: pl.DataFrame, missing: list[str], seed: int
) -> Asked:
    """Return the train queries to translate into each of ``missing``.

    A language gets at most as many pairs as the largest training language has of its own (1 ×,
    A37): whole queries, in an order that depends on seed, language and query alone.
    """
    train = pairs.filter(pl.col("split") == "train")
    judged = train.group_by("query_id").agg(rows=pl.len())
    own = queries.join(judged, on="query_id").sort("query_id")
    held_out = held_out_queries(queries, pairs)
    free = own.join(held_out, on="query_id", how="anti", maintain_order="left")
    most = max(train.group_by("locale").len()["len"].to_list(), default=0)
    parts = [pl.DataFrame(schema=ASKED)]
    for locale in missing:
        places = [uniform(seed, "translate", locale, q) for q in free["query_id"]]
        drawn = free.with_columns(pl.Series("u", places, pl.Float64), to_locale=pl.lit(locale))
        drawn = drawn.sort("u", "query_id").filter(pl.col("rows").cum_sum() <= most)
        parts.append(drawn.select(list(ASKED)))
    asked = pl.concat(parts).sort("to_locale", "query_id")
    capped = free.height * len(missing) - asked.height
    return Asked(asked, own.height - free.height, capped)


@dataclass(frozen=True)
class Barred:
    """Texts that no translation may be: dev and gold queries, in whichever locale (A10)."""

    norms: Set[str]  # of this snapshot
    texts: Set[str]  # digests of what any snapshot held for dev or gold

    @classmethod
    def of(cls, queries: pl.DataFrame, pairs: pl.DataFrame, texts: Iterable[str]) -> Barred:
        """``texts``: digests of what any snapshot held for dev or gold (:func:`known_sides`).

        A cold start's own snapshot has no target query, and cannot tell which of them are gold.
        """
        held_out = queries.join(held_out_queries(queries, pairs), on="query_id", how="semi")
        return cls(frozenset(held_out["norm"]), frozenset(texts))

    def hold(self, texts: list[str]) -> list[bool]:
        """Say of each text whether it is one of them."""
        norms = normalised(pl.Series("norm", texts, dtype=pl.String))
        ids = text_ids(norms)
        return [n in self.norms or i in self.texts for n, i in zip(norms, ids, strict=True)]
