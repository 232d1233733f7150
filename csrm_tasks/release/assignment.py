"""Which release serves a session: a stable hash, nothing but the standard library.

Copy this file into any search server; implementations in other languages must agree with the test
vectors in ``tests/test_release_routing.py``. ``bucket`` is the first 8 bytes, big-endian, of
SHA-256 over UTF-8 ``"{seed}:{session_id}"``, modulo 10,000. The ``next`` release takes the buckets
from 0 up to its weight, so that raising its weight moves nobody back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

BUCKETS = 10_000


def bucket(session_id: str, seed: str) -> int:
    """Return the session's bucket, 0..9999, the same in every process and language."""
    digest = hashlib.sha256(f"{seed}:{session_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def assign(session_id: str, document: Mapping[str, Any]) -> str:
    """Return the release id that serves ``session_id`` under a routing document."""
    weights = document["weights"]  # {"stable": percent, "next": percent}, adding to 100
    share = weights["next"] * BUCKETS / 100
    if document["next"] is not None and bucket(session_id, document["seed"]) < share:
        return str(document["next"])
    return str(document["stable"])
