"""Tokens of the board's forms: who may send one, for which market, and until when.

Another site can have a logged-in browser send a form, and cannot know the token, which is a
message authentication code over the user by a secret of the server. Expires, so that a page that
was left open or copied is no standing permission.
"""

from __future__ import annotations

import hashlib
import hmac

LIFETIME = 4 * 3600  # seconds
PURPOSE = b"form of csrm's release board"


def token(secret: str, user: str, market: str, now: float) -> str:
    """Return the token of a page that is drawn for ``user`` at ``now`` (seconds since 1970)."""
    until = int(now) + LIFETIME
    return f"{until}.{_code(secret, user, market, until)}"


def accepts(secret: str, user: str, market: str, now: float, given: str) -> bool:
    """Whether ``given`` is a token of this user and market that has not expired."""
    stamp, _, code = given.partition(".")
    if not (stamp.isascii() and stamp.isdecimal() and len(stamp) < 12 and code.isascii()):
        return False
    right = hmac.compare_digest(code, _code(secret, user, market, int(stamp)))
    return right and now <= int(stamp)


def _code(secret: str, user: str, market: str, until: int) -> str:
    # Lengths first: no two different triples give the same bytes
    parts = [part.encode() for part in (user, market, str(until))]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    key = hmac.new(secret.encode(), PURPOSE, hashlib.sha256).digest()
    return hmac.new(key, message, hashlib.sha256).hexdigest()
