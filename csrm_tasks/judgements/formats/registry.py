"""The formats by the names that the command line knows them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from csrm_tasks.judgements.formats import (
    argilla,
    label_studio,
    opensearch,
    quepid,
    rank_eval,
    rre,
    trec,
)
from csrm_tasks.judgements.formats.book import Asked, Book, Page


@dataclass(frozen=True)
class Format:
    """How one tool's files are read and written, and what they have a place for."""

    read: Callable[[Path, Asked], Book]
    write: Callable[[Page, Path], list[Path]]
    soft: bool = False  # grades of a model
    raters: bool = False
    reasons: bool = False


FORMATS: Mapping[str, Format] = {
    "opensearch": Format(opensearch.read, opensearch.write, soft=True),
    "quepid": Format(quepid.read, quepid.write, raters=True, reasons=True),
    "quepid-csv": Format(quepid.read, quepid.write_csv, raters=True),
    "rre": Format(rre.read, rre.write),
    "trec": Format(trec.read, trec.write),
    "rank-eval": Format(rank_eval.read, rank_eval.write),
    "label-studio": Format(
        label_studio.read, label_studio.write, soft=True, raters=True, reasons=True
    ),
    "argilla": Format(argilla.read, argilla.write, soft=True, raters=True, reasons=True),
}
