"""What a check says: findings, an address without its secrets, an error in plain words."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Literal

from csrm_tasks.errors import CsrmError, is_disk_full
from csrm_tasks.release import away, denied
from csrm_tasks.settings import Settings

Level = Literal["ok", "skipped", "warning", "fault"]
SKEW_WARNED, SKEW_FAULT = 5.0, 300.0  # seconds; object stores refuse a signature at 900

# What an error's text tells of the network, and what to do. The text itself is never shown.
NETWORK = (
    (
        r"could not translate host|name or service not known|name resolution|getaddrinfo|"
        r"nodename nor servname|failed to resolve|no address associated",
        "its host name is not known on this machine",
        "correct the host name, or have it resolved (DNS, /etc/hosts)",
    ),
    (
        r"connection refused|connection_refused|no such file or directory.*accepting connections",
        "nothing listens at that address",
        "start it, or correct host and port",
    ),
    (
        r"timed out|timeout expired|timeouterror|network is unreachable|no route to host",
        "it cannot be reached from this machine",
        "open the way to it (firewall, proxy, network), or correct host and port",
    ),
    (
        r"certificate|ssl|tlsv1",
        "the encrypted connection fails",
        "use http or https as it does, and let this machine trust its certificate",
    ),
    (
        r"could not connect to the endpoint|connection aborted|connection reset|server closed",
        "it does not answer at that address",
        "see whether it runs there, and what stands between",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report; a fault is what will not work."""

    check: str
    level: Level
    said: str
    cure: str = ""  # of a warning and a fault


@dataclass(frozen=True)
class Asked:
    """What a check looks at: where an installation keeps its state, and its markets."""

    settings: Settings
    markets: tuple[str, ...]  # whose state lies there


class Said:
    """Makes the findings of one check."""

    def __init__(self, check: str) -> None:
        self._check = check

    def ok(self, said: str) -> Finding:
        """What was looked at and works."""
        return Finding(self._check, "ok", said)

    def skipped(self, said: str) -> Finding:
        """What could not be looked at, and why that is no fault."""
        return Finding(self._check, "skipped", said)

    def warning(self, said: str, cure: str) -> Finding:
        """What works, though not well, or not always."""
        return Finding(self._check, "warning", said, cure)

    def fault(self, said: str, cure: str) -> Finding:
        """What will not work."""
        return Finding(self._check, "fault", said, cure)

    def clock(self, theirs: float, before: float, whose: str) -> Finding:
        """Compare another machine's clock with ours; it was asked at ``before`` (ours), in seconds.

        A second is allowed for what a header rounds away.
        """
        apart = max(before - 1 - theirs, theirs - time.time() - 1, 0.0)
        if apart <= SKEW_WARNED:
            return self.ok(f"its clock and ours differ by no more than {SKEW_WARNED:.0f} s")
        said = f"the clocks of {whose} and of this machine are {apart:,.0f} s apart"
        cure = "let both follow a time server (chrony, systemd-timesyncd)"
        return self.fault(said, cure) if apart > SKEW_FAULT else self.warning(said, cure)


def address(url: str) -> str:
    """Return where a URL leads: without user, password, query and fragment.

    What stands before the last ``@`` is left out as a whole: a password that was not quoted may
    hold any character.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    rest = re.split(r"[?#]", rest.rpartition("@")[2])[0]
    return f"{scheme}{separator}{rest}"


def explained(error: BaseException, what: str) -> tuple[str, str]:
    """Return what an error of ``what`` means, and the cure; never a text that we did not write.

    Such a text may hold addresses, statements and what a server echoes.
    """
    if isinstance(error, CsrmError):
        return f"{what}: {' '.join(str(error).split())}", ""
    closed = denied.by(error)
    if closed is not None:
        return f"{what} does not let us in ({away.kind(error)})", denied.CURES[closed]
    if isinstance(error, ModuleNotFoundError):
        return f"{what}: {error.name} is not installed here", "the extras are in docs/INSTALL.md"
    if is_disk_full(error):
        return f"{what}: no space left to write", "free some space, or choose another place"
    text = " ".join(f"{type(e).__name__} {e}" for e in denied.causes(error))
    for words, said, cure in NETWORK:
        if re.search(words, text, re.IGNORECASE):
            return f"{what}: {said} ({away.kind(error)})", cure
    return f"{what} fails ({away.kind(error)})", "see its own log for what it says of that"
