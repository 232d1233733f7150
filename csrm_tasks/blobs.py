"""Named byte strings on a local folder or on S3, with put-if-absent and compare-and-swap.

Two implementations of one small protocol; nothing here knows what the bytes mean. S3 goes through
boto3 and its conditional writes (``If-None-Match``/``If-Match``). Some servers take these headers
and overwrite all the same: a store is tried before the first such write of a process, and refused.
Credentials come from the environment or the instance and are never logged.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import urlparse

from csrm_tasks.errors import ConfigError

PROBE = ".probe-"  # begins the name of a key by which a store is tried, and deleted at once


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


def open_blobs(root: str) -> BlobStore:
    """Open a path or ``s3://bucket/prefix``; raises :class:`ConfigError` for anything else."""
    url = urlparse(root)
    if url.scheme == "s3":
        if not url.netloc:
            raise ConfigError(f"{root!r}: an S3 location is s3://bucket/prefix")
        return S3Blobs(url.netloc, url.path.strip("/"))
    if url.scheme not in ("", "file"):
        raise ConfigError(f"{root!r}: use a folder or s3://bucket/prefix, not {url.scheme}://")
    return LocalBlobs(Path(url.path))


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


class S3Blobs:
    """Objects below ``s3://bucket/prefix``; conditional writes need a store that honours them."""

    honoured: ClassVar[set[tuple[str, str]]] = set()  # endpoint and bucket of those that were tried

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3

        self._client: Any = boto3.client("s3")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    def local_path(self, key: str) -> None:
        """Return None: S3 objects have no path here."""

    def _get(self, key: str) -> tuple[bytes, str] | None:
        from botocore.exceptions import ClientError

        try:
            got = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as e:
            if e.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise
        return got["Body"].read(), got["ETag"]

    def read(self, key: str) -> bytes | None:
        """See :class:`BlobStore`."""
        found = self._get(key)
        return found[0] if found else None

    def _put(self, key: str, data: bytes, **condition: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + key, Body=data, **condition
            )
        except ClientError as e:
            if e.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            raise
        return True

    def _require_conditions(self, key: str) -> None:
        """Try beside ``key`` whether conditions hold; raises :class:`ConfigError` where not."""
        from botocore.exceptions import ClientError

        store = self._client.meta.endpoint_url, self._bucket
        if store in self.honoured:
            return
        folder = f"{key.rpartition('/')[0]}/" if "/" in key else ""
        probe = f"{folder}{PROBE}{uuid.uuid4().hex}"
        try:
            self._put(probe, b"1", IfNoneMatch="*")
            ignored = self._put(probe, b"2", IfNoneMatch="*") or self._put(
                probe, b"3", IfMatch='"00000000000000000000000000000000"'
            )
        except ClientError as e:
            if e.response["Error"]["Code"] not in ("NotImplemented", "501"):
                raise
            ignored = True
        finally:
            with suppress(ClientError):  # somebody may write here and not delete
                self.delete(probe)
        if ignored:
            raise ConfigError(
                f"s3://{self._bucket}: this object store ignores conditional writes (If-Match, "
                "If-None-Match), so two writers would overwrite each other; use one that honours "
                "them, or a shared folder"
            )
        self.honoured.add(store)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See :class:`BlobStore`; raises :class:`ConfigError` where conditions are ignored."""
        self._require_conditions(key)
        return self._put(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """See :class:`BlobStore`; raises as :meth:`put_if_absent` does."""
        if expected is None:
            return self.put_if_absent(key, data)
        self._require_conditions(key)
        found = self._get(key)
        if found is None or found[0] != expected:
            return False
        return self._put(key, data, IfMatch=found[1])

    def upload(self, key: str, source: Path) -> None:
        """See :class:`BlobStore`."""
        self._client.upload_file(str(source), self._bucket, self._prefix + key)

    def download(self, key: str, target: Path) -> None:
        """See :class:`BlobStore`."""
        from botocore.exceptions import ClientError

        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client.download_file(self._bucket, self._prefix + key, str(target))
        except ClientError as e:
            if e.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise FileNotFoundError(key) from e
            raise

    def delete(self, key: str) -> None:
        """See :class:`BlobStore`."""
        self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def delete_tree(self, prefix: str) -> None:
        """See :class:`BlobStore`."""
        for key in self.entries(prefix):
            self.delete(key)

    def keys(self, prefix: str) -> list[str]:
        """See :class:`BlobStore`; what a killed try has left is no key."""
        return sorted(k for k in self.entries(prefix) if not _is_probe(k))

    def entries(self, prefix: str) -> dict[str, Entry]:
        """See :class:`BlobStore`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}".rstrip("/") + "/"
        )
        found = (o for page in pages for o in page.get("Contents", ()))
        return {
            o["Key"][len(self._prefix) :]: Entry(o["Size"], o["LastModified"].timestamp())
            for o in found
        }


def _is_probe(key: str) -> bool:
    return key.rpartition("/")[2].startswith(PROBE)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def text_digest(*parts: str) -> str:
    """Return 16 hex digits of sha256 over ``parts``, separated so that no two joins collide."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
