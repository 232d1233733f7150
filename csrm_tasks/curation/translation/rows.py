"""From translated queries to judged pairs in another language (A37)."""

from __future__ import annotations

from collections import Counter

import polars as pl

from csrm_tasks.records import TRANSLATED
from csrm_tasks.text import normalised

DUPLICATE = "duplicate"  # another pair's translation has the same text and product, and its label
CONFLICT = "conflict"  # … and another label: both are dropped
KEPT = "kept"

Counts = dict[str, dict[str, int]]  # by language, then by reason


def translated_pairs(decided: pl.DataFrame, pairs: pl.DataFrame) -> tuple[pl.DataFrame, Counts]:
    """Return TRANSLATED, and what became of every pair that was asked, by language and reason.

    ``decided``: DECIDED; ``pairs``: PAIRS of the snapshot, of which train pairs count.
    """
    train = pairs.filter(pl.col("split") == "train").select(
        "pair_id", "query_id", "product_id", "grade"
    )
    rows = decided.join(train, on="query_id").sort("to_locale", "pair_id")
    rows = rows.with_columns(normalised(rows["text"]).alias("norm"))
    good = rows.filter(pl.col("reason") == "")
    same = ["to_locale", "norm", "product_id", "locale"]
    labels = pl.col("grade").n_unique().over(same)
    first = pl.col("pair_id") == pl.col("pair_id").first().over(same)
    clash = pl.when(labels > 1).then(pl.lit(CONFLICT)).when(~first).then(pl.lit(DUPLICATE))
    good = good.with_columns(reason=clash.otherwise(pl.lit("")))
    all_ = pl.concat([rows.filter(pl.col("reason") != ""), good])
    kept = good.filter(pl.col("reason") == "")
    return kept.select(pl.col(c).cast(t) for c, t in TRANSLATED.items()), _counted(all_)


def _counted(rows: pl.DataFrame) -> Counts:
    counts: dict[str, Counter[str]] = {}
    for locale, reason in rows.select("to_locale", "reason").iter_rows():
        counts.setdefault(locale, Counter())[reason or KEPT] += 1
    return {locale: dict(sorted(c.items())) for locale, c in sorted(counts.items())}
