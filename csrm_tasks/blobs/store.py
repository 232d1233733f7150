"""What artifacts, the lake and routing documents need of a place to keep named byte strings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """What a store says of one key without reading it."""

    size: int  # bytes
    written: float  # seconds since 1970


class BlobStore(Protocol):
    """What artifacts, the lake and routing documents need of a place to keep bytes."""

    def read(self, key: str) -> bytes | None:
        """Return the bytes, or None where there are none."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write atomically unless something is there; False when something was."""

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Write atomically if what is there equals ``expected``; False when it does not."""

    def upload(self, key: str, source: Path) -> None:
        """Copy a local file to ``key``, atomically, replacing what was there."""

    def download(self, key: str, target: Path) -> None:
        """Copy ``key`` to a local file; raises FileNotFoundError when there is none."""

    def delete(self, key: str) -> None:
        """Delete one key, if it is there."""

    def delete_tree(self, prefix: str) -> None:
        """Delete everything below ``prefix``."""

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below ``prefix``, sorted."""

    def entries(self, prefix: str) -> dict[str, Entry]:
        """Return what is below ``prefix`` by key, with what a killed writer left beside it."""

    def local_path(self, key: str) -> Path | None:
        """Return where ``key`` lies on this machine's disk, or None for a remote store."""


def text_digest(*parts: str) -> str:
    """Return 16 hex digits of sha256 over ``parts``, separated so that no two joins collide."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
