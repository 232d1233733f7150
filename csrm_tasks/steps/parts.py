"""Parts of one whole that a step puts together: shards, folds, runs; each once, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import DataError


def check_parts(
    parts: Sequence[Artifact],
    wanted: Sequence[Mapping[str, Any]],
    ours: Callable[[Artifact], bool],
    called: str,
) -> None:
    """Raise :class:`DataError` at the first part that is not the one wanted in its place.

    ``wanted``: the facts by which each part is known. ``ours``: whether a part was made of what
    this step is given. ``called``: what a part is and what to do, as an error says it; fields in
    braces are those of ``wanted``. Another number of parts is refused at the end of the shorter.
    """
    for part, facts in zip(parts, wanted, strict=False):
        if not ours(part) or not facts.items() <= part.facts.items():
            raise DataError(f"{part.ref} is not {called.format(**facts)}")
    if len(parts) != len(wanted):
        missing = f"{len(parts)} parts are given, and {len(wanted)} make the whole"
        raise DataError(f"{missing}: the last is not {called.format(**wanted[-1])}")


def shards(of: int, **facts: str) -> list[dict[str, Any]]:
    """Return the facts of all shards, in order."""
    return [{"shard": k, "of": of} | facts for k in range(of)]
