"""Monolingual text of a world, from which the shipped base models are pre-trained.

Only what any shop has before it opens a new market: its listings, and what its shoppers type.
Nothing here is labelled, and no text comes with its translation.
"""

from __future__ import annotations

from collections.abc import Iterator

from csrm_tasks.demo.queries import make_queries
from csrm_tasks.demo.world import Product, World


def listing_text(product: Product) -> str:
    """Return one listing as lines: title, category, and brand and description where given."""
    parts = (product.title, product.brand, product.category, product.description)
    return "\n".join(part for part in parts if part)


def listings(world: World, locale: str) -> Iterator[str]:
    """Yield the text of every listing of ``locale`` in catalogue order."""
    return (listing_text(product) for product in world.catalogue(locale).products)


def query_texts(world: World, locale: str, n: int) -> list[str]:
    """Return about ``n`` distinct queries of ``locale`` as typed."""
    return [query.text for query in make_queries(world, locale, n).queries]
