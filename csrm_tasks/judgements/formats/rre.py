"""Rated Ranking Evaluator: ``ratings.json``, groups of queries that share their documents.

Documents come as ``{document: {"gain": 3}}`` or, from Quepid and newer generators, as
``{"3": [document, …]}``. Topics and groups may be left out. A document that is not listed was not
judged: it is not read as irrelevant. The format knows neither raters nor reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from csrm_tasks.errors import DataError
from csrm_tasks.judgements.formats.book import Asked, Book, Page, Rated, declared, ours
from csrm_tasks.judgements.formats.fields import (
    Json,
    identifier,
    mapping,
    objects,
    query_text,
    read_json,
    word_of,
    write_document,
)
from csrm_tasks.layouts.files import fault, text_of

PLACEHOLDER = "$query"


def read(path: Path, _asked: Asked) -> Book:
    """Read ratings; raises :class:`DataError` naming the file, the entry and its field."""
    document = mapping(path, None, read_json(path), "ratings")
    if not {"topics", "query_groups", "queries"} & set(document):
        raise DataError(f"{path}: has no topics, query_groups or queries; give an RRE ratings file")
    name = text_of(document.get("query_placeholder")) or PLACEHOLDER
    rated: list[Rated] = []
    for group in _groups(path, document):
        _add(path, group, name, rated)
    texts = [topic.get("description") for topic in objects(path, document.get("topics"), "topics")]
    return Book(rated, declared(*texts), ours(*texts))


def _groups(path: Path, document: Json) -> Iterator[Json]:
    """Yield groups of queries; a query with documents of its own is a group."""
    for topic in [*objects(path, document.get("topics"), "topics"), document]:
        yield from objects(path, topic.get("query_groups"), "query_groups")
        for query in objects(path, topic.get("queries"), "queries"):
            yield {"queries": [query], "relevant_documents": query.get("relevant_documents")}


def _add(path: Path, group: Json, name: str, rated: list[Rated]) -> None:
    row = len(rated) + 1
    given = mapping(path, row, group.get("relevant_documents") or {}, "relevant_documents")
    documents = list(_documents(path, row, given))
    for query in objects(path, group.get("queries"), "queries"):
        row = len(rated) + 1
        text = _text(path, row, query, name)
        for product, rating in documents:
            rated.append(Rated(len(rated) + 1, text, product, rating))


def _documents(path: Path, row: int, given: Json) -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        if isinstance(value, list):  # rating → documents
            for product in value:
                yield identifier(path, row, product, f"relevant_documents {key!r}"), word_of(key)
        else:
            gain = mapping(path, row, value, f"relevant_documents {key!r}").get("gain")
            yield identifier(path, row, key, "relevant_documents"), word_of(gain)


def _text(path: Path, row: int, query: Json, name: str) -> str:
    placeholders = mapping(path, row, query.get("placeholders"), "placeholders")
    if name in placeholders:
        return query_text(path, row, placeholders[name], f"placeholders {name}")
    if len(placeholders) == 1:
        return query_text(path, row, next(iter(placeholders.values())), "placeholders")
    have = ", ".join(placeholders) or "nothing"
    what = f"has {have}; which is the query? Name it in query_placeholder, or call it {name}"
    raise fault(path, row, "placeholders", what)


def write(page: Page, folder: Path) -> list[Path]:
    """Write one topic with a group a query; gains are whole numbers or the scale's words."""
    groups = [
        {
            "name": query,
            "queries": [{"template": "query.json", "placeholders": {PLACEHOLDER: query}}],
            "relevant_documents": {
                one.product_id: {"gain": int(r) if (r := page.rating(one)).isdecimal() else r}
                for one in ones
                if one.grade is not None
            },
        }
        for query, ones in page.by_query().items()
    ]
    topic = {"description": f"{page.title}; {page.declaration}", "query_groups": groups}
    body = {"index": page.index, "id_field": "id", "topics": [topic]}
    return [write_document(folder / "ratings.json", body)]
