"""The embeddings document: which refreshed vectors each release's catalogue has (A35).

``{CSRM_ROUTING}/{market}/embeddings.json``, replaced as a whole. A release that it does not name
answers with the vectors of its bundle. A snapshot is a folder, named after the release, of the
artifact ``ref``; its ``snapshot.json`` says which towers made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from csrm_tasks.blobs import open_blobs
from csrm_tasks.errors import RefusedError
from csrm_tasks.json_files import json_text
from csrm_tasks.settings import Settings

SNAPSHOT = "snapshot.json"
ATTEMPTS = 20


class Snapshot(BaseModel):
    """The vectors of one release's catalogue."""

    model_config = ConfigDict(frozen=True)

    ref: str  # artifact of the refresh step
    previous: str | None = None  # what was served before: kept, as the way back
    day: str  # catalogue as published up to this day
    products: int
    encoded: int  # new or changed since the vectors before
    coverage: float  # share of the catalogue that has its vector
    stale: float  # share of the catalogue that lacked its vector before


class Embeddings(BaseModel):
    """The document."""

    model_config = ConfigDict(frozen=True)

    market: str
    releases: dict[str, Snapshot] = {}


def key(market: str) -> str:
    """Return where the document lies below CSRM_ROUTING."""
    return f"{market}/embeddings.json"


def parse(market: str, raw: bytes | None) -> Embeddings:
    """Read the document; raises :class:`RefusedError` for one that cannot be followed."""
    if raw is None:
        return Embeddings(market=market)
    try:
        embeddings = Embeddings.model_validate_json(raw)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise RefusedError(f"{key(market)}: {at}: {first['msg']}; run the refresh step") from e
    if embeddings.market != market:
        raise RefusedError(f"{key(market)} is of market {embeddings.market}, not {market}")
    return embeddings


def read(settings: Settings, market: str) -> Embeddings:
    """Return the published document; an empty one where there is none."""
    return parse(market, open_blobs(settings.routing).read(key(market)))


def publish(
    settings: Settings, market: str, made: Mapping[str, Snapshot], kept: Sequence[str] = ()
) -> Embeddings:
    """Replace the document by one that names ``made`` and what it says of the ``kept`` releases.

    Doing it again changes nothing. Raises :class:`RefusedError` when others keep replacing it, or
    when a later day's vectors are published already.
    """
    blobs = open_blobs(settings.routing)
    for _ in range(ATTEMPTS):
        raw = blobs.read(key(market))
        now = parse(market, raw)
        stay = {name: now.releases[name] for name in kept if name in now.releases}
        new = {name: _after(now.releases.get(name), one) for name, one in made.items()}
        document = Embeddings(market=market, releases={**stay, **new})
        text = json_text(document.model_dump(mode="json")).encode()
        if text == raw or blobs.replace(key(market), text, raw):
            return document
    raise RefusedError(f"embeddings of {market}: others kept replacing them; run it again")


def _after(before: Snapshot | None, new: Snapshot) -> Snapshot:
    if before is None:
        return new
    if before.day > new.day:
        raise RefusedError(
            f"vectors of {before.day} are published already, these are of {new.day}; run the "
            "refresh of a later day"
        )
    previous = before.previous if before.ref == new.ref else before.ref
    return new.model_copy(update={"previous": previous})


def about(release: str, export: Mapping[str, str]) -> dict[str, Any]:
    """Return ``snapshot.json``."""
    return {"release": release, "export": dict(export)}
