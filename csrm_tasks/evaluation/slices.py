"""Parts of the gold set that a mean can hide: masks over its pairs, by name.

language xx-XX   the query's locale, where the gold set has more than one
category NAME    top level of the product's category, the :data:`CATEGORIES` with most pairs
head, torso, tail   queries by impressions: a fifth, three tenths, the lower half
brand, no_brand  whether the query names a brand
nickname         what the query says is not what its exact products are called
new_product      no train pair of its locale has the product
seen_category, unseen_category   whether any train pair of its locale is in the category
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.text import LEVEL_SEPARATOR

Mask = npt.NDArray[np.bool_]
HEAD = 0.2  # share of gold queries, most shown first, that count as head; the lower half is tail
TAIL = 0.5
CATEGORIES = 8
KEYS = ["product_id", "locale"]


def slices_of(
    gold: pl.DataFrame, pairs: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame
) -> dict[str, Mask]:
    """Return the slices that hold any pair of ``gold`` (pair_id, query_id, product_id, grade …)."""
    about_query = queries.select("query_id", "norm", "brand", "impressions").unique("query_id")
    about_product = products.select(*KEYS, "title", "category", made="brand").unique(KEYS)
    trained = pairs.filter(pl.col("split") == "train")
    known = gold.join(about_query, on="query_id", how="left", maintain_order="left")
    known = known.join(about_product, on=KEYS, how="left", maintain_order="left")
    brand = (known["brand"].fill_null("") != "").to_numpy()
    masks = {"brand": brand, "no_brand": ~brand, "nickname": _nickname(known) & ~brand}
    masks["new_product"] = _absent(known, trained, KEYS)
    categories = trained.join(about_product, on=KEYS)
    unseen = _absent(known, categories, ["category", "locale"])
    masks |= {"seen_category": ~unseen, "unseen_category": unseen}
    masks |= _traffic(known) | _languages(known) | _categories(known)
    return {name: mask for name, mask in masks.items() if mask.any()}


def _absent(known: pl.DataFrame, among: pl.DataFrame, keys: list[str]) -> Mask:
    seen = among.select(keys).unique().with_columns(seen=pl.lit(True))
    joined = known.join(seen, on=keys, how="left", maintain_order="left")
    return joined["seen"].is_null().to_numpy()


def _nickname(known: pl.DataFrame) -> Mask:
    """Mark queries whose longest word (the first of equals) most exact products carry nowhere.

    Title, brand and category are looked into. Shoppers' own names for things are such queries, and
    so are typing errors and other languages' words: what words in common cannot find.
    """
    length = pl.element().str.len_chars()
    longest = pl.element().sort_by(length, descending=True, maintain_order=True).first()
    word = pl.col("norm").fill_null("").str.split(" ").list.eval(longest).list.first()
    text = pl.concat_str("title", "made", "category", separator=" ", ignore_nulls=True)
    rows = known.select("query_id", "grade", word=word, text=text.str.to_lowercase()).with_columns(
        said=pl.col("text").str.contains(pl.col("word"), literal=True)
    )
    exact = rows.filter(pl.col("grade") == 2).group_by("query_id").agg(pl.col("said").mean())
    other = exact.filter(pl.col("said") < 0.5)["query_id"]
    return known["query_id"].is_in(other.implode()).to_numpy()


def _traffic(known: pl.DataFrame) -> dict[str, Mask]:
    """Head, torso and tail by impressions of the query; nothing where no query was ever shown."""
    shown = known.select("query_id", pl.col("impressions").fill_null(0)).unique("query_id")
    if shown.is_empty() or shown["impressions"].max() == 0:
        return {}
    ranked = shown.sort("impressions", "query_id", descending=[True, False])
    place = ranked.with_columns(share=pl.int_range(pl.len()) / pl.len())
    share = known.join(place.select("query_id", "share"), on="query_id", maintain_order="left")
    at = share["share"].to_numpy()
    head, tail = at < HEAD, at >= TAIL
    return {"head": head, "torso": ~head & ~tail, "tail": tail}


def _languages(known: pl.DataFrame) -> dict[str, Mask]:
    names = known["locale"].unique().sort().to_list()
    if len(names) < 2:
        return {}
    return {f"language {name}": (known["locale"] == name).to_numpy() for name in names}


def _categories(known: pl.DataFrame) -> dict[str, Mask]:
    top = known["category"].fill_null("").str.split(LEVEL_SEPARATOR).list.first()
    counts = top.value_counts().sort("count", "category", descending=[True, False])
    names = [name for name in counts["category"].to_list() if name][:CATEGORIES]
    return {f"category {name}": (top == name).to_numpy() for name in names}
