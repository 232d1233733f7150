"""Named byte strings below one folder."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from csrm_tasks.blobs.store import Entry


class LocalBlobs:
    """Files below one folder; atomic by hard link and rename on one filesystem."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def local_path(self, key: str) -> Path:
        """Return the file behind ``key``."""
        return self.root / key

    def read(self, key: str) -> bytes | None:
        """See :class:`BlobStore`."""
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def _temporary(self, key: str) -> tuple[Path, Path]:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        return target, target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See :class:`BlobStore`."""
        target, part = self._temporary(key)
        _write_durably(part, data)
        try:
            os.link(part, target)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        return True

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """See :class:`BlobStore`; a lock file makes the check and the rename one step."""
        from filelock import FileLock

        target, part = self._temporary(key)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if self.read(key) != expected:
                return False
            _write_durably(part, data)
            part.replace(target)
        return True

    def upload(self, key: str, source: Path) -> None:
        """See :class:`BlobStore`."""
        target, part = self._temporary(key)
        shutil.copyfile(source, part)
        with part.open("rb") as f:
            os.fsync(f.fileno())  # a commit that makes it count may follow
        part.replace(target)

    def download(self, key: str, target: Path) -> None:
        """See :class:`BlobStore`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / key, target)

    def delete(self, key: str) -> None:
        """See :class:`BlobStore`."""
        (self.root / key).unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        """See :class:`BlobStore`."""
        shutil.rmtree(self.root / prefix, ignore_errors=True)

    def keys(self, prefix: str) -> list[str]:
        """See :class:`BlobStore`; temporary and lock files (leading dot) are not keys."""
        base = self.root / prefix
        found = (p for p in base.rglob("*") if p.is_file() and not p.name.startswith("."))
        return sorted(p.relative_to(self.root).as_posix() for p in found)

    def entries(self, prefix: str) -> dict[str, Entry]:
        """See :class:`BlobStore`; lock files are nobody's left-over."""
        found = {}
        for path in (self.root / prefix).rglob("*"):
            with suppress(FileNotFoundError):  # a writer has just renamed it
                if path.is_file() and path.suffix != ".lock":
                    about = path.stat()
                    key = path.relative_to(self.root).as_posix()
                    found[key] = Entry(about.st_size, about.st_mtime)
        return found


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
