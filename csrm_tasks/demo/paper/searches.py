"""Pages that towers would show, and what the generated market's shoppers would do there.

Stands for paper 1's online test (section 6.2). For every gold query the shop's old engine finds
candidates (:mod:`csrm_tasks.demo.market.shoppers`), the towers order them as the service does, and
the first :data:`SHOWN` are the page. EM@1 and Defect@5 are by the true grades. Shoppers look, click
and put into the cart by the generator's own probabilities; the chance that a search leads to a cart
is reckoned, not drawn, so that no luck of shoppers is in a comparison. Queries count by how often
they are asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.dataset.tables import table
from csrm_tasks.demo.market.shoppers import POSITION_BIAS, Engine
from csrm_tasks.demo.market.shoppers import SHOWN as PAGES
from csrm_tasks.demo.paper.market import StudyMarket, Truth
from csrm_tasks.demo.paper.results import Found
from csrm_tasks.evaluation.metrics import Floats, Ints, top_hits
from csrm_tasks.ranking import best_first, places
from csrm_tasks.text import normalise

SHOWN = PAGES[0]  # results on a page
CLICK, CART = 0, 1  # of Candidates.response


@dataclass(frozen=True)
class Candidates:
    """What the old engine finds for the gold queries; aligned, N candidates of Q queries."""

    query: Ints  # (N,) in 0..Q-1
    texts: list[str]  # of the queries, as they were typed
    products: list[str]
    grade: Ints  # (N,) the truth
    cart: Floats  # (N,) the chance that what is looked at is put into the cart
    weight: Floats  # (Q,) how often a query is asked; 1 in the mean


def compare(market: StudyMarket, truth: Truth, exports: Mapping[str, Path], found: Found) -> None:
    """Add EM@1, Defect@5 and conversion of each arm's pages to ``found``."""
    queries = market.gold.query_ids
    shown, one = candidates(market, truth), np.ones(len(queries))
    for arm, export in exports.items():
        score = _ranked_by(market, export, shown)
        em, defect = top_hits(shown.query, score, shown.grade, len(queries))
        found.add(arm, "em_at_1", queries, np.stack([em, one], 1))
        found.add(arm, "defect_at_5", queries, np.stack([defect, one], 1))
        made = shown.weight * carted(shown.query, score, shown.cart, len(queries))
        found.add(arm, "conversion", queries, np.stack([made, shown.weight], 1))


def candidates(market: StudyMarket, truth: Truth) -> Candidates:
    """Return what the old engine finds of the products that the snapshot knows."""
    engine, shop = Engine(truth.world, truth.asked), truth.world.target.products
    sold = set(table(market.seed.store.open(market.seed.stage2).path, "products")["product_id"])
    at = [truth.places[q] for q in market.gold.query_ids]
    pages = [engine.find(i) for i in at]
    rows = np.concatenate([p.rows for p in pages])
    known = np.array([shop[r].product_id in sold for r in rows.tolist()])
    query: Ints = np.repeat(np.arange(len(pages)), [len(p.rows) for p in pages])[known]
    relevance = np.concatenate([p.relevance for p in pages])[known]  # 0, 0.5, 1
    cart = np.concatenate([p.response[CLICK] * p.response[CART] for p in pages])[known]
    asked = truth.asked.popularity[at]
    return Candidates(
        query,
        [truth.asked.queries[at[q]].text for q in query.tolist()],
        [shop[r].product_id for r in rows[known].tolist()],
        np.rint(2 * relevance).astype(np.int64),
        cart,
        asked / asked.mean(),
    )


def carted(query: Ints, score: Floats, cart: Floats, queries: int) -> Floats:
    """Return of each query the chance that its search leads to a cart, (queries,).

    ``query``, ``score`` and ``cart`` (N,) are of candidates; ``cart`` is the chance of what is
    looked at. The result at position r is looked at with probability r^-0.8, each by itself.
    """
    order = best_first(score, query)
    query, cart = query[order], cart[order]
    place = places(query)
    looked = (1.0 + place) ** -POSITION_BIAS * (place < SHOWN)
    none = np.ones(queries)
    np.multiply.at(none, query, 1.0 - looked * cart)
    made: Floats = 1.0 - none
    return made


def _ranked_by(market: StudyMarket, export: Path, shown: Candidates) -> Floats:
    """Return what the service orders by: the EM head, after it what the defect head filters."""
    from csrm_tasks.towers.serving.runtime import TowerRuntime
    from csrm_tasks.towers.tables import TowerTables

    seed = market.seed
    runtime = TowerRuntime(export, threads=seed.settings.threads)
    tables = TowerTables(seed.store.open(seed.stage2).path, runtime.product_fields)
    own = tables.products.filter(pl.col("locale") == seed.market.target_locale)
    title: dict[str, Any] = dict(own.select("product_id", "title").iter_rows())
    queries, titles = map(normalise, shown.texts), [title[p] for p in shown.products]
    scores = runtime.score_texts(list(queries), titles)
    filtered = runtime.decide(scores).defect
    ranked: Floats = np.asarray(scores.em, np.float64) - 2.0 * np.asarray(filtered, np.float64)
    return ranked
