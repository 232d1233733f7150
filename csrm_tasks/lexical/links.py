"""Forms that are linked, pair by pair or by way of others, as one: characters, names of a brand."""

from __future__ import annotations

from collections.abc import Iterable


def least_linked(links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return for each form of ``links`` the least of all that it is linked with, itself included.

    A form that is only linked with itself is its own.
    """
    leader: dict[str, str] = {}

    def lead(form: str) -> str:
        while leader.setdefault(form, form) != form:
            form = leader[form]
        return form

    for pair in links:
        one, other = sorted(map(lead, pair))
        leader[other] = one
    return {form: lead(form) for form in leader}
