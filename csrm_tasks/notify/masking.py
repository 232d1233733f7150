"""Text that may be sent to people: one bounded line, and no secret in it.

What looks like a secret is replaced, whoever wrote it, and so is every value that the environment
says is one. Too much is masked rather than too little: the whole text is in the task's log.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote, urlsplit

MASK = "***"
LEAST = 4  # characters of a value that is looked for as it is: shorter ones are in every text
SECRET_NAME = re.compile(
    r"(^|_)(PASSWORD|PASSWD|PASS|PWD|TOKEN|SECRET|KEY|CREDENTIALS?)(_|$)", re.IGNORECASE
)
KEYS = (
    r"[\w.-]*(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|authori[sz]ation|signature|credential|cookie|fernet[_-]?key)[\w.-]*"
)
VALUE = r"""(?:(?:bearer|basic|token)\s+)?(?:"[^"]*"|'[^']*'|[^\s,;&'"]+)"""
PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*KEY-----.*?(?:-----END [A-Z ]*KEY-----|$)"), MASK),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s'\"<>]*@", re.IGNORECASE), rf"\1{MASK}@"),
    (re.compile(r"(\bhttps?://[^\s?'\"<>]+)\?[^\s'\"<>]+", re.IGNORECASE), rf"\1?{MASK}"),
    (re.compile(r"(\bhttps?://hooks\.[^\s/'\"<>]+)/[^\s'\"<>]+", re.IGNORECASE), rf"\1/{MASK}"),
    (re.compile(rf"({KEYS}['\"]?\s*[:=]\s*){VALUE}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), MASK),
    (re.compile(r"\b(?:gh[opsu]|hf|xox[abeprs]|sk|glpat|github_pat)[_-][\w-]{8,}"), MASK),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?"), MASK),
)


def one_line(text: str, most: int, secrets: Collection[str] = ()) -> str:
    """Return ``text`` as one line of at most ``most`` characters, without secrets.

    ``secrets``: values to mask wherever they stand, also as a URL spells them.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for value in sorted(_spellings(secrets), key=len, reverse=True):
        line = line.replace(value, MASK)
    for pattern, instead in PATTERNS:
        line = pattern.sub(instead, line)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """Return the values of an environment that are secrets, or hold one (a URL's password)."""
    found = set()
    for name, value in environment.items():
        if SECRET_NAME.search(name):
            found.add(value)
        if "://" in value:
            found |= {*_passwords(value)}
    return {value for value in found if len(value) >= LEAST}


def _passwords(url: str) -> Iterator[str]:
    try:
        given = urlsplit(url.strip()).password
    except ValueError:  # no URL after all
        return
    if given:
        yield from (given, unquote(given))


def _spellings(secrets: Collection[str]) -> set[str]:
    """Return how secrets may stand in a line: as they are, and as URLs quote them."""
    plain = {" ".join(value.split()) for value in secrets}
    every = plain | {quote(v, safe="") for v in plain} | {quote_plus(v) for v in plain}
    return {value for value in every if len(value) >= LEAST}
