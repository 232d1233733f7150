"""Which release serves a session: a stable hash, nothing but the standard library.

Copy this file into any search server; ``docs/ROUTING.md`` describes it bit by bit for other
languages, which must agree with ``docs/routing-vectors.json``. ``bucket`` is the first 8 bytes,
big-endian, of SHA-256 over UTF-8 ``"{seed}:{session_id}"``, modulo 10,000. The ``next`` release
takes the buckets from 0 up to its weight, so that raising its weight moves nobody back; the
hold-out takes the last ones, so that who is in it has never met the new release; interleaved
sessions stand before them (:mod:`.interleaving` makes their lists).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

BUCKETS = 10_000
PER_CENT = BUCKETS // 100


def bucket(session_id: str, seed: str) -> int:
    """Return the session's bucket, 0..9999, the same in every process and language."""
    digest = hashlib.sha256(f"{seed}:{session_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def arm(session_id: str, document: Mapping[str, Any]) -> str:
    """Return ``stable``, ``next``, ``interleaved`` or ``holdout``: what a server logs as the
    session's bucket.
    """
    if not session_id:  # who cannot be told apart is no part of an experiment
        return "stable"
    weights = document["weights"]  # percent of each arm, adding to 100
    slot = bucket(session_id, document["seed"])
    if slot < weights["next"] * PER_CENT:
        return "next"
    last = BUCKETS - weights["holdout"] * PER_CENT
    if slot >= last:
        return "holdout"
    return "interleaved" if slot >= last - weights.get("interleaved", 0) * PER_CENT else "stable"


def assign(session_id: str, document: Mapping[str, Any]) -> str:
    """Return the release id that serves ``session_id`` under a routing document.

    Where both do, that is the stable one: what answers whoever cannot interleave.
    """
    chosen = arm(session_id, document)
    return str(document["stable" if chosen == "interleaved" else chosen])
