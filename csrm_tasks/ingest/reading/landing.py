"""The landing zone: where a market puts its files, and what their names mean.

``{root}/{market}/{day}/{locale}/{kind}[-part].{csv|jsonl|parquet}[.gz|.zst]``
"""

from __future__ import annotations

import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csrm_tasks.artifacts import file_digest
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contract.contracts import CONTRACTS
from csrm_tasks.sections.base import is_day

NAME = re.compile(
    r"(?P<kind>[a-z_]+)(-[\w.]{0,200}?)?\.(?P<format>csv|jsonl|parquet)(\.(?P<compression>gz|zst))?"
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
    if is_day(day):
        return day
    raise DataError(f"{day!r} is not a day; write it as YYYY-MM-DD")


def list_landing(root: Path, market: str, day: str, locales: tuple[str, ...]) -> list[Delivery]:
    """List a day's files in the order in which they are stored.

    Raises :class:`DataError` when the folder is missing, or when something in it is not a delivery:
    a link, a pipe, a name or a place that says nothing. Such a day is not taken in at all, for
    nobody can tell what was meant. Names that begin with a dot are uploads under way, of files and
    of the folders in which some tools collect them.
    """
    folder = root / market / check_day(day)
    for place in (folder.parent, folder):
        if place.is_symlink():
            raise DataError(f"{place}: is a link; put the folder itself there")
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: land the files of {market} for {day} there")
    present = (p for p in sorted(folder.rglob("*")) if not _under_way(p.relative_to(folder)))
    found = [p for p in present if _is_file(p)]
    deliveries = [_delivery(p, root, folder, locales) for p in found]
    order = list(CONTRACTS)
    return sorted(deliveries, key=lambda d: (order.index(d.kind), d.locale, d.name))


def _under_way(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_file(path: Path) -> bool:
    """Return whether ``path`` is a file, and not a folder; raises :class:`DataError` otherwise."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):  # its target may be any file of this machine
        raise DataError(f"{_shown(path)}: is a link; put the file itself there")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a pipe may never end
        raise DataError(f"{_shown(path)}: is neither a file nor a folder; remove it")
    return stat.S_ISREG(mode)


def _shown(path: Path) -> str:
    """Return the path on one line of printable characters, whatever its name has."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def _delivery(path: Path, root: Path, folder: Path, locales: tuple[str, ...]) -> Delivery:
    name = path.relative_to(folder).as_posix()
    locale, _, base = name.partition("/")
    match = NAME.fullmatch(base)
    if locale not in locales:
        raise DataError(
            f"{_shown(path)}: expected a folder per locale ({', '.join(locales)}) in {folder}"
        )
    if match is None or match["kind"] not in CONTRACTS:
        kinds = "|".join(CONTRACTS)
        raise DataError(
            f"{_shown(path)}: name it {{{kinds}}}[-part].{{csv|jsonl|parquet}}[.gz|.zst]"
        )
    try:
        size, digest = path.stat().st_size, file_digest(path)
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    return Delivery(
        path.relative_to(root).as_posix(), name, locale, match["kind"], match["format"],
        match["compression"] or "", size, digest,
    )  # fmt: skip
