"""The routing document: which release a search server should use, replaced atomically.

A view of the ledger at ``{CSRM_ROUTING}/{market}.json``: it names the ledger row it was made from
and never goes back to an earlier one. Servers poll it; :mod:`.assignment` is how they read it, and
``docs/ROUTING.md`` says what each field means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from csrm_tasks.blobs import BlobStore, open_blobs
from csrm_tasks.errors import RefusedError
from csrm_tasks.json_files import json_text
from csrm_tasks.release import ledger, rollout
from csrm_tasks.settings import Settings

VERSION = 2
INTERLEAVING = 3  # of documents that interleave: a server that cannot keeps its last one
ATTEMPTS = 20  # of compare-and-swap; each loss means that somebody else's write succeeded
KEPT = 2  # predecessors that servers and retention keep loadable


def document(market: str, entries: Sequence[ledger.Entry]) -> dict[str, Any] | None:
    """Return the routing document that the ledger implies, or None before the first promotion."""
    turn, lives = ledger.last_serving_row(entries), ledger.live_stack(entries)
    if turn is None or not lives:
        return None
    stable, state = lives[-1], rollout.current_rollout(entries)
    following = state.release if state and not state.launched else None
    holdout = state.control if state and state.launched else None
    weights = {
        "next": state.weight if state and following else 0,
        "holdout": state.plan.holdout if state and holdout else 0,
    }
    if state and following and state.current.interleave:
        weights["interleaved"] = state.current.interleave
    before = lives[-1 - KEPT : -1]
    named = sorted({r for r in (stable, following, holdout, *before) if r})
    made = {release: _made_of(entries, release) for release in named}
    return {
        "version": INTERLEAVING if "interleaved" in weights else VERSION,
        "market": market,
        "stable": stable,
        "next": following,
        "holdout": holdout,
        "shadow": following is not None and not weights["next"] and "interleaved" not in weights,
        "weights": {"stable": 100 - sum(weights.values()), **weights},
        "seed": f"{market}:{state.release if state else stable}",
        "predecessors": before[::-1],
        "ledger_seq": turn.seq,
        "bundles": {release: payload["bundle"] for release, payload in made.items()},
        "embeddings": {release: payload["embeddings"] for release, payload in made.items()},
    }


def _made_of(entries: Sequence[ledger.Entry], release: str) -> Mapping[str, str]:
    row = ledger.find(entries, "promoted", release) or ledger.find(entries, "started", release)
    if row is None:
        raise RefusedError(f"the ledger has no promotion or start of {release}")
    return row.payload


def check(doc: Mapping[str, Any]) -> None:
    """Refuse a document that a server could not follow; raises :class:`RefusedError`."""
    weights = doc["weights"]
    if sum(weights.values()) != 100 or min(weights.values()) < 0:
        raise RefusedError(f"routing of {doc['market']}: weights {weights} do not add to 100")
    for arm, named in (("next", "next"), ("holdout", "holdout"), ("interleaved", "next")):
        if doc[named] is None and weights.get(arm, 0):
            raise RefusedError(f"routing of {doc['market']}: traffic for a release not there")


def read(settings: Settings, market: str) -> dict[str, Any] | None:
    """Return the published document, or None where there is none; refuses what is not JSON."""
    raw = open_blobs(settings.routing).read(key(market))
    try:
        published: dict[str, Any] | None = None if raw is None else json.loads(raw)
    except ValueError as e:
        raise RefusedError(
            f"routing of {market} is not JSON; csrm release reconcile mends it"
        ) from e
    return published


def published_row(settings: Settings, market: str) -> int:
    """Return the ledger row that the published document follows from; 0: there is none to read."""
    return _row(open_blobs(settings.routing).read(key(market)))


def _row(raw: bytes | None) -> int:
    try:
        return int(json.loads(raw or b"")["ledger_seq"])
    except (ValueError, KeyError, TypeError):
        return 0


def ledger_to_add_to(settings: Settings, market: str) -> list[ledger.Entry]:
    """Return the ledger for whoever is about to add a row that servers follow.

    Raises :class:`RefusedError` where it lacks the row that is published: a row added to a restored
    backup would in the end have the lost one's number. Where the document cannot be read now,
    nothing is refused: publishing says so.
    """
    try:
        now = open_blobs(settings.routing).read(key(market))
    except Exception:  # noqa: BLE001 a way back depends on nothing that may be away
        now = None
    entries = ledger.verified(settings, market)
    _refuse_older(settings, market, entries, now)
    return entries


def publish(
    settings: Settings, market: str, entries: Sequence[ledger.Entry] | None = None
) -> dict[str, Any] | None:
    """Make the published document equal what the ledger implies, and return it.

    ``entries``: the ledger as the caller has just read it (None: read here); it is read again where
    it lacks the row that is published. Raises :class:`RefusedError` where it still does.
    """
    blobs = open_blobs(settings.routing)
    for _ in range(ATTEMPTS):
        # Read before the ledger, which has every row that anybody published by then; whoever
        # publishes a newer one meanwhile wins the compare-and-swap.
        now = blobs.read(key(market))
        rows = entries
        if rows is None or not has_row(rows, _row(now)):
            rows = ledger.verified(settings, market)
            _refuse_older(settings, market, rows, now)
        doc = document(market, rows)
        if doc is None or _replace(blobs, market, doc, now):
            return doc
        entries = None
    raise RefusedError(f"routing of {market}: others kept replacing it; run the command again")


def _replace(blobs: BlobStore, market: str, doc: dict[str, Any], now: bytes | None) -> bool:
    check(doc)
    data = json_text(doc).encode()
    return now == data or blobs.replace(key(market), data, now)


def _refuse_older(
    settings: Settings, market: str, entries: Sequence[ledger.Entry], now: bytes | None
) -> None:
    """Refuse a ledger whose last rows are lost (a backup was brought back), and say what to do."""
    row = _row(now)
    if not row or has_row(entries, row):
        return
    end = f"ends with row {entries[-1].seq} of {entries[-1].at}" if entries else "is empty"
    raise RefusedError(
        f"routing of {market} follows row {row} of the ledger, which this ledger does not have: it "
        f"{end}. The database is older than the routing document, as a restored backup is. "
        f"Nothing is published: servers go on with the document that is there. Bring back a newer "
        f"backup; if the later rows are lost, move {settings.routing.rstrip('/')}/{key(market)} "
        f"away, run csrm release reconcile --market {market}, and restart the scoring services "
        '(docs/OPERATIONS.md, "Backup and restore")'
    )


def has_row(entries: Sequence[ledger.Entry], row: int) -> bool:
    """Return whether a ledger has a row from which a routing document can follow; 0: from none."""
    return row == 0 or (row <= len(entries) and entries[row - 1].action in ledger.SERVING_ACTIONS)


def key(market: str) -> str:
    """Return where the document lies below CSRM_ROUTING."""
    return f"{market}.json"
