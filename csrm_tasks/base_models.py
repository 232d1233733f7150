"""Base models of a market: kept by ``csrm base add``, a local folder, or a pinned hub name.

``base:NAME`` is what ``csrm base add NAME`` has put among the bases of this machine: the same name
in a market file on every worker, wherever that keeps them.

A bare hub name is another model whenever its owner pushes: steps would be skipped for weights that
are no longer the same, and a release could not be built again. So a hub name carries its revision.
"""

from __future__ import annotations

import re
from pathlib import Path

from csrm_tasks.errors import ConfigError
from csrm_tasks.file_state import folder_digest
from csrm_tasks.settings import PROJECT_ROOT, bases_folder

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
REVISION = re.compile(r"[0-9a-f]{40}")
KEPT = "base:"  # before the name of a base that csrm base add keeps
KEPT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
RECORD = "base.json"  # of a kept base, written last


def local_folder(name: str) -> Path | None:
    """Return the folder that ``name`` is: kept, or relative to here or to the project; or None."""
    if name.startswith(KEPT):
        kept = bases_folder() / name.removeprefix(KEPT)
        return kept if (kept / RECORD).is_file() else None
    for candidate in (Path(name), PROJECT_ROOT / name):
        if candidate.is_dir():
            return candidate.resolve()
    return None


def pretrained(name: str) -> dict[str, str]:
    """Return the arguments of ``from_pretrained`` for a base model of a market file.

    Raises :class:`ConfigError` for a hub name without its revision, and for a base that is not
    kept here.
    """
    folder = local_folder(name)
    if folder is not None:
        return {"pretrained_model_name_or_path": str(folder)}
    check_base("base model", name)
    _refuse_absent(name)
    repository, _, revision = name.partition("@")
    hub = {"pretrained_model_name_or_path": repository}
    return hub | {"revision": revision} if revision else hub


def check_base(key: str, name: str) -> None:
    """Raise :class:`ConfigError` naming ``key`` where ``name`` is a hub name that is not pinned.

    A path (absolute, beginning with a dot, or of more than two levels) or a kept base is not looked
    for: the scheduler reads market files too, and base models lie on the workers.
    """
    kept = name.removeprefix(KEPT)
    if kept != name and not KEPT_NAME.fullmatch(kept):
        raise ConfigError(f"{key}: {name!r} is no name of a kept base; csrm base list has them")
    repository, at, revision = name.partition("@")
    if not HUB_NAME.fullmatch(repository) or (not at and local_folder(name) is not None):
        return
    if not REVISION.fullmatch(revision):
        raise ConfigError(
            f"{key}: {name!r} is no folder here, and a Hugging Face name needs the commit that it "
            f"is pinned to: {repository}@ and 40 hexadecimal digits (a folder: ./{repository})"
        )


def base_digest(base: str) -> str:
    """Identify the base model: a digest of its files, or its hub name with its revision."""
    folder = local_folder(base)
    if folder is not None:
        return folder_digest(folder)
    check_base("base model", base)
    _refuse_absent(base)
    return f"hub:{base}"


def _refuse_absent(name: str) -> None:
    """Raise :class:`ConfigError` for a base that would be kept here and is not."""
    if name.startswith(KEPT):
        raise ConfigError(
            f"base model {name}: it is not kept on this machine ({bases_folder()}); "
            f"csrm base add {name.removeprefix(KEPT)}, or csrm base trim, makes it"
        )


def weights_bytes(base: str) -> int:
    """Return the bytes of a base's safetensors on this machine; 0 where they were not fetched."""
    folder = local_folder(base)
    if folder is None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        repository, _, revision = base.partition("@")
        try:
            kept = snapshot_download(repository, revision=revision or None, local_files_only=True)
        except (LocalEntryNotFoundError, ValueError):  # not fetched, or no name of a hub
            return 0
        folder = Path(kept)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
