r"""Quotes that may not mean what RFC 4180 says: which lines belong together, and which are unclear.

An inch sign at the beginning of a field opens it and swallows every row up to the next such sign;
a writer that escapes a quote as ``\\"`` does the same. Where the quotes keep the RFC to the letter
and a field over several lines does not look like rows, the RFC is right. Everywhere else the two
readings, by the RFC and line by line, are compared; where either may be right, the lines are
unclear and nobody reads them. A bad quote costs its own line, and the lines after it only as far
as they may belong to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from csrm_tasks.ingest.reading.csv_shape import Shape
from csrm_tasks.ingest.reading.records import past_marks

FEW = 20  # lines: a text of so many may look like rows by chance, a longer one does not
MOST = 0.9  # share of the lines within that must look like rows
QUOTED_LIMIT = 16 << 20  # bytes after which an open quote is taken for a stray one

# A quoted and an unquoted field, by the RFC and of a writer that escapes with backslashes.
QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"(?=,|\n|\r\n|\r?\Z)')
UNQUOTED = re.compile(rb"[^,\n]*+")
ESCAPED_QUOTED = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"(?=,|\n|\r\n|\r?\Z)', re.DOTALL)
ESCAPED_UNQUOTED = re.compile(rb"[^,\n\\]*+(?:\\(?:\r\n|.)[^,\n\\]*+)*+", re.DOTALL)
OPEN = re.compile(rb'"[^"]*+(?:""[^"]*+)*+\Z')
ESCAPED_OPEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+\\?\Z', re.DOTALL)
Dialect = tuple[re.Pattern[bytes], re.Pattern[bytes], re.Pattern[bytes]]
RFC: Dialect = (QUOTED, UNQUOTED, OPEN)
ESCAPES: Dialect = (ESCAPED_QUOTED, ESCAPED_UNQUOTED, ESCAPED_OPEN)  # csv, pandas, MySQL
ESCAPES_IN_QUOTES: Dialect = (ESCAPED_QUOTED, UNQUOTED, ESCAPED_OPEN)  # Spark
DOUBT = re.compile(rb'"|\\[,\\\r\n]|\\\Z')  # a quote, or what may be an escape
TOKEN = re.compile(rb'\\[\\"]|""|"')  # escaped, doubled, or a quote that opens or closes
ESCAPE = re.compile(rb'\\(?:[",\\\r\n]|\Z)')


@dataclass
class Reading:
    """One record by the RFC, from its start: where it ends, or what it breaks on."""

    end: int = -1  # offset of its newline, or of the end of the text; -1 when broken
    fields: int = 0
    opener: int = -1  # the quote that opens the first field over several lines, or the broken one
    column: int = -1  # of that field, from 0
    closer: int = -1  # the quote that closes the last field over several lines
    unfinished: bool = False  # the text ends inside the quotes
    unquoted: int = 0  # how many of its fields are
    several: list[tuple[int, int, int]] = field(default_factory=list)  # start, end and column


def read_record(data: bytes, at: int, end: int, dialect: Dialect = RFC) -> Reading:
    """Read the record at ``at`` to the letter; a quote inside an unquoted field is a character.

    That is granted to records of one line only: who writes lines into a field quotes its quotes.
    In the dialects with escapes a backslash takes its meaning from what follows, and no quote is
    doubled.
    """
    quoted, unquoted, unfinished = dialect
    escapes = unquoted is ESCAPED_UNQUOTED
    found = Reading()
    literal = False
    at = past_marks(data, at)
    while True:
        found.fields += 1
        if data[at : at + 1] == b'"':
            match = quoted.match(data, at, end)
            _note(found, data, at, match)
            if match is None:
                found.unfinished = unfinished.match(data, at, end) is not None
                return found
            at = match.end()
            at += data[at : at + 1] == b"\r"
        else:
            match = unquoted.match(data, at, end)
            assert match is not None
            found.unquoted += 1
            literal = literal or (b'"' in match[0] and not escapes)
            at = match.end()
        if at >= end or data[at] != ord(","):
            broken = literal and found.closer >= 0
            found.end = -1 if broken else min(at, end)
            found.unfinished = escapes and at >= end  # the last line end may be escaped
            return found
        at += 1


def _note(found: Reading, data: bytes, at: int, match: re.Match[bytes] | None) -> None:
    """Remember a quoted field that is broken or goes over several lines."""
    several = match is not None and b"\n" in match[0]
    if found.opener < 0 and (several or match is None):
        found.opener, found.column = at, found.fields - 1
    if several and match is not None:
        found.closer = match.end() - 1
        found.several.append((at, match.end(), found.fields - 1))


@dataclass
class Walk:
    """A walk over text whose quotes are in doubt, line by line and record by record."""

    data: bytes
    end: int  # of the lines to be walked over
    shape: Shape
    last: bool  # nothing comes after ``end``
    joined: list[tuple[int, int]] = field(default_factory=list)  # records over several lines
    unclear: list[tuple[int, int]] = field(default_factory=list)  # spans of whole lines

    def run(self, at: int) -> int:
        """Walk from the start of a line; returns where a record begins that has no end yet."""
        while (doubt := DOUBT.search(self.data, at, self.end)) is not None:
            line = self.data.rfind(b"\n", at, doubt.start()) + 1 or at
            following = self._step(line)
            if following is None:
                return line
            at = following
        return self.end

    def _step(self, line: int) -> int | None:
        by_rfc, good = self._read(line, RFC)
        if good and not self._escapes(line, by_rfc.end):
            return self._by_rfc(line, by_rfc, good)
        escaped, readable = self._read(line, ESCAPES)
        if not readable and not escaped.unfinished:
            escaped, readable = self._read(line, ESCAPES_IN_QUOTES)
        if (by_rfc.unfinished or escaped.unfinished) and self._may_go_on(line):
            return None
        if not readable or (good and by_rfc.end == escaped.end):
            return self._by_rfc(line, by_rfc, good)
        if not self._escapes(line, escaped.end):
            return self._by_rfc(line, by_rfc, good)
        return self._by_both(line, by_rfc.end if good else -1, escaped.end)

    def _read(self, line: int, dialect: Dialect) -> tuple[Reading, bool]:
        """Read a record; also return whether it is one, with as many fields as it must have."""
        found = read_record(self.data, line, self.end, dialect)
        record = self.data[line : found.end]
        return found, found.end >= 0 and self.shape.fits(record, found.fields)

    def _escapes(self, line: int, until: int) -> bool:
        return ESCAPE.search(self.data, line, min(until + 1, self.end)) is not None

    def _by_both(self, line: int, by_rfc: int, escaped: int) -> int | None:
        """Go on to where both readings end a record, or the only one that can read it does."""
        if by_rfc < 0 and escaped == self._line_end(line):
            return escaped + 1
        while by_rfc >= 0 and escaped >= 0 and by_rfc != escaped:
            behind = min(by_rfc, escaped) + 1
            found, good = self._read(behind, ESCAPES if by_rfc > escaped else RFC)
            if found.unfinished and self._may_go_on(line):
                return None
            if not good:
                break
            by_rfc, escaped = (found.end, escaped) if by_rfc < escaped else (by_rfc, found.end)
        until = max(by_rfc, escaped)
        self.unclear.append((line, until))
        return until + 1

    def _by_rfc(self, line: int, found: Reading, good: bool) -> int | None:
        if not good and (found.end < 0 or found.closer >= 0):
            return self._broken(line, found.opener)
        if found.closer < 0:
            return found.end + 1
        if self.is_suspicious(line, found):
            return self._settle(line, found.closer, True, self._edges(line, found))
        self.joined.append((line, found.end))
        return found.end + 1

    def is_suspicious(self, line: int, found: Reading) -> bool:
        """Return whether a record over several lines may be several records.

        One whose every field is quoted is not: rows of such a writer have quotes, which would
        have ended it.
        """
        if self.shape.least == 1 or not found.unquoted:
            return False
        within = self._within(line, found.closer)
        rows = sum(map(self.shape.like_row, within))
        if within and 2 * rows >= len(within):
            return True
        if any(self.shape.has_seam(self.data[b:e], column) for b, e, column in found.several):
            return True
        return (rows > 0 or not within) and self._edges(line, found)

    def _edges(self, line: int, found: Reading) -> bool:
        """Return whether the first and the last line may be rows that have a stray quote each."""
        first = self.data[found.opener : self._line_end(line)]
        last = self.data[self._line_start(found.closer) : found.closer + 1]
        needed = self.shape.least - 1 - found.column
        return self.shape.has_commas(first, needed) and self.shape.has_commas(last, found.column)

    def _broken(self, line: int, opener: int) -> int | None:
        """Take the line for itself, or together with those up to a quote that may close it."""
        alone = self._line_end(line)
        if not _is_open(self.data[opener:alone]):
            return alone + 1
        quote = self._next_quote(alone)
        if quote is None:
            return None if self._may_go_on(line) else self._torn(line, self.end)
        if not self._closes(quote) and self.data[quote - 1 : quote] in (b",", b"\n"):
            return self._torn(line, self._line_start(quote))  # another field begins there
        rows = (self.data[line:alone], self.data[self._line_start(quote) : self._line_end(quote)])
        return self._settle(line, quote, False, all(map(self.shape.like_row, rows)))

    def _torn(self, line: int, end: int) -> int:
        """Take a line for itself whose quote nothing closes; what lacks fields goes on behind it.

        Nobody knows how far: a few lines, but not to ``end``.
        """
        until = self._line_end(line)
        if self.shape.is_long(self.data[line:until]):
            return until + 1
        for _ in range(FEW):
            until = self._line_end(until + 1) if until + 1 < end else until
        self.unclear.append((line, until))
        return until + 1

    def _settle(self, line: int, quote: int, by_rfc: bool, edges: bool) -> int:
        """Decide on the lines from an opening quote to the one that closes it, if it does."""
        alone, until = self._line_end(line), self._line_end(quote)
        within = self._within(line, quote)
        rows = sum(map(self.shape.like_row, within))
        certain = len(within) + 2 > FEW or not (by_rfc or b'\\"' in self.data[line:alone])
        if not (certain and edges and rows >= MOST * len(within)):
            found, good = self._read(self._line_start(quote), RFC)
            if good and not by_rfc:  # perhaps it is no end but the beginning of another
                until = max(until, found.end)
            self.unclear.append((line, until))
            return until + 1
        self.unclear.append((line, alone))
        if self._closes(quote):
            self.unclear.append((self._line_start(quote), until))
        return alone + 1

    def _within(self, line: int, quote: int) -> list[bytes]:
        """Return the lines between those of two places."""
        return self.data[self._line_end(line) + 1 : self._line_start(quote)].split(b"\n")[:-1]

    def _next_quote(self, at: int) -> int | None:
        tokens = TOKEN.finditer(self.data, at, self.end)
        return next((t.start() for t in tokens if t[0] == b'"'), None)

    def _closes(self, quote: int) -> bool:
        after = self.data[quote + 1 : min(quote + 3, self.end)]
        return after in (b"", b"\r") or after.startswith((b",", b"\n", b"\r\n"))

    def _may_go_on(self, line: int) -> bool:
        return not self.last and self.end - line < QUOTED_LIMIT

    def _line_end(self, at: int) -> int:
        found = self.data.find(b"\n", at, self.end)
        return self.end if found < 0 else found

    def _line_start(self, at: int) -> int:
        return self.data.rfind(b"\n", 0, at) + 1


def _is_open(text: bytes) -> bool:
    """Return whether a field of the line, from an opening quote on, may go on in the next one."""
    quotes = [t.start() for t in TOKEN.finditer(text) if t[0] == b'"']
    return any(
        (len(quotes) - i) % 2 == 1 and (q == 0 or text[q - 1 : q] == b",")
        for i, q in enumerate(quotes)
    )
