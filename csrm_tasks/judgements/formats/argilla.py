"""Argilla: records with responses, as ``dataset.records.to_json`` writes them, and older exports.

Responses are judgements, suggestions are a model's and none. Argilla 2 writes responses by question
and leaves out whether they were submitted, so drafts in such a file count; older exports write them
by person with a status, of which ``discarded`` is what cannot be judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from csrm_tasks.blobs import text_digest
from csrm_tasks.judgements.formats.book import (
    QUESTION,
    WHY,
    WORDS,
    Asked,
    Book,
    Judgement,
    Page,
    Rated,
    ours,
)
from csrm_tasks.judgements.formats.fields import (
    Json,
    answers,
    identifier,
    mapping,
    named,
    objects,
    query_text,
    read_json,
    size,
    word_of,
    write_document,
)
from csrm_tasks.layouts.files import fault, text_of

NOBODY = ("", "None")  # Argilla writes a user that it does not know as the word None


def read(path: Path, asked: Asked) -> Book:
    """Read an export; raises :class:`DataError` naming the file, the record and its field."""
    rated: list[Rated] = []
    passed: Counter[str] = Counter()
    title = ""
    for row, record in enumerate(objects(path, read_json(path), "records"), 1):
        about = {**_part(path, row, record, "metadata"), **_part(path, row, record, "fields")}
        query = query_text(path, row, named(about, "query"), "fields.query")
        product = identifier(path, row, named(about, "product_id"), "fields.product_id")
        title = title or ours(*about.values())
        passed["a model's suggestions"] += size(record.get("suggestions"))
        for user, said, status in _people(path, row, record.get("responses")):
            if status == "discarded":
                why = text_of(said.get(WHY))
                rated.append(Rated(row, query, product, "", user, why, True))
                continue
            chosen = {q: v for q, v in said.items() if q != WHY}
            question = answers(path, chosen, asked.question) if chosen else ""
            rating = _rating(path, row, question, chosen.get(question))
            if status == "draft" or not rating:
                passed["not judged yet"] += 1
                continue
            rated.append(Rated(row, query, product, rating, user, text_of(said.get(WHY))))
    return Book(rated, {}, title, passed)


def _part(path: Path, row: int, record: Json, name: str) -> Json:
    return mapping(path, row, record.get(name) or {}, name)


def _people(path: Path, row: int, given: object) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield user, question → value, and status of each person's response."""
    if isinstance(given, list):
        for one in objects(path, given, "responses"):
            values = mapping(path, row, one.get("values") or {}, "responses.values")
            said = {q: v.get("value") if isinstance(v, dict) else v for q, v in values.items()}
            yield _user(one), said, text_of(one.get("status"))
        return
    people: dict[tuple[str, int], dict[str, Any]] = {}
    for question, ones in mapping(path, row, given or {}, "responses").items():
        seen: Counter[str] = Counter()  # people without a name are somebody else each
        for one in objects(path, ones, f"responses.{question}"):
            user = _user(one)
            people.setdefault((user, seen[user]), {})[question] = one.get("value")
            seen[user] += 1
    for (user, _), said in people.items():
        yield user, said, ""


def _user(one: Json) -> str:
    user = text_of(one.get("user_id")).strip()
    return "" if user in NOBODY else user


def _rating(path: Path, row: int, question: str, value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (list, dict)):
        what = "has several values; a grade is one: ask it as a label or rating question"
        raise fault(path, row, f"responses.{question}", what)
    return word_of(value)


def write(page: Page, folder: Path) -> list[Path]:
    """Write records; soft grades are suggestions. What cannot be judged has no response."""
    records: dict[tuple[str, str], dict[str, Any]] = {}
    for one in page.judgements:
        record = records.setdefault((one.query, one.product_id), _record(page, one))
        if one.probabilities is not None:
            record["suggestions"][QUESTION] = _suggestion(one)
        elif one.grade is not None:
            user = one.rater or "None"
            given = record["responses"]
            given.setdefault(QUESTION, []).append({"value": WORDS[one.grade], "user_id": user})
            if one.explanation or not one.rater:  # whose it is, of nobody's several, the place says
                given.setdefault(WHY, []).append({"value": one.explanation, "user_id": user})
    return [write_document(folder / "records.json", list(records.values()))]


def _record(page: Page, one: Judgement) -> dict[str, Any]:
    return {
        "id": text_digest(one.query, one.product_id),
        "fields": {"query": one.query} | page.shown(one.product_id),
        "metadata": {"product_id": one.product_id, "set": page.title},
        "suggestions": {}, "responses": {}, "vectors": {},
    }  # fmt: skip


def _suggestion(one: Judgement) -> dict[str, Any]:
    word, score = one.surest
    return {"value": word, "score": score, "agent": "csrm"}
