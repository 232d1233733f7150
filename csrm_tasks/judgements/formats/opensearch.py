"""OpenSearch Search Relevance Workbench: judgement lists and query sets.

Written are the bodies of ``PUT _plugins/_search_relevance/judgments`` (type IMPORT_JUDGMENT) and
of ``…/query_sets`` (sampling manual). Read are such a body, what ``GET …/judgments`` answers, and
documents of the index behind it, one a line. The format knows neither raters nor reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from csrm_tasks.errors import DataError
from csrm_tasks.judgements.formats.book import Asked, Book, Judgement, Page, Rated, declared, ours
from csrm_tasks.judgements.formats.fields import (
    Json,
    identifier,
    objects,
    query_text,
    read_json,
    word_of,
    write_document,
)

NAME = 50  # characters that the plugin takes; of a description 250
REFERENCE = "#\n"  # what follows in a query's text are the reference answers of its query set


def read(path: Path, _asked: Asked) -> Book:
    """Read judgement lists; raises :class:`DataError` naming the file, the entry and its field."""
    lists = list(_lists(path, read_json(path)))
    if not lists:
        raise DataError(
            f"{path}: has no judgmentRatings; give a judgement list (a query set has no judgements)"
        )
    rated: list[Rated] = []
    for found in lists:
        for entry in objects(path, found["judgmentRatings"], "judgmentRatings"):
            row = len(rated) + 1
            query = query_text(path, row, entry.get("query"), "query").split(REFERENCE)[0]
            for one in objects(path, entry.get("ratings"), "ratings"):
                row = len(rated) + 1
                product = identifier(path, row, one.get("docId"), "docId")
                rated.append(Rated(row, query, product, word_of(one.get("rating"))))
    texts = [found.get(field) for found in lists for field in ("name", "description")]
    return Book(rated, declared(*texts), ours(*texts))


def _lists(path: Path, value: object) -> Iterator[Json]:
    """Yield judgement lists, however deep a search's answer holds them."""
    if isinstance(value, list):
        for one in value:
            yield from _lists(path, one)
    elif isinstance(value, dict):
        if "judgmentRatings" in value:
            yield value
        else:
            for name in ("_source", "hits"):
                yield from _lists(path, value.get(name))


def write(page: Page, folder: Path) -> list[Path]:
    """Write both bodies; raises :class:`DataError` for a query that the plugin would refuse."""
    by_query = page.by_query()
    for query in by_query:
        if "\n" in query or "\r" in query:
            raise DataError(f"query {query!r}: OpenSearch takes no query of several lines")
    about = {"name": page.title[:NAME], "description": f"{page.title}; {page.declaration}"}
    judged = [
        {
            "query": query,
            "ratings": [{"docId": one.product_id, "rating": _rating(page, one)} for one in ones],
        }
        for query, ones in by_query.items()
    ]
    body = about | {"type": "IMPORT_JUDGMENT", "judgmentRatings": judged}
    queries = [{"queryText": query} for query in by_query]
    asked = about | {"sampling": "manual"}
    return [
        write_document(folder / "judgments.json", body),
        write_document(folder / "query_set.json", asked | {"querySetQueries": queries}),
    ]


def _rating(page: Page, one: Judgement) -> float | int | str:
    if one.probabilities is not None:
        return one.expected
    text = page.rating(one)
    return int(text) if text.isdecimal() else text
