"""What the towers read: one form of query and product text for training, export and serving."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.text import normalise

TEXT_VERSION = "1"  # recorded with every export; another version is another model
SEPARATOR = " | "


def tower_text(text: str) -> str:
    """Return the normalised text that is tokenised; a query's ``norm`` is its own fixed point."""
    return normalise(text)


def product_text(title: str, fields: Sequence[str], *, brand: str = "", category: str = "") -> str:
    """Return what the product tower reads: the title and those of ``fields`` that are not empty.

    ``fields`` (brand, category; A27) are those that the towers were trained with.
    """
    given = {"brand": brand, "category": category}
    return SEPARATOR.join([title, *(given[name] for name in fields if given[name])])


def with_product_text(products: pl.DataFrame, fields: Sequence[str]) -> pl.DataFrame:
    """Return ``products`` with :func:`product_text` in the place of ``title``."""
    parts = ["title", *(pl.col(name).replace("", None) for name in fields)]
    text = pl.concat_str(parts, separator=SEPARATOR, ignore_nulls=True)
    return products.with_columns(text.alias("title"))


def product_digest(text: str) -> str:
    """Return the content hash of what the product tower reads; equal hash, equal vector (A35)."""
    return text_digest(TEXT_VERSION, tower_text(text))
