"""Which brand a query names: a dictionary of the catalogue's brands and their translations.

The longest form wins. Chinese and Japanese forms match anywhere, for those scripts run words
together; a form that begins or ends in another script (Latin, Hangul, digits) must begin or end at
a word boundary there, as "mi" is no brand in "mini". A form of one character counts only as a
whole word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from csrm_tasks.dataset.text import normalise


class BrandDictionary:
    """Forms of brands, looked up by their first two characters and then by length."""

    def __init__(self, forms: Mapping[str, str]) -> None:
        """Take normalised form → brand as it is to be reported."""
        self._forms = dict(forms)
        lengths: dict[str, set[int]] = defaultdict(set)
        for form in self._forms:
            lengths[form[:2]].add(len(form))
        self._lengths = {head: sorted(found, reverse=True) for head, found in lengths.items()}

    def match(self, norm: str) -> str:
        """Return the brand of the longest form (the first of equals) in a norm, or ""."""
        best = ""
        for start in range(len(norm)):
            for length in self._candidates(norm, start):
                form = norm[start : start + length]
                if length <= len(best):
                    break
                if form in self._forms and _stands_alone(norm, start, start + length):
                    best = form
                    break
        return self._forms.get(best, "")

    def _candidates(self, norm: str, start: int) -> list[int]:
        single = self._lengths.get(norm[start], [])
        lengths = [*self._lengths.get(norm[start : start + 2], []), *single]
        return [n for n in lengths if start + n <= len(norm)]


def build_brands(names: Iterable[str], aliases: Iterable[tuple[str, str]]) -> BrandDictionary:
    """Build a locale's dictionary from its catalogue's brand names and pairs of equal names.

    An alias leads to the catalogue's spelling of its partner where there is one, else to its
    partner as given; a catalogue name leads to itself. The result does not depend on any order.
    """
    own: dict[str, str] = {}
    for name in sorted(set(names)):
        own.setdefault(normalise(name), name)
    forms: dict[str, str] = {}
    for alias, partner in sorted(set(aliases)):
        forms.setdefault(normalise(alias), own.get(normalise(partner), partner))
    forms |= own
    forms.pop("", None)
    return BrandDictionary(forms)


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Return whether the form between two places is not part of a longer word."""
    single = end - start == 1
    return _boundary(text, start, start - 1, single) and _boundary(text, end - 1, end, single)


def _boundary(text: str, inside: int, outside: int, single: bool) -> bool:
    if not 0 <= outside < len(text) or not text[outside].isalnum():
        return True
    # A change between a run-together script and another is a boundary: "lg冰箱".
    if single:
        return False
    return _run_together(text[inside]) or _run_together(text[outside])


def _run_together(char: str) -> bool:
    """Return whether ``char`` is Han, Hiragana, Katakana or Bopomofo."""
    return "\u2e80" <= char <= "\u312f" or "\u31a0" <= char <= "\u9fff" or char >= "\U00020000"
