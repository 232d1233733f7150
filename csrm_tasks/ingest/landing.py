"""The landing zone: where a market puts its files, and what their names mean.

``{root}/{market}/{day}/{locale}/{kind}[-part].{csv|jsonl|parquet}[.gz|.zst]``
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from csrm_tasks.artifacts import file_digest
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contracts import CONTRACTS

NAME = re.compile(
    r"(?P<kind>[a-z_]+)(-[\w.]*?)?\.(?P<format>csv|jsonl|parquet)(\.(?P<compression>gz|zst))?"
)


@dataclass(frozen=True)
class Delivery:
    """One landed file; ``path`` is below the landing root, ``digest`` covers its bytes."""

    path: str
    name: str  # {locale}/{file}
    locale: str
    kind: str
    format: str
    compression: str  # "", gz or zst
    size: int
    digest: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields, for files.json."""
        return asdict(self)


def check_day(day: str) -> str:
    """Return ``day``; raises :class:`DataError` unless it is an ISO date."""
    try:
        if date.fromisoformat(day).isoformat() == day:
            return day
    except ValueError:
        pass
    raise DataError(f"{day!r} is not a day; write it as YYYY-MM-DD")


def list_landing(root: Path, market: str, day: str, locales: tuple[str, ...]) -> list[Delivery]:
    """List a day's files in the order in which they are stored.

    Raises :class:`DataError` when the folder is missing or a file's place or name says nothing.
    """
    folder = root / market / check_day(day)
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: land the files of {market} for {day} there")
    found = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    deliveries = [_delivery(p, root, folder, locales) for p in found]
    order = list(CONTRACTS)
    return sorted(deliveries, key=lambda d: (order.index(d.kind), d.locale, d.name))


def _delivery(path: Path, root: Path, folder: Path, locales: tuple[str, ...]) -> Delivery:
    name = path.relative_to(folder).as_posix()
    locale, _, base = name.partition("/")
    match = NAME.fullmatch(base)
    if locale not in locales:
        raise DataError(f"{path}: expected a folder per locale ({', '.join(locales)}) in {folder}")
    if match is None or match["kind"] not in CONTRACTS:
        raise DataError(
            f"{path}: name it {{{'|'.join(CONTRACTS)}}}[-part].{{csv|jsonl|parquet}}[.gz|.zst]"
        )
    return Delivery(
        path.relative_to(root).as_posix(), name, locale, match["kind"], match["format"],
        match["compression"] or "", path.stat().st_size, file_digest(path),
    )  # fmt: skip
