"""Examples of the CVR task (A8): converted pairs, and what was passed over or drawn at random."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.records import CONVERSIONS

PAIR = ["locale", "query_id", "product_id"]


def cvr_examples(
    sums: pl.DataFrame, products: Mapping[str, Sequence[str]], negatives: int, seed: int
) -> pl.DataFrame:
    """Return the CONVERSIONS table, sorted.

    ``sums``: locale, query_id, product_id, clicks, carts, purchases, skips, one row per pair;
    ``products``: identifiers by locale. Per converted pair ``negatives`` others of its query: at
    most half of them products that stood above the sale untouched, the others random products that
    nobody acted on for that query.
    """
    acted = (pl.col("clicks") + pl.col("carts") + pl.col("purchases")) > 0
    rows: list[tuple[str, str, str, int]] = []
    bought = sums.filter(pl.col("purchases") > 0).sort(PAIR)
    touched = _lists(sums.filter(acted))
    passed = sums.filter(~acted & (pl.col("skips") > 0))
    skipped = _lists(passed.sort(-pl.col("skips").cast(pl.Int64), *PAIR))
    catalogue = {locale: sorted(ids) for locale, ids in products.items()}
    for (locale, query), positives in _lists(bought).items():
        wanted = negatives * len(positives)
        hard = skipped.get((locale, query), [])[: wanted // 2]
        barred = {*touched[locale, query], *hard}
        rng = random.Random(text_digest(str(seed), "cvr", query))
        drawn = _draw(catalogue.get(locale, []), wanted - len(hard), barred, rng)
        rows += [(query, p, locale, 1) for p in positives]
        rows += [(query, p, locale, 0) for p in (*hard, *drawn)]
    return pl.DataFrame(rows, schema=CONVERSIONS, orient="row").sort(PAIR)


def _lists(frame: pl.DataFrame) -> dict[tuple[str, str], list[str]]:
    grouped = frame.group_by("locale", "query_id", maintain_order=True).agg("product_id")
    return {(locale, query): ids for locale, query, ids in grouped.iter_rows()}


def _draw(ids: Sequence[str], n: int, barred: set[str], rng: random.Random) -> list[str]:
    """Draw ``n`` different identifiers that are not barred, or as many as there are."""
    tried = rng.sample(ids, min(len(ids), n + len(barred)))
    return [i for i in tried if i not in barred][:n]
