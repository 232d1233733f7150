"""Which of two releases shoppers prefer, from interleaved searches (A57).

A session's preference is (a − b) / (a + b), where a and b are the clicks and carts on what the
judged release picked and on what its control did; a session without any says nothing. Between two
equally good releases the coins make it symmetric about 0, so that with V = Σd² the boundary of
:mod:`.sequential` holds exactly at every session at once, whatever the shoppers do (de la Peña
1999): no variance is estimated and no number of sessions has to be large.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from csrm_tasks.release.online.sequential import Difference, boundary, rho_for


@dataclass(frozen=True)
class Preferences:
    """Sums over the sessions that gave either release a credit."""

    sessions: int = 0
    total: float = 0.0  # Σ d, d in −1..1; above 0: the judged release is preferred
    squares: float = 0.0  # Σ d²

    @classmethod
    def of(cls, credits_: Iterable[tuple[int, int]]) -> Self:
        """Sum up sessions, each the credits of the judged release and of its control."""
        found = [(a - b) / (a + b) for a, b in credits_ if a + b]
        return cls(len(found), sum(found), sum(d * d for d in found))

    def __add__(self, other: Preferences) -> Preferences:
        """Return the sums over both."""
        return Preferences(
            self.sessions + other.sessions, self.total + other.total, self.squares + other.squares
        )


def preference(found: Preferences, alpha: float, planned: float) -> Difference | None:
    """Return the always-valid mean preference, −1..1; None without a session that has one.

    ``planned``: the sum of squares (about the sessions) at which the bounds are narrowest.
    """
    if not found.sessions:
        return None
    value = found.total / found.sessions
    half = boundary(found.squares, rho_for(planned, alpha), alpha) / found.sessions
    return Difference(value, value - half, value + half)
