"""Content-addressed step outputs: ``{root}/{market}/{step}/{fingerprint}/manifest.json``.

An attempt writes its files into a folder of its own (``data-…``) and publishes them with one
put-if-absent of the manifest, which is written last. Whoever writes the manifest wins; what a
killed or losing attempt left is unreachable and harmless. No manifest means it does not exist.
The same code serves a local path and ``s3://bucket/prefix`` (see :mod:`csrm_tasks.blobs`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from csrm_tasks.blobs import BlobStore, open_blobs
from csrm_tasks.errors import ArtifactError
from csrm_tasks.json_files import json_text

SAME = "same-"  # and a digest: names the first reference of equal content
MANIFEST = "manifest.json"
UNUSED = 7 * 86_400.0  # seconds that a local copy of something remote is kept after its last use
REMEDY = "delete the artifact's folder and run its step again"


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def json_digest(value: object) -> str:
    """Return the sha256 of the canonical JSON of ``value``, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A published step output, present as local files.

    ``ref`` is ``market/step/fingerprint``; ``digest`` covers file contents and facts, not times.
    """

    ref: str
    digest: str
    path: Path
    facts: Mapping[str, Any]
    inputs: Mapping[str, Any]  # references, by the name of the input
    made_of: Mapping[str, Any]  # their digests: equal content may have several references

    def was_made_from(self, name: str, other: Artifact) -> bool:
        """Whether its input ``name`` was ``other``, or the same content under another reference."""
        return other.ref == self.inputs.get(name) or other.digest == self.made_of.get(name)

    def was_made_from_all(self, others: Mapping[str, Artifact]) -> bool:
        """Whether its inputs were ``others`` and no more, each as :meth:`was_made_from` says."""
        same = (self.was_made_from(name, other) for name, other in others.items())
        return self.inputs.keys() == others.keys() and all(same)

    def shares_inputs(self, other: Artifact) -> bool:
        """Whether both were made from the same inputs, each as :meth:`shares_input` says."""
        names = self.inputs.keys()
        return names == other.inputs.keys() and all(self.shares_input(n, other) for n in names)

    def shares_input(self, name: str, other: Artifact) -> bool:
        """Whether both were made from the same ``name``, or from ones of the same content."""
        digest = self.made_of.get(name)
        same = digest is not None and digest == other.made_of.get(name)
        return same or bool(self.inputs[name] == other.inputs[name])

    def file(self, name: str) -> Path:
        """Return the path of one file; raises :class:`ArtifactError` when it is not there."""
        found = self.path / name
        if not found.exists():
            raise ArtifactError(f"artifact {self.ref} has no file {name!r}")
        return found


class ArtifactStore:
    """Publish and open artifacts under ``root`` (a path or ``s3://``)."""

    def __init__(self, root: str, cache: Path) -> None:
        self._blobs: BlobStore = open_blobs(root)
        self._cache = cache
        self._verified: set[str] = set()

    def manifest(self, ref: str) -> dict[str, Any] | None:
        """Return the manifest of ``ref``, or None where it was never published."""
        raw = self._blobs.read(f"{ref}/{MANIFEST}")
        if raw is None:
            return None
        try:
            found: dict[str, Any] = json.loads(raw)
        except ValueError as e:
            raise ArtifactError(f"artifact {ref}: {MANIFEST} is not JSON; remove it by hand") from e
        return found

    def require(self, ref: str) -> dict[str, Any]:
        """Return the manifest of ``ref``; raises :class:`ArtifactError` where there is none."""
        manifest = self.manifest(ref)
        if manifest is None:
            raise ArtifactError(f"artifact {ref} does not exist; run the step that makes it")
        return manifest

    def read(self, ref: str, name: str) -> bytes:
        """Return one file of ``ref`` after checking its digest; nothing else is fetched.

        Raises :class:`ArtifactError` where it is not there or was changed.
        """
        manifest = self.require(ref)
        entry = next((e for e in manifest["files"] if e["path"] == name), None)
        if entry is None:
            raise ArtifactError(f"artifact {ref} has no file {name!r}")
        data = self._blobs.read(f"{ref}/{manifest['data']}/{name}")
        if data is None:
            raise ArtifactError(f"artifact {ref}: file {name} is gone; {REMEDY}")
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ArtifactError(
                f"artifact {ref}: file {name} was changed after it was published; {REMEDY}"
            )
        return data

    def published(self, step: str) -> list[tuple[str, dict[str, Any]]]:
        """Return reference and manifest of all outputs of ``market/step``, oldest first."""
        keys = self._blobs.keys(step)
        refs = [k.removesuffix(f"/{MANIFEST}") for k in keys if k.endswith(f"/{MANIFEST}")]
        found = [(ref, m) for ref in refs if (m := self.manifest(ref)) is not None]
        return sorted(found, key=lambda x: (x[1]["created_at"], x[0]))

    def open(self, ref: str) -> Artifact:
        """Open ``ref`` as local files after checking sizes and digests.

        Raises :class:`ArtifactError` when it was never published or a byte has changed. A local
        copy of something remote that has changed is fetched once more.
        """
        manifest = self.require(ref)
        data, files = f"{ref}/{manifest['data']}", manifest["files"]
        own = self._blobs.local_path(data)
        path = own or self._fetch(data, files)
        if ref not in self._verified:
            try:
                check_files(f"artifact {ref}", path, files, REMEDY)
            except ArtifactError:
                if own is not None:
                    raise
                shutil.rmtree(path)
                check_files(f"artifact {ref}", self._fetch(data, files), files, REMEDY)
            self._verified.add(ref)
        return Artifact(
            ref, manifest["digest"], path, manifest["facts"], manifest["inputs"],
            manifest["about"].get("inputs", {}),
        )  # fmt: skip

    def first_like(self, ref: str) -> str:
        """Return the first reference under which this step's output was published from inputs of
        the same content with the same content: ``ref`` itself, if no earlier one is there.

        Where code was edited and nothing came out otherwise, what follows is found as it was made,
        and names what it was made of: so all go on under the name that they know.
        """
        manifest = self.manifest(ref)
        assert manifest is not None, ref
        alike = json_digest([manifest["digest"], manifest["about"].get("inputs")])[:20]
        key = f"{ref.rsplit('/', 1)[0]}/{SAME}{alike}"
        known = self._blobs.read(key)
        first = (known or b"").decode()
        if first and (first == ref or self.manifest(first) is not None):
            return first
        if self._blobs.replace(key, ref.encode(), known):  # none was there, or it was pruned
            return ref
        return self.first_like(ref)  # another process was first

    def publish(
        self,
        ref: str,
        source: Path,
        *,
        facts: Mapping[str, Any],
        inputs: Mapping[str, Any],
        about: Mapping[str, Any],
        spent: Mapping[str, float] | None = None,
    ) -> Artifact:
        """Publish the files under ``source`` as ``ref``; the first publisher wins.

        ``spent``: seconds that it took, by kind; noted, and no part of the digest.
        ``source`` is left as it was. Returns what is published now, ours or an earlier one.
        """
        data = f"data-{uuid.uuid4().hex[:12]}"
        files = describe_files(source)
        manifest = {
            "ref": ref,
            "data": data,
            "digest": json_digest({"files": files, "facts": facts}),
            "files": files,
            "facts": dict(facts),
            "inputs": dict(inputs),
            "about": dict(about),
            "spent": dict(spent or {}),
            "created_at": time.time(),
        }
        text = json_text(manifest)
        for entry in files:
            self._blobs.upload(f"{ref}/{data}/{entry['path']}", source / entry["path"])
        if not self._blobs.put_if_absent(f"{ref}/{MANIFEST}", text.encode()):
            # Nearly always another's, but what a manifest names is never deleted: it may be ours,
            # written by a try whose answer was lost.
            there = self._blobs.read(f"{ref}/{MANIFEST}")
            if there is None or json.loads(there)["data"] != data:
                self._blobs.delete_tree(f"{ref}/{data}")
        return self.open(ref)

    def _fetch(self, data: str, files: list[dict[str, Any]]) -> Path:
        target = self._cache / data
        with suppress(FileNotFoundError):
            os.utime(target)  # it is in use
            return target
        part = target.with_name(f"{target.name}.part-{uuid.uuid4().hex[:8]}")
        for entry in files:
            try:
                self._blobs.download(f"{data}/{entry['path']}", part / entry["path"])
            except FileNotFoundError as e:
                shutil.rmtree(part, ignore_errors=True)
                what = data.rpartition("/")[0]
                raise ArtifactError(f"{what}: file {entry['path']} is gone; {REMEDY}") from e
        part.mkdir(parents=True, exist_ok=True)
        try:
            part.rename(target)
        except OSError:  # another process fetched it first
            shutil.rmtree(part, ignore_errors=True)
        self._forget()
        return target

    def _forget(self) -> None:
        """Delete local copies that nobody opened for a while: a server fetches vectors nightly."""
        oldest = time.time() - UNUSED
        for copy in self._cache.glob("*/*/*/data-*"):  # also what a killed process fetched in part
            with suppress(FileNotFoundError):  # another process forgot it first
                if copy.stat().st_mtime < oldest:
                    shutil.rmtree(copy, ignore_errors=True)


def check_files(what: str, folder: Path, files: list[dict[str, Any]], remedy: str) -> None:
    """Compare files with what :func:`describe_files` said of them.

    Raises :class:`ArtifactError` naming ``what``, the first file that differs, and the remedy.
    """
    for entry in files:
        found = folder / entry["path"]
        if not found.exists():
            raise ArtifactError(f"{what}: file {entry['path']} is gone; {remedy}")
        if found.stat().st_size != entry["size"] or file_digest(found) != entry["sha256"]:
            raise ArtifactError(
                f"{what}: file {entry['path']} was changed after it was published; {remedy}"
            )


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """List ``path``, ``size`` in bytes and ``sha256`` of every file below ``folder``, sorted."""
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return [
        {
            "path": str(PurePosixPath(p.relative_to(folder))),
            "size": p.stat().st_size,
            "sha256": file_digest(p),
        }
        for p in found
    ]
