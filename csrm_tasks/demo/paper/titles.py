"""How often retrieved titles are right (paper 1, section 5.2; A26): BM25, EBR, RQA*."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from csrm_tasks.demo.market.search import Shelves
from csrm_tasks.demo.paper.ladder import Ladder
from csrm_tasks.demo.paper.market import StudyMarket, Truth
from csrm_tasks.demo.paper.recipe import Recipe
from csrm_tasks.demo.paper.results import Found
from csrm_tasks.demo.study import arms
from csrm_tasks.demo.study.data import load_pairs
from csrm_tasks.records import RQA, read_table

Right = dict[tuple[str, str], bool]  # (query, product) → whether the title answers the query


def titles(market: StudyMarket, recipe: Recipe, found: Found) -> None:
    """Count right titles of each gold query: by the generator's truth, else by what is judged.

    A title that nobody has judged for the query counts in no sum.
    """
    seed, made = market.seed, Ladder(market, recipe).retrieval
    bm25 = arms.step(seed, "build_bm25", {"snapshot": seed.stage2})
    lexical = arms.step(seed, "build_rqa", {"snapshot": seed.stage2, "bm25": bm25})
    queries = market.gold.query_ids
    judged = None if market.truth else _judged(market)
    for arm, ref in (("bm25", lexical), ("ebr", made.rqa), ("ebr_star", made.rqa_star)):
        table = read_table(seed.store.open(ref).file("rqa.parquet"), RQA)
        of = dict(table.select("query_id", "product_ids").iter_rows())
        rows = [(q, list(of.get(q) or ())) for q in queries]
        by = _known(rows, judged) if market.truth is None else right_titles(rows, market.truth)
        found.add(arm, "titles", queries, np.array(list(by), np.float64).reshape(-1, 2))


def right_titles(rows: list[tuple[str, list[str]]], truth: Truth) -> Iterator[tuple[int, int]]:
    """Yield of each query how many titles are right, and how many there are."""
    shop = truth.world.target
    shelves = Shelves(truth.world.lexicon, shop)
    place = {p.product_id: i for i, p in enumerate(shop.products)}
    for query, products in rows:
        at = np.array([place[p] for p in products], np.int64)
        grades = shelves.grades(truth.query(query), at)
        yield int((grades >= 1).sum()), len(products)


def _known(rows: list[tuple[str, list[str]]], judged: Right | None) -> Iterator[tuple[int, int]]:
    known = judged or {}
    for query, products in rows:
        told = [known[query, p] for p in products if (query, p) in known]
        yield sum(told), len(told)


def _judged(market: StudyMarket) -> Right:
    pairs = load_pairs(market.seed, market.seed.stage2)
    own = pairs.filter(pl.col("split") == "gold").select("query_id", "product_id", "grade")
    return {(q, p): g >= 1 for q, p, g in own.iter_rows()}
