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
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.demo.market.shoppers import POSITION_BIAS, Engine
from csrm_tasks.demo.market.shoppers import SHOWN as PAGES
from csrm_tasks.demo.paper.market import StudyMarket, Truth
from csrm_tasks.demo.paper.results import Found
from csrm_tasks.evaluation.metrics import Floats, Ints, top_hits
from csrm_tasks.ranking import best_first, places

SHOWN = PAGES[0]  # results on a page
CLICK, CART = 0, 1  # of Candidates.response


def compare(market: StudyMarket, truth: Truth, exports: Mapping[str, Path], found: Found) -> None:
    """Add EM@1, Defect@5 and conversion of each arm's pages to ``found``."""
    engine = Engine(truth.world, truth.asked)
    queries = market.gold.query_ids
    pages = [engine.find(truth.places[q]) for q in queries]
    sizes = [len(p.rows) for p in pages]
    query: Ints = np.repeat(np.arange(len(queries)), sizes)
    rows = np.concatenate([p.rows for p in pages])
    grade: Ints = np.rint(2 * np.concatenate([p.relevance for p in pages])).astype(np.int64)
    cart = np.concatenate([p.response[CLICK] * p.response[CART] for p in pages])
    asked = truth.asked.popularity[[truth.places[q] for q in queries]]
    weight = asked / asked.mean()
    products = [truth.world.target.products[r].product_id for r in rows.tolist()]
    texts = [truth.query(queries[q]).text for q in query.tolist()]
    one = np.ones(len(queries))
    for arm, export in exports.items():
        score = _ranked_by(market, export, texts, products)
        em, defect = top_hits(query, score, grade, len(queries))
        found.add(arm, "em_at_1", queries, np.stack([em, one], 1))
        found.add(arm, "defect_at_5", queries, np.stack([defect, one], 1))
        made = carted(query, score, cart, len(queries))
        found.add(arm, "conversion", queries, np.stack([weight * made, weight], 1))


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


def _ranked_by(
    market: StudyMarket, export: Path, queries: list[str], products: list[str]
) -> Floats:
    """Return what the service orders by: the EM head, after it what the defect head filters."""
    from csrm_tasks.text import normalise
    from csrm_tasks.towers.serving.runtime import TowerRuntime
    from csrm_tasks.towers.tables import TowerTables

    seed = market.seed
    runtime = TowerRuntime(export, threads=seed.settings.threads)
    tables = TowerTables(seed.store.open(seed.stage2).path, runtime.product_fields)
    own = tables.products.filter(pl.col("locale") == seed.market.target_locale)
    title: dict[str, Any] = dict(own.select("product_id", "title").iter_rows())
    scores = runtime.score_texts([normalise(q) for q in queries], [title[p] for p in products])
    filtered = runtime.decide(scores).defect
    ranked: Floats = np.asarray(scores.em, np.float64) - 2.0 * np.asarray(filtered, np.float64)
    return ranked
