"""``csrm base add``: a base from its source into the folder of bases, once."""

from __future__ import annotations

from pathlib import Path

from csrm_tasks.bases.landing import land
from csrm_tasks.bases.record import BaseRecord, describe
from csrm_tasks.bases.sources import Source
from csrm_tasks.errors import RefusedError


def add_base(bases: Path, name: str, source: Source, *, accept_terms: bool) -> bool:
    """Add ``source`` as the base ``name``; False: it is there already.

    Raises :class:`RefusedError` where its terms are not accepted, or the name is another base's.
    """
    origin = source.origin()
    if source.terms() is not None and not accept_terms:
        raise RefusedError(
            f"{origin.source} comes under terms ({origin.licence}) that you accept by using it; "
            "read them and add --accept-terms"
        )

    def same(found: BaseRecord) -> bool:
        return found.trimmed is None and found.origin == origin

    def build(folder: Path) -> BaseRecord:
        source.unpack(folder)
        return describe(folder, origin)

    return land(bases, name, same, build)
