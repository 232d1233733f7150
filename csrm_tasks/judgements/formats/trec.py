"""TREC: qrels (query 0 document grade) and the queries that they name, as TSV.

Grades may be negative (junk, never looked at): ``--grades`` says what they mean as of the others,
for qrels never say it. The second field counts for nothing in every tool that is known to us; what
the file is stands there. The format knows neither raters nor reasons.
"""

from __future__ import annotations

from pathlib import Path

from csrm_tasks.blobs import text_digest
from csrm_tasks.errors import DataError
from csrm_tasks.judgements.formats.book import Asked, Book, Page, Rated, ours
from csrm_tasks.judgements.formats.fields import word_of
from csrm_tasks.layouts.files import fault, lines
from csrm_tasks.layouts.trec import queries_of


def read(path: Path, asked: Asked) -> Book:
    """Read qrels; raises :class:`DataError` naming the file, the line and its field."""
    if asked.queries is None:
        raise DataError(f"{path}: qrels name queries by number; say --queries FILE (number, query)")
    queries = queries_of([asked.queries])
    rated, title = [], ""
    for number, text in lines(path):
        fields = text.split()
        if len(fields) != 4:
            what = f"has {len(fields)} fields; 'query 0 document grade' is expected"
            raise fault(path, number, "", what)
        if fields[0] not in queries:
            what = f"{fields[0]} is not in {asked.queries.name}; add it there"
            raise fault(path, number, "query", what)
        title = title or ours(fields[1])
        rated.append(Rated(number, queries[fields[0]], fields[2], word_of(fields[3])))
    return Book(rated, {}, title)


def write(page: Page, folder: Path) -> list[Path]:
    """Write both files; raises :class:`DataError` for a document that qrels cannot name."""
    qrels, queries = [], []
    for query, ones in page.by_query().items():
        name = text_digest(query)
        queries.append(f"{name}\t{' '.join(query.split())}\n")
        for one in ones:
            if one.product_id.split() != [one.product_id]:
                raise DataError(f"document {one.product_id!r}: qrels take no white space in a name")
            if one.grade is not None:
                iteration = page.title.replace(" ", ":")
                qrels.append(f"{name} {iteration} {one.product_id} {page.rating(one)}\n")
    paths = [folder / "qrels.txt", folder / "queries.tsv"]
    for path, text in zip(paths, (qrels, queries), strict=True):
        path.write_text("".join(text), encoding="utf-8")
    return paths
