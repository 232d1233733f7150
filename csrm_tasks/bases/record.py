"""``base.json``: what a kept base model is and where it came from; beside its weights.

It names no folder of a machine and no time, so that the same base added on another worker has the
same files, and with them the same identity (:func:`csrm_tasks.base_models.base_digest`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csrm_tasks.artifacts import check_files, describe_files, json_digest
from csrm_tasks.base_models import KEPT, KEPT_NAME, RECORD
from csrm_tasks.errors import ArtifactError, ConfigError

LICENCE = "licence"  # folder of the licence's texts, beside the weights
CAUSAL, ENCODER = "causal", "encoder"
CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel")  # ends of the names of causal architectures


@dataclass(frozen=True)
class Origin:
    """Where a base came from, the same on every machine."""

    source: str  # hub:org/name, folder:name, gguf:file, package:name
    revision: str  # commit, digest of the files, digest of the file, version
    licence: str  # as its origin names it; "unknown" where it names none


@dataclass(frozen=True)
class Trimmed:
    """What a trimmed vocabulary (A61) was cut from, and by what."""

    root: str  # base_digest of the whole base: where the identity starts
    market: str
    whole: int  # tokens before
    kept: dict[str, int]  # reason → tokens that it added
    tokens: str  # digest of the kept tokens' numbers in the whole vocabulary
    texts: int  # distinct texts that were read
    layers: int | None = None  # the first so many are kept; None: all


@dataclass(frozen=True)
class BaseRecord:
    """``base.json``."""

    kind: str  # causal | encoder
    origin: Origin
    dtype: str  # of most weights, as safetensors names it: F32, BF16, …
    parameters: int
    vocabulary: int  # rows of the table
    digest: str  # of the files below
    files: list[dict[str, Any]]  # all but this one: path, size in bytes, sha256
    trimmed: Trimmed | None = None

    def write(self, folder: Path) -> None:
        """Write ``base.json``."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1, sort_keys=True)
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")

    def check(self, folder: Path) -> None:
        """Raise :class:`ArtifactError` where a file is gone or changed."""
        name = folder.name
        again = f"remove the folder and add it again: csrm base add {name}"
        check_files(f"base {name}", folder, self.files, again)


def read_record(folder: Path) -> BaseRecord:
    """Read ``base.json``; raises :class:`ArtifactError` where it cannot be."""
    try:
        raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        raw["origin"] = Origin(**raw["origin"])
        raw["trimmed"] = raw["trimmed"] and Trimmed(**raw["trimmed"])
        return BaseRecord(**raw)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ArtifactError(
            f"{folder / RECORD} cannot be read ({type(e).__name__}); remove the folder and add "
            "the base again"
        ) from e


def describe(folder: Path, origin: Origin, trimmed: Trimmed | None = None) -> BaseRecord:
    """Return the record of the files that lie in ``folder``.

    Raises :class:`ConfigError` where they are no model that can be used here: plain weights in
    safetensors, a fast tokenizer.
    """
    config = _config(folder, origin)
    shapes = dict(_tensors(folder))
    if not shapes:
        raise ConfigError(f"{origin.source}: no weights in safetensors, the only format loaded")
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{origin.source}: no tokenizer.json; a fast tokenizer is needed")
    if "quantization_config" in config:
        raise ConfigError(f"{origin.source}: quantised; LoRA needs plain weights (bf16 or fp32)")
    causal = any(a.endswith(CAUSAL_CLASSES) for a in config.get("architectures") or ())
    sizes: dict[str, int] = {}
    for dtype, size in shapes.values():
        sizes[dtype] = sizes.get(dtype, 0) + size
    files = [f for f in describe_files(folder) if f["path"] != RECORD]
    return BaseRecord(
        kind=CAUSAL if causal else ENCODER, origin=origin, dtype=max(sizes, key=lambda d: sizes[d]),
        parameters=sum(sizes.values()), vocabulary=int(config["vocab_size"]),
        digest=json_digest(files), files=files, trimmed=trimmed,
    )  # fmt: skip


def _config(folder: Path, origin: Origin) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{origin.source}: no config.json; it is no Hugging Face model")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "vocab_size" not in found:
        raise ConfigError(f"{origin.source}: no vocab_size in config.json; no model of text alone")
    return found


def _tensors(folder: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield name, dtype and size of every tensor, from the files' headers alone."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        for name, about in header.items():
            if name != "__metadata__":
                yield name, (about["dtype"], math.prod(about["shape"]))


def kept_bases(folder: Path) -> dict[str, BaseRecord]:
    """Return name → record of the bases in ``folder``, by name."""
    found = sorted(p.parent for p in folder.glob(f"*/{RECORD}"))
    return {p.name: read_record(p) for p in found if KEPT_NAME.fullmatch(p.name)}


def causal_bases(folder: Path) -> list[str]:
    """Return how a market names each base in ``folder`` that an LLM can be trained from.

    One whose record cannot be read is none: whoever parses a form of choices mends nothing.
    """
    found = []
    for record in sorted(folder.glob(f"*/{RECORD}")):
        with suppress(ArtifactError):
            if (
                KEPT_NAME.fullmatch(record.parent.name)
                and read_record(record.parent).kind == CAUSAL
            ):
                found.append(f"{KEPT}{record.parent.name}")
    return found
