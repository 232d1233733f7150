"""Where the records of a CSV text (RFC 4180, comma, header) start and end, by quote parity.

The parity is right as long as every quote stands where the RFC has one. From the first record on
where one does not, or where a field over several lines may be several rows, the rest of the piece
is walked over (:mod:`csv_quotes`).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csrm_tasks.ingest.reading.csv_quotes import Walk, read_record
from csrm_tasks.ingest.reading.csv_shape import Shape
from csrm_tasks.ingest.reading.records import (
    BOM,
    NEWLINE,
    Flags,
    Offsets,
    UnreadableError,
    behind_marks,
    blank_lines,
    cut_lines,
)

QUOTE, COMMA, RETURN, BACKSLASH = b'",\r\\'
UNNAMED = "\0"  # before the number of a column that has no name: no contract's column has one
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.intp]


def _one_of(values: bytes) -> Flags:
    table = np.zeros(256, bool)
    table[list(values)] = True
    return table


ESCAPED = _one_of(b'",\\\r\n')  # after a backslash: see csv_records.ESCAPE
OPENS, CLOSES = _one_of(b',\n"'), _one_of(b',\r\n"')  # before and after a quote, by the RFC


@dataclass(frozen=True)
class Layout:
    """Where records start and end, and which of them need a closer look."""

    starts: Offsets
    ends: Offsets
    doubtful: Flags
    unclear: Flags  # the quotes may be read in two ways: nobody reads this one
    stop: int  # the text from here on has no end yet


class CsvPieces:
    """Cuts the text of a file into pieces that end where a record ends."""

    def __init__(self) -> None:
        self.head = b""
        self._shape: Shape | None = None
        self._layout: Layout | None = None

    def whole(self, data: bytes) -> int:
        """Return where the last whole record of ``data`` ends; 0 when there is none."""
        start = 0
        if self._shape is None:
            start = data.find(b"\n") + 1
            if not start:
                return 0
            self._begin(data[:start])
        assert self._shape is not None
        layout = lay_out(data[start:], self._shape, last=False)
        self._layout = layout if start + layout.stop else None
        return start + layout.stop

    def piece(self, data: bytes) -> tuple[bytes, Layout]:
        """Return the rows in what :meth:`whole` cut off, or in the rest, and where they lie.

        Raises :class:`UnreadableError` when the first line names no columns.
        """
        layout, self._layout = self._layout, None
        if layout is not None:
            return data[len(data) - layout.stop :], layout
        if self._shape is None:
            end = data.find(b"\n") + 1 or len(data)
            self._begin(data[:end])
            data = data[end:]
        assert self._shape is not None
        return data, lay_out(data, self._shape, last=True)

    def _begin(self, head: bytes) -> None:
        self.head, self._shape = head, shape_of(head)


def csv_header(line: bytes) -> list[str]:
    """Return the column names; raises :class:`UnreadableError` when ``line`` names none.

    A column without a name (spreadsheets append such) gets one that begins with :data:`UNNAMED`.
    """
    try:
        fields = next(csv.reader([line.decode().rstrip("\r\n")], strict=True))
    except (UnicodeDecodeError, csv.Error, StopIteration) as e:
        raise UnreadableError("the first line is not a CSV header in UTF-8") from e
    header = [f.strip() or f"{UNNAMED}{i}" for i, f in enumerate(fields)]
    if twice := [h for h in header if header.count(h) > 1]:
        raise UnreadableError(f"column {twice[0]!r} occurs twice in the header")
    return header


def shape_of(head: bytes) -> Shape:
    """Return how many fields a record has; raises :class:`UnreadableError` as csv_header."""
    header = csv_header(head)
    named = [i for i, name in enumerate(header) if not name.startswith(UNNAMED)]
    return Shape(len(header), named[-1] + 1 if named else len(header), b", " in head)


def lay_out(data: bytes, shape: Shape, last: bool) -> Layout:
    """Find the records of ``data``; unless it is the file's ``last``, the whole ones."""
    walk = Walk(data, len(data) if last else data.rfind(b"\n") + 1, shape, last)
    body = np.frombuffer(data, np.uint8)[: walk.end]
    newlines, commas, walked, stop = _separators(walk, body)
    starts, ends = cut_lines(newlines, stop)
    starts = behind_marks(data, starts)
    unclear = np.zeros(len(starts), bool)
    for begin, until in walk.unclear:
        unclear[np.searchsorted(starts, begin) : np.searchsorted(starts, until)] = True
    doubtful = unclear | _miscounted(commas, starts, ends, shape.fields)
    if walked < stop:
        doubtful[_walked_over(data, body[:stop], starts, walked)] = True
    suspects = np.flatnonzero(doubtful) if shape.fields > 1 else np.arange(len(starts))
    full = _filled(data, starts, ends, suspects)
    return Layout(starts[full], ends[full], doubtful[full], unclear[full], stop)


def _separators(walk: Walk, body: Bytes) -> tuple[Places, Places, int, int]:
    """Return newlines and commas between records and fields, and from where to where was walked.

    Of the text that was walked over all commas are returned: nobody counts by them.
    """
    newlines, commas = np.flatnonzero(body == NEWLINE), np.flatnonzero(body == COMMA)
    if walk.data.find(b'"', 0, walk.end) < 0 and walk.data.find(b"\\", 0, walk.end) < 0:
        return newlines, commas, walk.end, walk.end
    quotes = np.flatnonzero(body == QUOTE)
    outside = np.searchsorted(quotes, newlines) & 1 == 0
    outer, enclosed = newlines[outside], newlines[~outside]
    parted = commas[np.searchsorted(quotes, commas) & 1 == 0]
    stray = min([_first_stray(body, quotes), *_escapes(walk.data, body)[:1].tolist()])
    walked = _doubtful_from(walk, stray, outer, enclosed, commas, parted)
    stop = walk.run(walked)
    later = newlines[np.searchsorted(newlines, walked) : np.searchsorted(newlines, stop)]
    outer = _both(outer, walked, _outside(later, walk.joined))
    later = commas[np.searchsorted(commas, walked) : np.searchsorted(commas, stop)]
    return outer, _both(parted, walked, later), walked, stop


def _both(before: Places, walked: int, later: Places) -> Places:
    """Return the places of ``before`` up to ``walked``, and the later ones."""
    kept = before[: np.searchsorted(before, walked)]
    return np.append(kept, later) if len(later) else kept


def _doubtful_from(
    walk: Walk, stray: int, outer: Places, enclosed: Places, commas: Places, parted: Places
) -> int:
    """Return where the first record starts that parity may have got wrong, or else the end.

    ``stray`` is the first place that is not as the RFC has it, or else the end. ``outer`` and
    ``enclosed`` are newlines outside and inside quotes, ``commas`` all commas and ``parted`` those
    outside.
    """
    before = int(np.searchsorted(outer, stray))
    until = walk.end if stray == walk.end else int(outer[before - 1]) + 1 if before else 0
    several = np.unique(np.searchsorted(outer, enclosed[enclosed < until]))
    starts = np.append(0, outer + 1)[several]
    ends = np.append(outer, walk.end)[several]
    fields = np.searchsorted(parted, ends) - np.searchsorted(parted, starts) + 1
    separators = np.searchsorted(commas, ends) - np.searchsorted(commas, starts)
    shape = walk.shape
    # Fewer commas than two rows have: no lines within can look like rows.
    doubted = (fields != shape.fields) | (separators >= 2 * (shape.least - 1))
    for start in starts[doubted].tolist():
        found = read_record(walk.data, start, walk.end)
        record = walk.data[start : found.end]
        if not shape.fits(record, found.fields) or walk.is_suspicious(start, found):
            return int(start)
    return until


def _first_stray(body: Bytes, quotes: Places) -> int:
    """Return the first quote that is not where the RFC has one, or the end of ``body``.

    By parity quotes open and close in turn; a doubled one closes and opens again.
    """
    end = len(body)
    opening, closing = quotes[::2], quotes[1::2]
    before = np.where(opening > 0, body[opening - 1], NEWLINE)
    after = np.where(closing + 1 < end, body[np.minimum(closing + 1, end - 1)], NEWLINE)
    wrong = closing[~CLOSES[after]][:1].tolist()
    for place in closing[after == RETURN].tolist() if (after == RETURN).any() else ():
        if place + 2 < end and body[place + 2] != NEWLINE:
            wrong.append(place)
    odd = (int(place) for place in opening[~OPENS[before]])
    wrong.append(next((place for place in odd if not _begins(body, place)), end))
    if len(opening) > len(closing):
        wrong.append(int(opening[-1]))
    return min(wrong, default=end)


def _begins(body: Bytes, place: int) -> bool:
    """Return whether nothing but byte order marks is before ``place`` on its line."""
    while body[max(place - len(BOM), 0) : place].tobytes() == BOM:
        place -= len(BOM)
    return place == 0 or bool(body[place - 1] == NEWLINE)


def _outside(newlines: Places, joined: Sequence[tuple[int, int]]) -> Places:
    """Return the newlines that are not within a record over several lines."""
    if not joined:
        return newlines
    starts, ends = np.array(joined).T
    at = np.searchsorted(starts, newlines, side="right") - 1
    between: Places = newlines[(at < 0) | (newlines >= ends[at])]
    return between


def _miscounted(commas: Places, starts: Offsets, ends: Offsets, fields: int) -> Flags:
    """Return which records have another number of fields."""
    if fields > 1 and len(commas) == (fields - 1) * len(starts):
        by_record = commas.reshape(-1, fields - 1)
        if (by_record[:, 0] >= starts).all() and (by_record[:, -1] < ends).all():
            return np.zeros(len(starts), bool)
    counts = np.searchsorted(commas, ends) - np.searchsorted(commas, starts) + 1
    return np.asarray(counts != fields)


def _escapes(data: bytes, body: Bytes) -> Places:
    """Return the backslashes that may escape what follows; ``body`` is ``data``, or its head."""
    if data.find(b"\\", 0, len(body)) < 0:
        return np.zeros(0, np.intp)
    slashes = np.flatnonzero(body == BACKSLASH)
    following = body[np.minimum(slashes + 1, len(body) - 1)]  # the last one: itself, a backslash
    return slashes[ESCAPED[following]]


def _walked_over(data: bytes, body: Bytes, starts: Offsets, walked: int) -> Places:
    """Return the records that have a quote or an escape behind ``walked``, by their indices."""
    places = np.append(np.flatnonzero(body == QUOTE), _escapes(data, body))
    places = places[places >= walked]
    return np.unique(np.searchsorted(starts, places, side="right") - 1)


def _filled(data: bytes, starts: Offsets, ends: Offsets, suspects: Places) -> Flags:
    """Return which records are more than blank lines; only ``suspects`` can be."""
    full = np.ones(len(starts), bool)
    full[suspects] = ~blank_lines(data, starts[suspects], ends[suspects])
    return full
