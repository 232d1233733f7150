"""What the towers read: one form of query and product text for training, export and serving."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.lexical.terms import SEPARATOR
from csrm_tasks.text import LEVEL_SEPARATOR, normalise

# Recorded with every export; another version is another model. One with prefixes has a version of
# its own, for a server of earlier code would leave them out without a word.
TEXT_VERSION, PREFIXED = "1", "2"


def text_version(*prefixes: str) -> str:
    """Return the version of texts that are read after ``prefixes``, empty ones included."""
    return PREFIXED if any(prefixes) else TEXT_VERSION


def product_text(title: str, fields: Sequence[str], *, brand: str = "", category: str = "") -> str:
    """Return what the product tower reads: the title and those of ``fields`` that are not empty.

    ``fields`` (brand, category, leaf_category; A27) are those that the towers were trained with.
    """
    leaf = category.rsplit(LEVEL_SEPARATOR, 1)[-1]
    given = {"brand": brand, "category": category, "leaf_category": leaf}
    return SEPARATOR.join([title, *(given[name] for name in fields if given[name])])


def with_product_text(products: pl.DataFrame, fields: Sequence[str]) -> pl.DataFrame:
    """Return ``products`` with :func:`product_text` in the place of ``title``."""
    leaf = pl.col("category").str.split(LEVEL_SEPARATOR).list.last()
    given = {"brand": pl.col("brand"), "category": pl.col("category"), "leaf_category": leaf}
    parts = ["title", *(given[name].replace("", None) for name in fields)]
    text = pl.concat_str(parts, separator=SEPARATOR, ignore_nulls=True)
    return products.with_columns(text.alias("title"))


def product_digest(text: str) -> str:
    """Return the content hash of what the product tower reads; equal hash, equal vector (A35).

    A prefix is not in it: vectors are looked up among those of the same tower alone.
    """
    return text_digest(TEXT_VERSION, normalise(text))
