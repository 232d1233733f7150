"""Elasticsearch (and OpenSearch): bodies of ``_rank_eval``.

A request holds a search, not a query's text. The text is looked for in ``params`` of a template,
else in the search's own full-text clauses (what only filters is none); a request in which it cannot
be told is refused. Ratings are whole numbers; the format knows neither their scale nor raters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from csrm_tasks.errors import DataError
from csrm_tasks.judgements.formats.book import Asked, Book, Page, Rated, ours
from csrm_tasks.judgements.formats.fields import (
    Json,
    identifier,
    mapping,
    named,
    objects,
    read_json,
    word_of,
    write_document,
)
from csrm_tasks.layouts.files import fault, text_of

FIELDS = ("title", "brand", "category")
BY_FIELD = ("match", "match_phrase", "match_phrase_prefix", "match_bool_prefix")
WHOLE = ("query", "query_text", "model_text")  # of multi_match, query_string, semantic, neural, …
NOT_ASKED = ("filter", "must_not", "post_filter", "aggs", "aggregations", "sort", "term", "terms")


def read(path: Path, _asked: Asked) -> Book:
    """Read a body; raises :class:`DataError` naming the file, the request and its field."""
    body = mapping(path, None, read_json(path), "body")
    if "requests" not in body:
        raise DataError(f"{path}: has no requests; give the body of _rank_eval, not its answer")
    rated: list[Rated] = []
    names = []
    for row, request in enumerate(objects(path, body["requests"], "requests"), 1):
        names.append(text_of(request.get("id")))
        query = _text(path, row, request)
        for one in objects(path, request.get("ratings"), "ratings"):
            product = identifier(path, row, one.get("_id"), "_id")
            rated.append(Rated(len(rated) + 1, query, product, word_of(one.get("rating"))))
    return Book(rated, {}, ours(*names))


def _text(path: Path, row: int, request: Json) -> str:
    params = request.get("params")
    if isinstance(params, dict):
        texts = {k: v for k, v in params.items() if isinstance(v, str) and v.strip()}
        given = params.get("query_string") or named(texts, "query")
        found = [text_of(given)] if given else list(texts.values())
    else:
        found = sorted(set(_asked_for(request.get("request"))))
    if len(found) != 1:
        have = f"{len(found)} texts" if found else "no text"
        what = f"of {request.get('id')!r} holds {have}; say the query as params.query_string"
        raise fault(path, row, "request", what)
    return found[0].strip()


def _asked_for(value: object) -> Iterator[str]:
    """Yield the texts that a search asks for."""
    if isinstance(value, list):
        for one in value:
            yield from _asked_for(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key in NOT_ASKED:
                continue
            if key in WHOLE and isinstance(one, str):
                yield one
            elif key in BY_FIELD and isinstance(one, dict):
                yield from (text for text in one.values() if isinstance(text, str))
            yield from _asked_for(one)


def write(page: Page, folder: Path) -> list[Path]:
    """Write a body with one request a query, asked of title, brand and category."""
    for rating in page.ratings.values():
        if not rating.isdecimal():
            raise DataError(f"rating {rating!r}: _rank_eval takes whole numbers; say --grades")
    requests = [
        {
            "id": f"{number}; {page.title}",
            "request": {"query": {"multi_match": {"query": query, "fields": list(FIELDS)}}},
            "ratings": [
                {"_index": page.index, "_id": one.product_id, "rating": int(page.rating(one))}
                for one in ones
                if one.grade is not None
            ],
        }
        for number, (query, ones) in enumerate(page.by_query().items(), 1)
    ]
    body = {"requests": requests, "metric": {"dcg": {"k": 10, "normalize": True}}}
    return [write_document(folder / "rank_eval.json", body)]
