"""What a step read and made, as names of data sets: for whoever draws lineage (OpenLineage).

An artifact is called as its reference, ``market/step/fingerprint``. What is no artifact has a name
that two steps share, so that their edges join: a day that was landed, a day that was published, a
release, and what is live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.settings import Settings

Manifest = Mapping[str, Any]


class Edges(NamedTuple):
    """Names of the data sets that a step read and made, each once."""

    read: list[str]
    made: list[str]


# Beside artifacts, by step: how the name goes on behind the market, from the step's manifest.
READS: Mapping[str, Callable[[Manifest], Iterator[str]]] = {
    "land": lambda of: _days("landed", [of["about"]["params"]["day"]]),
    "promote": lambda of: iter([f"releases/{of['facts']['release']}"]),
    "snapshot": lambda of: _days("published", of["about"].get("external_inputs", ())),
}
MAKES: Mapping[str, Callable[[Manifest], Iterator[str]]] = {
    "publish_day": lambda of: _days("published", [of["about"]["params"]["day"]]),
    "register": lambda of: iter([f"releases/{of['facts']['release']}"]),
    "promote": lambda of: iter(["live"]),
}


def edges_of(settings: Settings, ref: str) -> Edges:
    """Return what was read and made by the step that published ``ref``.

    Raises :class:`ArtifactError` where nothing was published under it.
    """
    manifest = ArtifactStore(settings.artifacts, settings.cache).require(ref)
    market, step, _ = ref.split("/")
    read, made = [*_references(manifest["inputs"])], [ref]
    for names, of in ((read, READS), (made, MAKES)):
        if step in of:
            names += [f"{market}/{name}" for name in of[step](manifest)]
    return Edges(list(dict.fromkeys(read)), list(dict.fromkeys(made)))


def _references(inputs: Mapping[str, Any]) -> Iterator[str]:
    for given in inputs.values():
        yield from [given] if isinstance(given, str) else given


def _days(kind: str, days: Iterable[str]) -> Iterator[str]:
    return (f"{kind}/{day}" for day in days)
