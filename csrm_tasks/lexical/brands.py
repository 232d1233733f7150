"""Which brands a single text names, quickly: for serving, where a column of texts is one.

The rules of a form's borders are those of :class:`csrm_tasks.dataset.brands.BrandDictionary`, which
matches whole columns at once and reports one brand of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from csrm_tasks.text import normalise


class BrandForms:
    """Forms of brands, found in a text from left to right, the longest form first."""

    def __init__(self, forms: Mapping[str, str]) -> None:
        """Take form → brand; forms are normalised, and an empty one is no form."""
        self.forms = {normalise(form): brand for form, brand in sorted(forms.items())}
        self.forms.pop("", None)

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """Lengths of the forms by their first character, the longest first."""
        lengths: dict[str, set[int]] = {}
        for form in self.forms:
            lengths.setdefault(form[0], set()).add(len(form))
        return {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def find(self, norm: str) -> list[tuple[int, int, str]]:
        """Return start, end and brand of the forms in a normalised text; none overlaps another."""
        found, at = [], 0
        while at < len(norm):
            end = self._end(norm, at)
            if end:
                found.append((at, end, self.forms[norm[at:end]]))
            at = end or at + 1
        return found

    def _end(self, norm: str, start: int) -> int:
        """Return the end of the longest form that stands at ``start``, 0 where none does."""
        for length in self._lengths.get(norm[start], ()):
            end = start + length
            if norm[start:end] in self.forms and _stands_alone(norm, start, end):
                return end
        return 0


def _stands_alone(norm: str, start: int, end: int) -> bool:
    single = end - start == 1
    left = start == 0 or _boundary(norm[start], norm[start - 1], single)
    return left and (end >= len(norm) or _boundary(norm[end - 1], norm[end], single))


def _boundary(inside: str, outside: str, single: bool) -> bool:
    # A change between a run-together script and another is a boundary: "lg冰箱".
    change = _run_together(inside) or _run_together(outside)
    return not outside.isalnum() or (change and not single)


def _run_together(character: str) -> bool:
    point = ord(character)
    return 0x2E80 <= point <= 0x312F or 0x31A0 <= point <= 0x9FFF or point >= 0x20000
