"""How a record of a CSV file looks, by its header; and how to tell a row from prose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

LENIENT = re.compile(rb'"(?:[^"]|"")*+"(?=,|\r?\Z)|[^,]*+')  # a field of one line
UNSPACED = re.compile(rb",(?![ \t])")  # a comma as writers of CSV put it, not as people do


@dataclass(frozen=True)
class Shape:
    """How many fields a record has, by the header."""

    fields: int
    least: int  # without the columns at the end that have no name
    spaced: bool  # the header has blanks behind its commas, so the rows may have, too

    def fits(self, record: bytes, fields: int) -> bool:
        """Return whether so many fields are a record; those beyond the header may be empty.

        Not so in a record over several lines: rows that run together may end like that.
        """
        extra = fields - self.fields
        if extra > 0 and b"\n" in record:
            return False
        return fields >= self.least and (extra <= 0 or record.rstrip().endswith(b"," * extra))

    def like_row(self, line: bytes) -> bool:
        """Return whether a line, read by itself, looks like a whole record and not like prose."""
        return self.has_commas(line, self.least - 1) and self.is_long(line)

    def is_long(self, line: bytes) -> bool:
        """Return whether a line, read by itself, has the fields of a record."""
        plain = LENIENT.sub(b"", line) if b'"' in line else line
        return plain.count(b",") >= self.least - 1

    def has_commas(self, text: bytes, needed: int) -> bool:
        """Return whether ``text`` has the separators needed, at least one without a blank."""
        if needed <= 0:
            return True
        return text.count(b",") >= needed and (self.spaced or UNSPACED.search(text) is not None)

    def has_seam(self, field: bytes, column: int) -> bool:
        """Return whether a line end within a field of ``column`` may be the end of a row.

        A quote that was lost and one that came joined two rows there: before the line end are the
        separators that a row has behind the column, and behind it those before the column.
        """
        separator = b"," if self.spaced else UNSPACED
        counts = [len(re.findall(separator, line)) for line in field.split(b"\n")]
        behind = self.least - 1 - column
        return any(one >= behind and other >= column for one, other in pairwise(counts))
