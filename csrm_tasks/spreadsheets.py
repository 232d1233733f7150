"""Tables that go to people and come back: CSV as spreadsheets write and read it.

Out goes UTF-8 with a byte order mark, without which a Korean or Taiwanese Excel shows other
letters. What comes back may be UTF-8, UTF-16, or the encoding of the country's Excel, separated by
commas, semicolons or tabs. Bytes of one country's encoding often decode as another's: the texts
that were sent out decide, else the market's locale together with how usual the letters are that
come out. What stays in doubt is refused with its cure; wrong letters are never taken. What comes in
is composed (Unicode NFC), as every text that was sent: macOS gives it back decomposed.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csrm_tasks.errors import DataError
from csrm_tasks.text import compose

BOM = b"\xef\xbb\xbf"
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods; .xls
SEPARATORS = (",", ";", "\t")
CURE = "save it as 'CSV UTF-8' and give it again"
COUNTRY = ("cp949", "cp950")  # what Excel saves a plain CSV in: Korea, Taiwan (Big5)
LETTERS = 5  # fewer do not show of which country they are
USUAL = 0.85  # share of them that must be everyday ones there
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how a spreadsheet knows what to execute
# What it makes a number, a date or a truth value of: 007, 1/2, ₩5, (3), mar1, true.
RETYPED = re.compile(
    r"'*([\d.,$€£¥₩(]|(true|false)$|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))",
    re.IGNORECASE,
)
ROUNDED = re.compile(r"\d([.,]\d+)?E\+?\d+", re.IGNORECASE)  # how it writes 8801234567890

Cells = dict[str, str]
Proof = Callable[[Sequence[Cells]], bool | None]


@dataclass(frozen=True)
class Row:
    """One row that is not empty, with every column of the header in lower case."""

    number: int  # as the spreadsheet counts: the header is row 1
    cells: Cells


def write_sheet(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, str]],
    keys: Sequence[str] = (),
) -> None:
    """Write a table for people, whole or not at all; a column that a row lacks is empty.

    An apostrophe goes before a text that a spreadsheet would execute, and before one in ``keys``
    (columns by which rows are known again) of which it would make a number or a date.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows({c: _marked(v, c in keys) for c, v in row.items()} for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(BOM + text.getvalue().encode())
    part.replace(path)


def _marked(value: str, key: bool) -> str:
    marked = FORMULA.match(value) or (key and RETYPED.match(value))
    return f"'{value}" if marked else value


def _unmarked(value: str) -> str:
    found = FORMULA.match(value) or RETYPED.match(value)
    return value[1:] if value.startswith("'") and found else value


def read_sheet(
    path: Path, required: Sequence[str], locale: str, proof: Proof | None = None
) -> list[Row]:
    """Read a table that people give back; ``locale`` is that of its texts.

    ``proof`` says of decoded rows whether their texts are those that were sent (None: it cannot
    tell). Raises :class:`DataError`, in one line with the cure, for what is no table of text with
    the ``required`` columns or whose letters are in doubt.
    """
    data = path.read_bytes()
    if data.startswith(WORKBOOKS):
        raise DataError(f"{path} is a workbook, not a table of text: {CURE}")
    own = legacy_encoding(locale)
    for text, certain in _decoded(path, data, own):
        rows = list(_rows(path, text, required))
        if certain or (proof and proof([row.cells for row in rows])):
            return rows
    if own and _is_usual(data, own) and not _decodes(data, "utf-8"):
        rows = list(_rows(path, data.decode(own), required))
        if not proof or proof([row.cells for row in rows]) is not False:
            return rows
    raise DataError(f"{path}: cannot tell in which encoding its letters are: {CURE}")


def legacy_encoding(locale: str) -> str | None:
    """Return what Excel saves a plain CSV in where ``locale`` is spoken, as far as we read it."""
    language, *rest = locale.lower().replace("_", "-").split("-")
    if language == "ko":
        return "cp949"
    return "cp950" if language == "zh" and {"tw", "hk", "mo", "hant"} & set(rest) else None


def is_lost(value: str) -> bool:
    """Whether saving has left nothing of a text but question marks."""
    return "\ufffd" in value or ("?" in value and not value.strip("? "))


def word(value: str) -> str:
    """Return a word as it is compared: without full-width forms, capitals and outer spaces."""
    return unicodedata.normalize("NFKC", value).strip().lower()


def refuse_damaged(path: Path, row: Row, columns: Sequence[str]) -> None:
    """Raise :class:`DataError` where a spreadsheet has rounded a key or lost all its letters."""
    for column in columns:
        value = row.cells.get(column, "")
        if ROUNDED.fullmatch(value):
            raise DataError(
                f"{path}: row {row.number}, field {column!r} is {value!r}: the spreadsheet made a "
                "number of it; take the column from the file that was sent, and format it as text"
            )
        if is_lost(value):
            raise DataError(
                f"{path}: row {row.number}, field {column!r} is {value!r}: its letters were lost "
                f"when it was saved; {CURE}"
            )


def _decoded(path: Path, data: bytes, own: str | None) -> Iterator[tuple[str, bool]]:
    """Yield the readings to try, each with whether the bytes themselves leave no doubt of it."""
    if text := _by_its_mark(path, data):
        yield text, True
        return
    doubt = own is not None and _is_short_utf8(data)
    for encoding in ("utf-8", *COUNTRY):
        if _decodes(data, encoding):
            yield data.decode(encoding), encoding == "utf-8" and not doubt


def _by_its_mark(path: Path, data: bytes) -> str:
    """Decode what says how it is encoded: a byte order mark, or UTF-16's zeros; else ""."""
    encoding = ""
    if data.startswith(BOM):
        encoding = "utf-8-sig"
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data[:2]:
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    if not encoding:
        return ""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is cut off or damaged (not {encoding.upper()}): {CURE}") from e


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _is_short_utf8(data: bytes) -> bool:
    """Whether valid UTF-8 might as well be a country's two-byte letters: 책 is the bytes of å."""
    if data.isascii() or not _decodes(data, "utf-8"):
        return False
    return max(map(ord, data.decode())) < 0x800


def _is_usual(data: bytes, encoding: str) -> bool:
    """Whether nearly all letters are everyday ones of this encoding's country, and enough of them.

    Korean: the 2,350 syllables of KS X 1001. Taiwanese: Big5's frequent characters, unless all of
    them would be everyday Korean too. A quarter of Taiwan's everyday characters would be.
    """
    if not _decodes(data, encoding):
        return False
    others = (c for c in data.decode(encoding) if not c.isascii() and not c.isspace())
    letters = [c for c in others if not unicodedata.category(c).startswith("P")]
    pairs = [c.encode(encoding) for c in letters]
    korean = sum(0xB0 <= p[0] <= 0xC8 and p[-1] >= 0xA1 for p in pairs if len(p) == 2)
    taiwanese = sum(0xA4 <= p[0] <= 0xC6 for p in pairs) if korean < len(pairs) else 0
    usual = korean if encoding == "cp949" else taiwanese
    return len(letters) >= LETTERS and usual >= USUAL * len(letters)


def _rows(path: Path, text: str, required: Sequence[str]) -> Iterator[Row]:
    if "\0" in text:
        raise DataError(f"{path} holds NUL characters, so it is no table of text: {CURE}")
    reader, header = _opened(path, text, required)
    number = 1
    try:
        for number, values in enumerate(reader, start=2):
            if not any(v.strip() for v in values):
                continue  # a blank line, or a row of separators
            if any(v.strip() for v in values[len(header) :]):
                raise DataError(
                    f"{path}: row {number} has more cells than the header; put quotes around a "
                    "text that holds the separator"
                )
            padded = values + [""] * (len(header) - len(values))
            cells = {c: v for c, v in zip(header, padded, strict=False) if c}
            yield Row(number, {c: compose(_unmarked(v)) for c, v in cells.items()})
    except csv.Error as e:
        raise DataError(f"{path}: the row after row {number} is no CSV ({e}): {CURE}") from e


def _opened(path: Path, text: str, required: Sequence[str]) -> tuple[Any, list[str]]:
    """Return a reader behind the header, and the header, by the separator that finds the most."""
    first, _, rest = text.partition("\n")
    if first.strip().lower() in {f"sep={s}".strip() for s in SEPARATORS}:
        text = rest  # a line for Excel alone
    _, reader, header = max(
        (_under(text, separator, required) for separator in SEPARATORS), key=lambda r: r[0]
    )
    if missing := [c for c in required if c not in header]:
        raise DataError(
            f"{path}: column {missing[0]!r} is missing; keep the header "
            f"({', '.join(required)}, separated by commas, semicolons or tabs)"
        )
    if doubled := [c for c in required if header.count(c) > 1]:
        raise DataError(f"{path}: column {doubled[0]!r} is there twice; leave one")
    return reader, header


def _under(text: str, separator: str, required: Sequence[str]) -> tuple[int, Any, list[str]]:
    """Return how many required columns this separator finds, the reader, and the header."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        # A second byte order mark, or what an encoding without one makes of it, is no name's part.
        header = [word(name).lstrip("\ufeff?") for name in next(reader, [])]
    except csv.Error:
        header = []
    return len(set(required) & set(header)), reader, header
