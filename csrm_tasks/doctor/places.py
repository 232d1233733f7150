"""Artifacts, lake, routing and the home: written, read and deleted by a probe that is removed."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from csrm_tasks.blobs import BlobStore, LocalBlobs, open_blobs
from csrm_tasks.blobs.s3 import PROBE
from csrm_tasks.doctor.findings import Asked, Finding, Said, address, explained
from csrm_tasks.errors import ConfigError
from csrm_tasks.release import denied
from csrm_tasks.settings import Settings

say = Said("storage")


def storage(asked: Asked) -> Iterator[Finding]:
    """Check where artifacts, lake and routing documents are kept, the home and the landing zone."""
    settings = asked.settings
    buckets: set[str] = set()
    for root, names in _roots(settings).items():
        what = f"{names} {address(root)}"
        try:
            yield from _of_root(root, what, buckets)
        except Exception as e:  # noqa: BLE001 each place is told of
            yield say.fault(*_told(e, what))
    for name, folder in (("CSRM_HOME", settings.home), ("its cache", settings.cache)):
        if why := unwritable(folder):
            yield say.fault(f"{name} {folder} cannot be written: {why}", _WRITABLE)
    yield from _landing(settings.landing)


_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_WRITABLE = "let the user of this process write there, or name another folder"


def _roots(settings: Settings) -> dict[str, str]:
    """Return each place with the variables that name it."""
    found: dict[str, list[str]] = {}
    for name in ("artifacts", "lake", "routing"):
        found.setdefault(str(getattr(settings, name)), []).append(f"CSRM_{name.upper()}")
    return {root: ", ".join(names) for root, names in found.items()}


def _of_root(root: str, what: str, buckets: set[str]) -> Iterator[Finding]:
    """Try one place; ``buckets``: those whose server was asked about itself already."""
    blobs = open_blobs(root)
    tried(LocalBlobs(_existing(blobs.root)) if isinstance(blobs, LocalBlobs) else blobs)
    yield say.ok(f"{what}: written, read, replaced under a condition and deleted")
    bucket = urlparse(root).netloc
    if bucket and bucket not in buckets:
        buckets.add(bucket)
        yield from _of_server(bucket)


def tried(blobs: BlobStore) -> None:
    """Do what steps do, on a key that is deleted again; raises what is wrong."""
    folder = f"{PROBE}{uuid.uuid4().hex}"
    key = f"{folder}/{PROBE}0"
    try:
        if not blobs.put_if_absent(key, b"1") or blobs.put_if_absent(key, b"2"):
            raise ConfigError("a write that is to happen once does not happen, or happens twice")
        if blobs.read(key) != b"1" or key not in blobs.entries(folder):
            raise ConfigError("what was written is not read, or not listed, at once")
        if not blobs.replace(key, b"3", b"1") or blobs.replace(key, b"4", b"1"):
            raise ConfigError("a replacement does not ask what is there")
        blobs.delete(key)
        if blobs.read(key) is not None:
            raise ConfigError(f"{key} is still there after it was deleted; delete it by hand")
    finally:
        with suppress(Exception):
            blobs.delete(key)
            blobs.delete_tree(folder)


def _of_server(bucket: str) -> Iterator[Finding]:
    """Yield how far its clock is from ours, and whether it looks at signatures at all."""
    import boto3
    from botocore.exceptions import ClientError

    before = time.time()
    answer = boto3.client("s3").list_objects_v2(Bucket=bucket, MaxKeys=1)
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date:
        yield say.clock(parsedate_to_datetime(date).timestamp(), before, "the object store")
    ours: Any = boto3.Session().get_credentials()
    if ours is None:
        return
    wrong = boto3.client(
        "s3", aws_access_key_id=ours.access_key, aws_secret_access_key=uuid.uuid4().hex,
        aws_session_token=ours.token,
    )  # fmt: skip
    try:
        wrong.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError:
        yield say.ok("it lets our credentials in, and a wrong secret not")
        return
    yield say.warning(
        f"the object store of s3://{bucket} lets a wrong secret in: it checks no signatures",
        "use it for trials only, or behind a network that nobody else reaches",
    )


def _landing(folder: Path) -> Iterator[Finding]:
    if not folder.exists():
        yield say.warning(
            f"CSRM_LANDING {folder} does not exist: no night finds files",
            "make it, or name the folder where files are delivered",
        )
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield say.fault(f"CSRM_LANDING {folder} cannot be read", "let this user read it")
    else:
        yield say.ok(f"CSRM_LANDING {folder} is read")


def unwritable(folder: Path) -> str:
    """Return why nothing can be written in ``folder``, or where it would be made; "": it can."""
    place = _existing(folder)
    part = place / f"{PROBE}{uuid.uuid4().hex}"
    try:
        with part.open("wb") as f:
            f.write(b"1")
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        return e.strerror or type(e).__name__
    finally:
        with suppress(OSError):
            part.unlink()
    return ""


def _existing(folder: Path) -> Path:
    """Return ``folder``, or the nearest above it that exists."""
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())


def _told(error: BaseException, what: str) -> tuple[str, str]:
    """Return what an error of a place means, and the cure."""
    code = _code(error)
    if code in ("RequestTimeTooSkewed", "RequestExpired"):
        return (
            f"{what}: the object store refuses our signature, as its clock and ours are far apart",
            "let both machines follow a time server (chrony, systemd-timesyncd)",
        )
    if code in ("NoSuchBucket", "404"):
        return f"{what}: there is no such bucket", "create it, or correct the variable"
    said, cure = explained(error, what)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return f"{what}: a file stands in its way", "move the file, or name another folder"
    if isinstance(error, ConfigError):
        return said, "choose another store, or correct the variable"
    return said, _WRITABLE if isinstance(error, OSError) and error.errno in _CLOSED else cure


def _code(error: BaseException) -> str | None:
    return next(filter(None, map(denied.code, denied.causes(error))), None)


def in_words(error: BaseException, asked: Asked) -> tuple[str, str]:
    """Return what an error of this check means, and the cure."""
    return _told(error, "the storage")
