"""Named byte strings on S3, through boto3 and its conditional writes (``If-None-Match``,
``If-Match``).

Some servers take these headers and overwrite all the same: a store is tried before the first such
write of a process, and refused. Credentials come from the environment or the instance and are never
logged.

A conditional write whose answer is lost is sent again by the client, or by a proxy, and the second
one is refused by what the first has written: each write has a name of its own in the object's
metadata, by which it is known again.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from csrm_tasks.blobs.store import Entry
from csrm_tasks.errors import ConfigError

WRITE = "csrm-write"  # metadata: which write the object is of
TRIES = 3  # of a write that met another one's, which was not over yet
PROBE = ".probe-"  # begins the name of a key by which a store is tried, and deleted at once


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

        write = uuid.uuid4().hex
        where = {"Bucket": self._bucket, "Key": self._prefix + key}
        for _ in range(TRIES):
            try:
                self._client.put_object(Body=data, Metadata={WRITE: write}, **where, **condition)
            except ClientError as e:
                code = e.response["Error"]["Code"]
                if code == "PreconditionFailed":
                    break
                if code != "ConditionalRequestConflict":
                    raise
            else:
                return True
        return self._written_by(write, where)

    def _written_by(self, write: str, where: dict[str, str]) -> bool:
        """Whether an object is of this write, which was refused because it is there."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.head_object(**where)
        except ClientError as e:
            if e.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return False  # taken away since by somebody who found it
            raise
        about = {name.lower(): value for name, value in found["Metadata"].items()}
        return about.get(WRITE) == write  # in lower case: some servers write names with capitals

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
