"""Named byte strings on a local folder or on S3, with put-if-absent and compare-and-swap.

Two implementations of one small protocol; nothing here knows what the bytes mean.
"""

from pathlib import Path
from urllib.parse import urlparse

from csrm_tasks.blobs.local import LocalBlobs
from csrm_tasks.blobs.s3 import S3Blobs
from csrm_tasks.blobs.store import BlobStore, Entry, text_digest
from csrm_tasks.errors import ConfigError

__all__ = ["BlobStore", "Entry", "LocalBlobs", "S3Blobs", "open_blobs", "text_digest"]


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
