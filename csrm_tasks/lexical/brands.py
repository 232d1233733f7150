"""Which brands a single text names, quickly: for serving, where a column of texts is one.

The rules of a form's borders are those of :class:`csrm_tasks.dataset.brands.BrandDictionary`, which
matches whole columns at once and reports one brand of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from csrm_tasks.lexical.links import least_linked
from csrm_tasks.text import normalise

LEAST, SHARE = 3, 0.2  # of a name's products with another name in the title


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


def brand_groups(names: Iterable[str], aliases: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return form → brand: names that an alias links, also by others, are forms of one brand."""
    pairs = [*((name, name) for name in names), *aliases]
    brand_of = least_linked((normalise(one), normalise(other)) for one, other in pairs)
    return {form: brand for form, brand in sorted(brand_of.items()) if form}


def catalogue_aliases(titles: Sequence[str], brands: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of names that a catalogue uses for one brand: (N,) titles, brands or "".

    A shop writes a brand in two scripts: one stands in the column, the other in the title. So a
    name is another's where the titles of at least a fifth of its products, and of three, hold it.
    """
    names = [normalise(brand) for brand in brands]
    forms = BrandForms({name: name for name in names})
    products = Counter(names)
    together = Counter(
        (name, other)
        for title, name in zip(titles, names, strict=True)
        if name
        for other in {found for _, _, found in forms.find(normalise(title))} - {name}
    )
    return sorted(
        pair for pair, n in together.items() if n >= LEAST and n >= SHARE * products[pair[0]]
    )


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
