"""What a market's models read: the texts of its store, in the form in which they are tokenised."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.errors import DataError
from csrm_tasks.lexical.terms import SEPARATOR
from csrm_tasks.llm.baselines.prompt import question
from csrm_tasks.llm.prompt.prompts import (
    LABEL_SLOT,
    LABEL_SPACES,
    LANGUAGES,
    TASK_SPACES,
    TEMPLATE_PIECES,
    ProductFields,
    ProductForm,
    QueryFields,
    product_segments,
    query_segments,
    translation_segments,
)
from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.tables import (
    AGGREGATES,
    CATEGORY_LABELS,
    LABELS,
    PRODUCTS,
    TRANSLATIONS,
    fetch,
)
from csrm_tasks.text import LEVEL_SEPARATOR, normalise

PRODUCT = ("locale", "title", "brand", "category", "description")
TRANSLATION = ("kind", "source_text", "target_text")
# What an encoder may be told of a text's part (e5), before the text itself: kept for a market whose
# file does not say so yet.
ENCODER_PREFIXES = ("query: ", "passage: ")


@dataclass(frozen=True)
class MarketTexts:
    """Distinct texts of a market, in Unicode NFC, all locales, sorted."""

    products: pl.DataFrame  # PRODUCT
    queries: pl.DataFrame  # locale, query
    translations: pl.DataFrame  # TRANSLATION
    paths: list[str]  # of categories that are judged (query_categories)

    @property
    def locales(self) -> list[str]:
        """The locales that have products."""
        return self.products["locale"].unique().sort().to_list()

    def titles(self, locale: str, most: int) -> list[str]:
        """Return at most ``most`` titles of a locale, spread over all that are there."""
        found = self.products.filter(pl.col("locale") == locale)["title"].unique().sort()
        return found.gather_every(max(-(-len(found) // most), 1)).to_list()


def market_texts(settings: Settings, market: str) -> MarketTexts:
    """Read every text that a market's models may see, from its store.

    Queries are read whoever typed or judged them, gold ones among them: their words, no grade. No
    grade decides which token is kept. Raises :class:`DataError` where nothing is ingested yet.
    """
    url = sa.make_url(settings.db_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise _nothing(market)
    with reading(open_store(settings.db_url)) as connection:
        labels = _distinct(connection, LABELS, ("locale", "query"), market)
        typed = _distinct(connection, AGGREGATES, ("locale", "query"), market)
        judged = _distinct(connection, CATEGORY_LABELS, ("locale", "query", "category"), market)
        found = MarketTexts(
            _distinct(connection, PRODUCTS, PRODUCT, market),
            pl.concat([labels, typed, judged.select(labels.columns)])
            .unique()
            .sort("locale", "query"),
            _distinct(connection, TRANSLATIONS, TRANSLATION, market),
            judged["category"].unique().sort().to_list(),
        )
    if found.products.is_empty():
        raise _nothing(market)
    return found


def _nothing(market: str) -> DataError:
    return DataError(
        f"market {market} has no products in its store yet, and it is on its titles that a base is "
        "measured and cut; ingest a day first"
    )


def _distinct(
    connection: Connection, table: sa.Table, columns: tuple[str, ...], market: str
) -> pl.DataFrame:
    statement = sa.select(*(table.c[c] for c in columns)).where(table.c.market == market).distinct()
    schema: dict[str, Any] = dict.fromkeys(columns, pl.String)
    return fetch(connection, statement, schema).sort(columns)


def prompt_texts(texts: MarketTexts) -> list[str]:
    """Return every segment that a causal model may be given, and whole prompts of the fixed parts.

    A title is a product's, a retrieved one's (RQA), and a text to translate.
    """
    return sorted(set(_segments(texts)))


def _segments(texts: MarketTexts) -> Iterator[str]:
    yield from _fixed()
    for locale, *fields in texts.products.iter_rows():
        del locale
        product = ProductFields(*fields)
        yield from product_segments(product)
        retrieved = QueryFields("", product.brand, (product.title, product.title))
        for space in LABEL_SPACES.values():
            yield from query_segments(space, retrieved)
    for category in texts.products["category"].unique():
        for levels in range(1, category.count(LEVEL_SEPARATOR) + 1):  # llm.category_levels
            form = ProductForm(("category",), levels)
            yield from product_segments(ProductFields("a", category=category), form)
    yield from _judged(texts)
    locales = texts.locales
    for kind, source, target in texts.translations.iter_rows():
        for one, other in ((source, target), (target, source)):
            yield other
            for a in locales:
                for b in locales:
                    yield from translation_segments(kind, a, b, one)


def _judged(texts: MarketTexts) -> Iterator[str]:
    for path in texts.paths:
        yield from product_segments(ProductFields("", path=path))
    for query in texts.queries["query"].unique():
        yield from query_segments(LABEL_SPACES["relevance"], QueryFields(query))


def _fixed() -> Iterator[str]:
    yield from TEMPLATE_PIECES
    for task in TASK_SPACES.values():  # kept for a market that takes them up, or a language, later
        for language in ("", *LANGUAGES, *LANGUAGES.values()):
            yield from query_segments(task, QueryFields("a", language=language))
    for space in (*LABEL_SPACES.values(), *TASK_SPACES.values()):
        for token in space.tokens:
            yield LABEL_SLOT + token
    for digit in LABEL_SPACES["relevance"].tokens:  # as a model that is only asked writes it
        for empty in ("", " "):
            yield question(QueryFields("a", "", ("a",)), ProductFields("a")) + empty + digit


def encoder_prefixes(config: MarketConfig) -> set[str]:
    """Return what a market's encoders read before a query or a title."""
    sections = config.retrieval.ebr, config.towers
    return {p for s in sections for p in (s.query_prefix, s.title_prefix)} - {""}


def encoder_texts(texts: MarketTexts, prefixes: Collection[str] = ()) -> list[str]:
    """Return every text that an encoder may be given: as delivered, normalised, after a prefix.

    ``prefixes`` are the market's own. A tokenizer may join the end of one with a text's beginning,
    so every text stands after each of them.
    """
    fields: Iterable[str] = (
        value for column in (*PRODUCT[1:],) for value in texts.products[column].unique().to_list()
    )
    said = {*fields, *texts.queries["query"].to_list()}
    for column in TRANSLATION[1:]:
        said |= set(texts.translations[column].to_list())
    plain = {" ".join(text.split()) for text in said}
    normal = {*map(normalise, said), f"a{SEPARATOR}a"}
    told = {prefix + text for prefix in prefixes for text in normal}
    return sorted({*plain, *normal, *told, *(prefix + "a" for prefix in ENCODER_PREFIXES)})
