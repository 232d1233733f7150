"""The bundle: one folder that is the release, and the manifest that says what belongs together.

Serving needs the exported towers, their tokenizer and thresholds, and the product embeddings:
these are copied. What is large and only trains or judges (LLM, retriever, index, RQA) is named by
reference and digest. The release id is made from the bundle's own digest, so it cannot be inside.
The manifest has the digest of every other file: whoever loads a bundle, also one that MLflow
copied, checks them first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from csrm_tasks.artifacts import Artifact, check_files, describe_files
from csrm_tasks.errors import ArtifactError
from csrm_tasks.json_files import write_json
from csrm_tasks.lexical.evidence import FILE as LEXICON
from csrm_tasks.lexical.terms import FILES as TERMS
from csrm_tasks.towers.serving.embed import IDS, VECTORS
from csrm_tasks.towers.serving.product_tokens import FILES as TOKENS

# Of the folder; a server refuses what it does not know. Towers with lexical evidence (A50) have a
# format of their own, and so has a second stage: a server of earlier code would leave them out
# without a word.
FORMAT, WITH_EVIDENCE, WITH_SECOND_STAGE = 2, 3, 4
FORMATS = (FORMAT, WITH_EVIDENCE, WITH_SECOND_STAGE)
TOWERS = "towers"  # folder of the exported towers inside the bundle
SECOND_STAGE = "second_stage"  # folder of the second stage inside the bundle, where it has one
EMBEDDINGS = (VECTORS, IDS)
MANIFEST = "release.json"
# What a retraining goes on from that is no part of the live release, but the input of one
BEHIND = {"bm25": "rqa", "towers": "export"}


def release_id(bundle: Artifact) -> str:
    """Return ``{market}-{first 12 hex digits of the bundle's digest}``."""
    return f"{bundle.ref.split('/', 1)[0]}-{bundle.digest[:12]}"


def assemble(parts: Mapping[str, Artifact], out: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the bundle folder and return its manifest (also ``release.json``).

    ``parts`` has snapshot, llm, ebr, index, rqa, export, embeddings, and may have llm_export and
    second_stage, which is copied where dev has kept it. Raises :class:`ArtifactError` where the
    parts do not belong together.
    """
    _require_compatible(parts)
    shutil.copytree(parts["export"].path, out / TOWERS)
    if kept_second_stage(parts):
        shutil.copytree(parts[SECOND_STAGE].path, out / SECOND_STAGE)
    for name in (*EMBEDDINGS, *TERMS, *TOKENS):
        if name in EMBEDDINGS or (parts["embeddings"].path / name).exists():
            shutil.copyfile(parts["embeddings"].file(name), out / name)
    manifest = {
        "format": _format(out),
        "versions": {name: version(name) for name in ("numpy", "onnxruntime", "tokenizers")},
        "parts": {k: {"ref": a.ref, "digest": a.digest} for k, a in sorted(parts.items())},
        "files": describe_files(out),
        **about,
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def kept_second_stage(parts: Mapping[str, Artifact]) -> bool:
    """Whether the parts of a bundle have a second stage that dev has kept."""
    return SECOND_STAGE in parts and bool(parts[SECOND_STAGE].facts["kept"])


def _format(folder: Path) -> int:
    if (folder / SECOND_STAGE).exists():
        return WITH_SECOND_STAGE
    return WITH_EVIDENCE if (folder / TOWERS / LEXICON).exists() else FORMAT


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle after checking every file against its digest.

    Raises :class:`ArtifactError` for a folder that is no bundle, another format, or changed bytes.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ArtifactError(f"{folder} holds no release: {MANIFEST} is missing") from e
    except ValueError as e:
        raise ArtifactError(f"{path} is not JSON; fetch the release again") from e
    if manifest.get("format") not in FORMATS:
        raise ArtifactError(
            f"{path}: bundle format {manifest.get('format')}, this code reads "
            f"{', '.join(map(str, FORMATS))}; run the code of that release, or bundle it again"
        )
    check_files(f"release {folder}", folder, manifest["files"], "fetch the release again")
    return manifest


def _require_compatible(parts: Mapping[str, Artifact]) -> None:
    """Embeddings must be this export's, the index this retriever's, all of one snapshot."""
    rules = [("embeddings", "export"), ("index", "ebr")]
    rules += [("llm_export", "llm")] if "llm_export" in parts else []
    if SECOND_STAGE in parts:
        rules += [(SECOND_STAGE, "export"), ("embeddings", SECOND_STAGE)]
    snapshot = [(name, "snapshot") for name in ("ebr", "index", "rqa", "export", "embeddings")]
    for name, of in (*rules, *snapshot):
        if not parts[name].was_made_from(of, parts[of]):
            made_from = parts[name].inputs.get(of)
            raise ArtifactError(
                f"{parts[name].ref} was made from {of} {made_from}, not from {parts[of].ref}; "
                f"run its step again with this {of}"
            )
