"""TREC product search: qrels, queries as TSV, and a collection as JSON Lines, TSV or TREC text.

Files are told by their names: ``*qrels*``, ``*quer*`` or ``*topic*``, ``*collection*`` or
``*corpus*``; each may end in ``.gz``. Qrels belong to the split that their name says (train, dev),
else to test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from csrm_tasks.errors import DataError
from csrm_tasks.layouts.files import Row, fault, json_lines, lines, not_read, text_of
from csrm_tasks.layouts.landing import Landing

SPLITS = ("train", "dev", "test")
SPOKEN = ("en",)
# The track's four grades, which are ESCI's
GRADES = {3: "E", 2: "S", 1: "C", 0: "I"}
ENDS = (".jsonl", ".json", ".tsv", ".txt", ".trec", ".qrels", ".gz")
IDS, TITLES = ("docid", "doc_id", "id", "_id", "product_id"), ("title", "product_title")
TEXTS = ("text", "description", "product_description", "contents")
DOCUMENT, END = "<DOC>", "</DOC>"


@dataclass(frozen=True)
class Document:
    """A product of the collection; ``row`` is the line on which it begins."""

    row: int
    docid: str
    title: str
    text: str


@dataclass(frozen=True)
class Files:
    """What lies in the folder."""

    qrels: list[Path]
    queries: list[Path]
    collections: list[Path]
    others: list[Path]


def read(folder: Path, landing: Landing, grades: Mapping[int, str] | None = None) -> None:
    """Read the folder into ``landing``; ``grades``: what those of the qrels mean, else GRADES."""
    files = find(folder)
    landing.remarks += not_read(files.others)
    _check_scale(files.qrels, grades)
    locale = landing.locales[SPOKEN[0]]
    queries = queries_of(files.queries)
    for path in files.collections:
        for document in documents(path):
            landing.read[path.name] += 1
            why = landing.product(
                SPLITS[0], locale, document.docid, document.title, description=document.text
            )
            if why is not None:
                told = {"docid": document.docid, "title": document.title}
                landing.leave_out(why, path, document.row, told)
    for path in files.qrels:
        _land_qrels(path, queries, landing, locale, grades or GRADES)


def find(folder: Path) -> Files:
    """Tell the files by their names; raises :class:`DataError` where some are missing or odd."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; --data-dir is where the data set's files lie")
    kinds: dict[str, list[Path]] = {"qrels": [], "quer": [], "collection": []}
    words = {"qrels": "qrels", "quer": "quer", "topic": "quer", "collection": "collection",
             "corpus": "collection"}  # fmt: skip
    present = sorted(p for p in folder.iterdir() if p.name[0] != ".")
    data = [p for p in present if p.is_file() and p.suffix in ENDS]
    for path in data:
        kind = next((k for word, k in words.items() if word in path.name.lower()), None)
        if kind is None:
            raise DataError(
                f"{path}: its name says neither qrels, queries (topics) nor collection (corpus); "
                "name it so, or move it elsewhere"
            )
        kinds[kind].append(path)
    for kind, called in (("qrels", "qrels"), ("quer", "queries"), ("collection", "collection")):
        if not kinds[kind]:
            raise DataError(f"{folder}: has no file with {called} in its name")
    others = [p for p in present if p not in data]
    return Files(kinds["qrels"], kinds["quer"], kinds["collection"], others)


def _qrels(path: Path) -> Iterator[tuple[int, str, str, str, int]]:
    """Yield row, line, query, document and grade."""
    for number, text in lines(path):
        fields = text.split()
        if len(fields) != 4:
            what = f"has {len(fields)} fields; 'query 0 document grade' is expected"
            raise fault(path, number, "", what)
        grade = fields[3].removesuffix(".0")
        if not grade.isdecimal():
            raise fault(
                path, number, "grade", f"is {fields[3]!r}; a whole number from 0 is expected"
            )
        yield number, text, fields[0], fields[2], int(grade)


def _check_scale(paths: list[Path], grades: Mapping[int, str] | None) -> None:
    """Raise where the grades are not on a scale whose meaning is known, before anything lands."""
    greatest = -1
    for path in paths:
        for number, _, _, _, grade in _qrels(path):
            if grade not in (grades or GRADES):
                known = ", ".join(f"{g}={word}" for g, word in (grades or GRADES).items())
                what = f"{grade} has no meaning ({known}); say one with --grades"
                raise fault(path, number, "grade", what)
            greatest = max(greatest, grade)
    if grades is None and greatest < max(GRADES):
        raise DataError(
            f"{paths[0].parent}: the greatest grade of all qrels is {greatest}, on the track's "
            "scale it would be 3; say what these mean: --grades 0=irrelevant,1=substitute,2=exact"
        )


def _land_qrels(
    path: Path, queries: Mapping[str, str], landing: Landing, locale: str, grades: Mapping[int, str]
) -> None:
    split = next((s for s in SPLITS if s in path.name.lower()), SPLITS[-1])
    for number, text, query_id, docid, grade in _qrels(path):
        landing.read[path.name] += 1
        query = queries.get(query_id)
        label_id = f"{path.name.partition('.')[0]}-{query_id}-{docid}"
        why = "unknown_query" if query is None else landing.label(
            split, locale, label_id, query, docid, grades[grade]
        )  # fmt: skip
        if why is not None:
            landing.leave_out(why, path, number, text)


def queries_of(paths: list[Path]) -> dict[str, str]:
    """Return identifier → query of TSV files; raises :class:`DataError` naming file and row."""
    found: dict[str, str] = {}
    for path in paths:
        for number, text in lines(path):
            query_id, tab, query = text.partition("\t")
            if not tab:
                raise fault(path, number, "query", "is missing; query identifier, tab, query")
            if number == 1 and query_id.lower() in ("qid", "query_id", "id"):
                continue
            if found.setdefault(query_id.strip(), query) != query:
                what = f"{query_id} is there already with another query; correct one of them"
                raise fault(path, number, "query_id", what)
    return found


def documents(path: Path) -> Iterator[Document]:
    """Yield the products of a collection, in whichever of its three formats; raises DataError."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".json")):
        for number, _, row in json_lines(path):
            yield Document(number, _id(path, number, row), _any(row, TITLES), _any(row, TEXTS))
    elif name.endswith(".tsv"):
        for number, text in lines(path):
            fields = text.split("\t")
            if len(fields) < 2:
                raise fault(path, number, "title", "is missing; document, tab, title, tab, text")
            if number > 1 or fields[0].lower() not in IDS:
                yield Document(number, fields[0].strip(), fields[1], " ".join(fields[2:]))
    else:
        yield from _trec_documents(path)


def _trec_documents(path: Path) -> Iterator[Document]:
    for first, block in _blocks(path):
        docid = _tag(block, "DOCNO")
        if not docid:
            raise fault(path, first, "DOCNO", "is missing; every document has one")
        yield Document(first, docid, _tag(block, "TITLE"), _tag(block, "TEXT"))


def _blocks(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the first line's number and the text of each document."""
    block: list[str] = []
    first = 0
    for number, text in lines(path):
        if text.lstrip().startswith(DOCUMENT):
            if block:
                raise fault(path, first, "DOC", f"is not closed before row {number}; add {END}")
            first = number
        elif not block:
            raise fault(path, number, "DOC", f"text outside {DOCUMENT} … {END}; correct the file")
        block.append(text)
        if text.rstrip().endswith(END):
            yield first, "\n".join(block)
            block = []
    if block:
        raise fault(path, first, "DOC", f"is not closed at the file's end; add {END}")


def _tag(block: str, name: str) -> str:
    found = re.search(rf"<{name}>(.*?)</{name}>", block, re.DOTALL)
    return found[1].strip() if found else ""


def _id(path: Path, number: int, row: Row) -> str:
    docid = _any(row, IDS)
    if not docid:
        raise fault(path, number, IDS[0], f"is missing; one of {', '.join(IDS)} is expected")
    return docid


def _any(row: Row, names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := text_of(row.get(name)).strip())), "")
