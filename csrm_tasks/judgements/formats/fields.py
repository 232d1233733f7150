"""JSON documents of other tools, looked into without trusting their shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.proposal.names import KNOWN, normal
from csrm_tasks.json_files import json_text
from csrm_tasks.layouts.files import fault, lines, text_of

Json = Mapping[str, Any]


def read_json(path: Path) -> object:
    """Return the document in ``path``, or a list where it has one a line; raises DataError."""
    texts = [line for _, line in lines(path)]
    try:
        return json.loads("\n".join(texts), object_pairs_hook=_once)
    except _TwiceError as e:
        raise fault(path, None, e.key, "is there twice with other content; leave one") from e
    except (ValueError, RecursionError) as e:
        why = " ".join(str(e).split())
    try:
        return [json.loads(line, object_pairs_hook=_once) for line in texts]
    except _TwiceError as e:
        raise fault(path, None, e.key, "is there twice with other content; leave one") from e
    except (ValueError, RecursionError) as e:
        raise fault(path, None, "", f"is no JSON ({why}); export it again") from e


class _TwiceError(Exception):
    """A key that an object has twice: a document with two ratings, of which readers take one."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if found.setdefault(key, value) != value:
            raise _TwiceError(key)
    return found


def write_document(path: Path, value: object) -> Path:
    """Write a document as people read JSON, with keys in the order given; returns ``path``."""
    path.write_text(json_text(value, sort_keys=False) + "\n", encoding="utf-8")
    return path


def mapping(path: Path, row: int | None, value: object, name: str) -> Json:
    """Return ``value`` as a JSON object; raises :class:`DataError` naming the field otherwise."""
    if not isinstance(value, dict):
        raise fault(path, row, name, f"is {_shape(value)}; a JSON object is expected")
    return value


def sequence(path: Path, row: int | None, value: object, name: str) -> Sequence[Any]:
    """Return ``value`` as a JSON list, a missing one as empty; raises DataError otherwise."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise fault(path, row, name, f"is {_shape(value)}; a JSON list is expected")
    return value


def objects(path: Path, value: object, name: str) -> Iterator[Json]:
    """Yield the objects of a list; raises :class:`DataError` for whatever else is in it."""
    for number, one in enumerate(sequence(path, None, value, name), 1):
        yield mapping(path, number, one, name)


def _shape(value: object) -> str:
    if value is None:
        return "missing"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return f"{value!r:.60}"


def size(value: object) -> int:
    """Return how many entries a list or an object has; of anything else none."""
    return len(value) if isinstance(value, (dict, list)) else 0


def word_of(value: object) -> str:
    """Return a rating as text: 3, 3.0, "3.0" and " 3 " are alike, for tools write all of them."""
    text = text_of(value).strip()
    whole = text.removesuffix(".0")
    return whole if whole.lstrip("-").isdecimal() else text


def identifier(path: Path, row: int, value: object, name: str) -> str:
    """Return a document's identifier; raises :class:`DataError` where it is missing."""
    if isinstance(value, float) and not value.is_integer():
        raise fault(path, row, name, f"is {value!r}, a number with decimals; write it as text")
    text = text_of(int(value) if isinstance(value, float) else value).strip()
    if not text:
        raise fault(path, row, name, "is missing: no document is said; mend or remove the entry")
    return text


def query_text(path: Path, row: int, value: object, name: str) -> str:
    """Return a query's text; raises :class:`DataError` where it is missing."""
    text = text_of(value).strip()
    if not text:
        raise fault(path, row, name, "is missing: no query is said; mend or remove the entry")
    return text


def named(fields: Json, column: str) -> object:
    """Return the value of the field that is called like one of our columns of labels, else None."""
    known = KNOWN["labels"][column]
    return next((v for k, v in fields.items() if normal(k) in known and text_of(v).strip()), None)


def answers(path: Path, given: Mapping[str, Any], question: str | None) -> str:
    """Return which of the questions of an annotation tool is the grade.

    Raises :class:`DataError` where several may be and none is named as one is.
    """
    if question is not None:
        return question
    known = [name for name in given if normal(name) in KNOWN["labels"]["grade"]]
    if len(known) == 1:
        return known[0]
    if len(given) == 1:
        return next(iter(given))
    raise DataError(
        f"{path}: which question is the grade? It has {', '.join(given) or 'none'}; say --question"
    )
