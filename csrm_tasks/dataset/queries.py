"""The queries of a snapshot: judged, logged, translated, or derived from titles (A21)."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import polars as pl

from csrm_tasks.dataset.brands import BrandDictionary
from csrm_tasks.text import normalise, normalised, query_ids

DISTILLED = "distilled"  # derived from titles as well, for the towers alone (A31)
ORIGINS = ("label", "log", "translated", "derived", DISTILLED)  # the first that a query has counts
TYPED = {"locale": pl.String, "query": pl.String, "n": pl.Int64, "origin": pl.String}
BRACKETS = re.compile(r"[\[(【（「〔][^\])】）」〕]*[\])】）」〕]")
SEPARATORS = re.compile(r"[\s,，、;；/|·•~～]+")
QUANTITY = re.compile(r"\d")
KINDS = {"word": 0.6, "both": 0.3, "brand": 0.1}  # of derived queries, about as shoppers ask
SHARED = 0.5  # of a word's titles must lie in one category, and more
LONGEST = 24  # characters; shoppers do not type more


def build_queries(
    typed: pl.DataFrame, impressions: pl.DataFrame, brands: Mapping[str, BrandDictionary]
) -> pl.DataFrame:
    """Return the QUERIES table, one row per normalised query and locale, sorted by query_id.

    ``typed``: locale, query as typed, n (how often), origin. ``impressions``: query_id and sum.
    """
    frame = typed.with_columns(normalised(typed["query"]).alias("norm")).filter(
        pl.col("norm") != ""
    )
    rank = pl.col("origin").replace_strict(ORIGINS, list(range(len(ORIGINS))), return_dtype=pl.Int8)
    key = ["locale", "norm"]
    spelt = frame.group_by(*key, "query").agg(pl.col("n").sum(), rank.min().alias("rank"))
    spelt = spelt.with_columns(pl.col("rank").min().over(key))
    best = spelt.sort(*key, "n", "query", descending=[False, False, True, False])
    best = best.unique(key, keep="first", maintain_order=True).with_columns(
        pl.col("rank").replace_strict(list(range(len(ORIGINS))), ORIGINS).alias("origin")
    )
    ids = [
        part.with_columns(
            brands[part["locale"][0]].match(part["norm"]).alias("brand"),
            query_ids(part["locale"][0], part["norm"]).alias("query_id"),
        )
        for part in best.partition_by("locale", maintain_order=True)
    ]
    empty = best.clear().with_columns(pl.lit("").alias("brand"), pl.lit("").alias("query_id"))
    joined = pl.concat([empty, *ids]).join(impressions, on="query_id", how="left")
    return joined.with_columns(pl.col("impressions").fill_null(0)).sort("query_id")


def retriever_queries(queries: pl.DataFrame) -> pl.DataFrame:
    """Return the queries that the retriever learns from: all but those for the towers alone."""
    return queries.filter(pl.col("origin") != DISTILLED)


def derived_queries(
    titles: Iterable[tuple[str, str]], brands: BrandDictionary, most: int
) -> list[tuple[str, int]]:
    """Return at most ``most`` (query, titles that give it) of three kinds in :data:`KINDS` shares.

    ``titles``: title and category path. A title gives its first word after brackets, brand and
    quantities, its last word, its brand, and brand and first word together: what merchants put
    first and last is what the thing is. Of each kind the commonest are taken. A word that several
    categories share (new, gift, black) is no query: most of its titles must be in one category.
    """
    tallies: dict[str, dict[str, Counter[str]]] = {kind: defaultdict(Counter) for kind in KINDS}
    split = [(_words(title), category) for title, category in titles]
    named = _named({word for words, _ in split for word in words}, brands)
    for words, category in split:
        for kind, query in _parts(words, named):
            tallies[kind][query][category] += 1
    ranked: list[tuple[float, str, int]] = []
    for kind, share in KINDS.items():
        counts = [
            (-c.total(), query)
            for query, c in tallies[kind].items()
            if 2 <= len(query) <= LONGEST
            and (kind == "brand" or max(c.values()) > SHARED * c.total())
        ]
        ranked += [(i / share, q, -n) for i, (n, q) in enumerate(sorted(counts), start=1)]
    return [(query, n) for _, query, n in sorted(ranked)[:most]]


def _words(title: str) -> list[str]:
    return [w for w in SEPARATORS.split(normalise(BRACKETS.sub(" ", title))) if w]


def _named(words: set[str], brands: BrandDictionary) -> set[str]:
    """Return those of ``words`` that name a brand."""
    column = pl.Series(sorted(words), dtype=pl.String)
    return set(column.filter(brands.match(column) != ""))


def _parts(words: list[str], brands: set[str]) -> set[tuple[str, str]]:
    """Return (kind, query) of a title's words."""
    named = [w for w in words if w in brands]
    rest = [w for w in words if w not in named and not QUANTITY.search(w)]
    made = {("brand", named[0])} if named else set()
    if rest:
        made |= {("word", rest[0]), ("word", rest[-1])}
    if named and rest:
        made.add(("both", f"{named[0]} {rest[0]}"))
    return made
