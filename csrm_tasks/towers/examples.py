"""Training examples of the towers, soft or hard, and the judged dev pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.dataset.splits import held_out_queries
from csrm_tasks.errors import DataError
from csrm_tasks.records import Grade

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Examples:
    """Pairs as rows into two lists of distinct texts, sorted by query."""

    queries: list[str]
    products: list[str]
    query: Rows  # (P,)
    product: Rows  # (P,)
    exact: Floats  # (P,) target p_e
    irrelevant: Floats  # (P,) target p_i

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.query)


def soft_examples(
    scored: pl.DataFrame,
    queries: pl.DataFrame,
    products: pl.DataFrame,
    pairs: pl.DataFrame,
    seen: bool = False,
) -> Examples:
    """Teacher probabilities as targets; dev and gold queries are left out (A10).

    ``seen``: gold queries are learnt, as a control, but no gold pair. That is one of texts: a copy
    of its product under another identifier is the same.
    """
    kept = scored.join(held_out_queries(queries, pairs, seen), on="query_id", how="anti")
    rows = with_texts(kept.rename({"p2": "exact", "p0": "irrelevant"}), queries, products)
    gold = with_texts(pairs.filter(pl.col("split") == "gold"), queries, products)
    return _examples(rows.join(gold, on=["query", "title"], how="anti"))


def hard_examples(pairs: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame) -> Examples:
    """Human grades of the train split, all locales, as targets of 0 and 1 (A32)."""
    train = pairs.filter(pl.col("split") == "train").with_columns(
        exact=(pl.col("grade") == Grade.EXACT).cast(pl.Float32),
        irrelevant=(pl.col("grade") == Grade.IRRELEVANT).cast(pl.Float32),
    )
    return _examples(with_texts(train, queries, products))


def dev_pairs(pairs: pl.DataFrame, locale: str) -> pl.DataFrame:
    """Return the dev pairs of ``locale``, or of the source where it has none (stage 1; A33)."""
    dev = pairs.filter(pl.col("split") == "dev")
    local = dev.filter(pl.col("locale") == locale)
    chosen = local if len(local) else dev
    if chosen.is_empty():
        raise DataError("the snapshot has no dev pairs: thresholds of the towers need some")
    return chosen.sort("pair_id")


def with_texts(frame: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame) -> pl.DataFrame:
    """Add ``query`` (normalised) and ``title``; a pair whose product is gone is left out."""
    return frame.join(
        queries.select("query_id", query="norm"), on="query_id", maintain_order="left"
    ).join(
        products.select("product_id", "locale", "title"), on=["product_id", "locale"],
        maintain_order="left",
    )  # fmt: skip


def _examples(rows: pl.DataFrame) -> Examples:
    rows = rows.sort(["query", "title", "query_id", "product_id"])
    if rows.is_empty():
        raise DataError("no pair is left to train the towers on; check the scored pairs")
    queries_found, query = distinct(rows["query"])
    titles_found, product = distinct(rows["title"])
    exact, irrelevant = (rows[c].to_numpy() for c in ("exact", "irrelevant"))
    return Examples(queries_found, titles_found, query, product, exact, irrelevant)


def distinct(texts: pl.Series) -> tuple[list[str], Rows]:
    """Return the distinct texts, sorted, and where each of ``texts`` stands among them (N,)."""
    values = texts.unique().sort()
    return values.to_list(), values.search_sorted(texts).to_numpy().astype(np.int64)


def query_groups(query: Rows, product: Rows, size: int, rng: np.random.Generator) -> list[Rows]:
    """Cut the pairs of each query into groups of at most ``size``, neighbours sharing products.

    ``query`` and ``product`` (P,) are sorted by query. All queries walk through their products in
    one random order of the catalogue, drawn anew each epoch, and groups stand in the order in
    which they get there. So neighbouring groups hold much the same products, and a batch of them
    has far fewer titles to encode than pairs. Every pair stands in exactly one group: one epoch.
    """
    place = rng.permutation(int(product.max()) + 1)[product]  # (P,) in the epoch's order
    order = np.lexsort((place, query))
    starts = np.flatnonzero(np.append(True, query[1:] != query[:-1]))
    ends = np.append(starts[1:], len(query))
    # Where a query's first group ends is random, or every epoch would start with the short rests.
    first = starts + rng.integers(1, size + 1, len(starts))
    cuts = [
        np.append(a, np.arange(f, b, size)) for a, f, b in zip(starts, first, ends, strict=True)
    ]
    groups = np.split(order, np.concatenate(cuts)[1:])
    reached = [place[g].mean() for g in groups]
    return [groups[i] for i in np.argsort(reached, kind="stable")]


def batches(query: Rows, product: Rows, queries: int, products: int, seed: int) -> Iterator[Rows]:
    """Yield rows of pairs forever: ``queries`` groups of at most ``products`` pairs each (A31).

    A pure function of its arguments, so that a resumed run skips to the same batch.
    """
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        groups = query_groups(query, product, products, rng)
        cut = [groups[i : i + queries] for i in range(0, len(groups), queries)]
        for i in rng.permutation(len(cut)):
            yield np.concatenate(cut[i])
        epoch += 1
