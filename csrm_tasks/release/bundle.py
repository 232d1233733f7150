"""The bundle: one folder that is the release, and the manifest that says what belongs together.

Serving needs the exported towers, their tokenizer and thresholds, and the product embeddings:
these are copied. What is large and only trains or judges (LLM, retriever, index, RQA) is named by
reference and digest. The release id is made from the bundle's own digest, so it cannot be inside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ArtifactError

FORMAT = 1  # of the folder; a server refuses what it does not know
TOWERS = "towers"  # folder of the exported towers inside the bundle
EMBEDDINGS = ("embeddings.npy", "product_ids.parquet")


def release_id(bundle: Artifact) -> str:
    """Return ``{market}-{first 12 hex digits of the bundle's digest}``."""
    return f"{bundle.ref.split('/', 1)[0]}-{bundle.digest[:12]}"


def assemble(parts: Mapping[str, Artifact], out: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the bundle folder and return its manifest (also ``release.json``).

    ``parts`` has snapshot, llm, ebr, index, rqa, export, embeddings, and may have llm_export.
    Raises :class:`ArtifactError` where the parts do not belong together.
    """
    _require_compatible(parts)
    shutil.copytree(parts["export"].path, out / TOWERS)
    for name in EMBEDDINGS:
        shutil.copyfile(parts["embeddings"].file(name), out / name)
    manifest = {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("numpy", "onnxruntime", "tokenizers")},
        "parts": {k: {"ref": a.ref, "digest": a.digest} for k, a in sorted(parts.items())},
        **about,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (out / "release.json").write_text(text, encoding="utf-8")
    return manifest


def _require_compatible(parts: Mapping[str, Artifact]) -> None:
    """Embeddings must be this export's, the index this retriever's, all of one snapshot."""
    rules = [("embeddings", "export"), ("index", "ebr")]
    rules += [("llm_export", "llm")] if "llm_export" in parts else []
    snapshot = [(name, "snapshot") for name in ("ebr", "index", "rqa", "export", "embeddings")]
    for name, of in (*rules, *snapshot):
        made_from = parts[name].inputs.get(of)
        if made_from != parts[of].ref:
            raise ArtifactError(
                f"{parts[name].ref} was made from {of} {made_from}, not from {parts[of].ref}; "
                f"run its step again with this {of}"
            )
