"""Named byte strings on a local folder or on S3, with put-if-absent and compare-and-swap.

Two implementations of one small protocol; nothing here knows what the bytes mean.
"""

from pathlib import Path

from csrm_tasks.blobs.local import LocalBlobs
from csrm_tasks.blobs.s3 import S3Blobs
from csrm_tasks.blobs.store import BlobStore, Entry, text_digest
from csrm_tasks.errors import ConfigError

__all__ = [
    "BlobStore",
    "Entry",
    "LocalBlobs",
    "S3Blobs",
    "local_folder",
    "open_blobs",
    "text_digest",
]


def open_blobs(root: str) -> BlobStore:
    """Open a path or ``s3://bucket/prefix``; raises :class:`ConfigError` for anything else."""
    folder = local_folder(root)
    if folder is not None:
        return LocalBlobs(folder)
    scheme, _, rest = root.partition("://")
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")  # a key may hold what a URL would cut off: # and ?
        if not bucket:
            raise ConfigError(f"{root!r}: an S3 location is s3://bucket/prefix")
        return S3Blobs(bucket, prefix.strip("/"))
    raise ConfigError(f"{root!r}: use a folder or s3://bucket/prefix, not {scheme}://")


def local_folder(root: str) -> Path | None:
    """Return the folder that a place for blobs is, None for an object store."""
    scheme, separator, rest = root.partition("://")
    if not separator:
        return Path(root)
    return Path("/" + rest.partition("/")[2]) if scheme == "file" else None
