"""One message per key: whoever is first to write its note sends it.

Notes lie in the routing store (``notices/{market}/{digest}``), which all machines share. A note
says "sending" until the server took the message; one that was left so, by a process that was
killed, is taken over after :data:`STALE`. Where the store does not answer the message is sent all
the same: told twice is better than not at all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from csrm_tasks.blobs import BlobStore, text_digest
from csrm_tasks.notify.messages import Message
from csrm_tasks.notify.sending import NotSentError

log = logging.getLogger("csrm")
STALE = timedelta(minutes=10)


def deliver(
    blobs: BlobStore, message: Message, send: Callable[[Message], None], now: datetime | None = None
) -> bool:
    """Send ``message`` unless another of its key was sent; return whether it was. Raises nothing.

    One that could not be sent leaves no note, so that the next occasion tries again.
    """
    at = now or datetime.now(UTC)
    key = f"notices/{message.market}/{text_digest(message.key)}"
    mine = _note("sending", at, message)
    try:
        if not _claimed(blobs, key, mine, at):
            log.info("notify: %s was told already", message.event)
            return False
    except Exception as e:  # noqa: BLE001 whatever the store's trouble is
        log.warning("notify: the routing store does not answer (%s)", type(e).__name__)
        mine = b""
    try:
        send(message)
    except NotSentError as e:
        log.warning("notify: %s could not be told: %s", message.event, e)
        _settle(blobs, key, mine, None)
        return False
    _settle(blobs, key, mine, _note("sent", at, message))
    log.info("notify: told of %s", message.event)
    return True


def _claimed(blobs: BlobStore, key: str, mine: bytes, at: datetime) -> bool:
    if blobs.put_if_absent(key, mine):
        return True
    before = blobs.read(key)
    if before is None:  # it could not be sent, just now
        return blobs.put_if_absent(key, mine)
    note = json.loads(before)
    left = note["state"] == "sending" and at - datetime.fromisoformat(note["at"]) > STALE
    return left and blobs.replace(key, mine, before)


def _settle(blobs: BlobStore, key: str, mine: bytes, note: bytes | None) -> None:
    """Replace our own claim, or take it away; without one there is nothing to do."""
    if not mine:
        return
    try:
        if note is None:
            blobs.delete(key)
        else:
            blobs.replace(key, note, mine)
    except Exception as e:  # noqa: BLE001
        log.warning("notify: the routing store does not answer (%s)", type(e).__name__)


def _note(state: str, at: datetime, message: Message) -> bytes:
    body = {"state": state, "at": at.isoformat(), "event": message.event, "key": message.key}
    return json.dumps(body).encode()
