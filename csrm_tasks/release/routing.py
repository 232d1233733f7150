"""The routing document: which release a search server should use, replaced atomically.

A view of the ledger at ``{CSRM_ROUTING}/{market}.json``: it names the ledger row it was made from
and never goes back to an earlier one. Servers poll it; :mod:`.assignment` is how they read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from csrm_tasks.blobs import BlobStore, open_blobs
from csrm_tasks.errors import RefusedError
from csrm_tasks.release import ledger
from csrm_tasks.settings import Settings

VERSION = 1
ATTEMPTS = 20  # of compare-and-swap; each loss means that somebody else's write succeeded


def document(market: str, entries: Sequence[ledger.Entry]) -> dict[str, Any] | None:
    """Return the routing document that the ledger implies, or None before the first promotion."""
    move, stable = ledger.last_move(entries), ledger.live(entries)
    if move is None or stable is None:
        return None
    promoted = ledger.find(entries, "promoted", stable)
    payload = promoted.payload if promoted else move.payload
    return {
        "version": VERSION,
        "market": market,
        "stable": stable,
        "next": None,
        "weights": {"stable": 100, "next": 0},
        "seed": market,
        "ledger_seq": move.seq,
        "bundles": {stable: payload["bundle"]},
        "embeddings": {stable: payload["embeddings"]},
    }


def check(doc: Mapping[str, Any]) -> None:
    """Refuse a document that a server could not follow; raises :class:`RefusedError`."""
    weights = doc["weights"]
    if sum(weights.values()) != 100 or min(weights.values()) < 0:
        raise RefusedError(f"routing of {doc['market']}: weights {weights} do not add to 100")
    if doc["next"] is None and weights["next"]:
        raise RefusedError(f"routing of {doc['market']}: traffic for a release that is not there")


def read(settings: Settings, market: str) -> dict[str, Any] | None:
    """Return the published document, or None where there is none."""
    raw = open_blobs(settings.routing).read(_key(market))
    found: dict[str, Any] | None = None if raw is None else json.loads(raw)
    return found


def publish(settings: Settings, market: str) -> dict[str, Any] | None:
    """Make the published document equal what the ledger implies now, and return it."""
    blobs = open_blobs(settings.routing)
    for _ in range(ATTEMPTS):
        doc = document(market, ledger.verified(settings, market))
        if doc is None or _replace(blobs, market, doc):
            return doc
    raise RefusedError(f"routing of {market}: others kept replacing it; run the command again")


def _replace(blobs: BlobStore, market: str, doc: dict[str, Any]) -> bool:
    check(doc)
    data = json.dumps(doc, indent=1, sort_keys=True).encode()
    now = blobs.read(_key(market))
    # Between reading the ledger and here a newer row may have been published: never undo it.
    if now is not None and json.loads(now)["ledger_seq"] > doc["ledger_seq"]:
        return False
    return now == data or blobs.replace(_key(market), data, now)


def _key(market: str) -> str:
    return f"{market}.json"
