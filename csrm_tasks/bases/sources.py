"""Where a base model comes from: a pinned hub name, a folder, a GGUF file, one of two packages.

Every source writes a Hugging Face folder: ``config.json``, weights in safetensors, tokenizer, and
the texts of its licence. Weights are taken as they are; those of a GGUF file are unpacked to fp32,
which loses nothing of them.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from csrm_tasks.artifacts import file_digest, json_digest
from csrm_tasks.base_models import check_base, local_folder
from csrm_tasks.bases.record import LICENCE, Origin
from csrm_tasks.errors import ConfigError

MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README.md")
GENERIC = "PreTrainedTokenizerFast"  # the class that takes tokenizer.json as it stands


class Source(Protocol):
    """Something that a base can be made of."""

    def terms(self) -> str | None:
        """Return the terms that must be accepted first; None where none are asked for."""

    def origin(self) -> Origin:
        """Return where it comes from; raises :class:`ConfigError` where it is not there."""

    def unpack(self, folder: Path) -> None:
        """Write model, tokenizer and licence into ``folder``."""


def source_of(given: str) -> Source:
    """Return the source that a command names; raises :class:`ConfigError` for no such thing."""
    if given.endswith(".gguf"):
        return GgufFile(Path(given))
    folder = local_folder(given)
    if folder is not None:
        return Folder(folder)
    check_base("source", given)
    if "@" not in given:
        raise ConfigError(f"{given!r} is no folder and no .gguf file here, and no org/name@commit")
    repository, _, commit = given.partition("@")
    return HubModel(repository, commit)


@dataclass(frozen=True)
class Folder:
    """A Hugging Face folder, copied."""

    path: Path

    def terms(self) -> str | None:
        """Return None: whoever has the files has accepted what they come under."""
        return None

    def origin(self) -> Origin:
        """Return the folder's own name and the digest of what is copied."""
        files = {p.name: file_digest(p) for p in _chosen(self.path, MODEL_FILES + TOKENIZER_FILES)}
        licence = licence_of(self.path / "README.md")
        return Origin(f"folder:{self.path.name}", json_digest(files), licence)

    def unpack(self, folder: Path) -> None:
        """Copy model, tokenizer and licence."""
        copy_model(self.path, folder)


@dataclass(frozen=True)
class HubModel:
    """A commit of a Hugging Face repository; the network is asked for what is not cached."""

    repository: str
    commit: str

    def terms(self) -> str | None:
        """Return None: the hub itself asks, where a model is gated."""
        return None

    def origin(self) -> Origin:
        """Return name, commit and licence."""
        readme = self._file("README.md")
        licence = licence_of(Path(readme)) if readme else "unknown"
        return Origin(f"hub:{self.repository}", self.commit, licence)

    def unpack(self, folder: Path) -> None:
        """Fetch model, tokenizer and licence, and copy them from the hub's cache."""
        index = self._file("model.safetensors.index.json")
        shards: set[str] = set()
        if index:
            shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        for name in (*(shards or {"model.safetensors"}), "generation_config.json"):
            self._file(name)
        for name in (*TOKENIZER_FILES, "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE"):
            self._file(name)
        config = self._file("config.json")
        if config is None:
            raise ConfigError(
                f"hub:{self.repository}@{self.commit} has no config.json, or it is not in HF_HOME "
                "and HF_HUB_OFFLINE keeps the network from being asked"
            )
        copy_model(Path(config).parent, folder)

    def _file(self, name: str) -> str | None:
        """Return the cached path of a file; None where the repository has none of that name."""
        from transformers.utils import cached_file

        try:
            found: str | None = cached_file(
                self.repository, name, revision=self.commit,
                _raise_exceptions_for_missing_entries=False,
            )  # fmt: skip
        except OSError as e:
            reason = str(e).strip().split("\n")[0]
            raise ConfigError(f"hub:{self.repository}@{self.commit}: {reason}") from e
        return found


@dataclass(frozen=True)
class GgufFile:
    """A causal language model in one GGUF file, quantised or not."""

    path: Path

    def terms(self) -> str | None:
        """Return None: whoever has the file has accepted what it comes under."""
        return None

    def origin(self) -> Origin:
        """Return the file's name, its digest, and the licence that its header names."""
        if not self.path.is_file():
            raise ConfigError(f"{self.path} is no file; give a .gguf file")
        revision = file_digest(self.path)
        return Origin(f"gguf:{self.path.name}", revision, gguf_licence(self.path))

    def unpack(self, folder: Path) -> None:
        """Unpack to plain fp32: a model that still counts as quantised can neither be saved nor
        trained.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        where, file = str(self.path.parent), self.path.name
        plain = GgufConfig(dequantize=True)
        try:
            causal = AutoModelForCausalLM.from_pretrained(
                where, gguf_file=file, dtype=torch.float32, quantization_config=plain
            )
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
        except ImportError as e:
            raise ConfigError(
                f"{self.path}: its architecture is read by the package gguf; pip install gguf"
            ) from e
        except (OSError, ValueError, KeyError) as e:
            reason = str(e).strip().split("\n")[0]
            raise ConfigError(f"{self.path} cannot be unpacked: {reason}") from e
        causal.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        take_tokenizer_as_it_is(folder, int(causal.config.max_position_embeddings))


def gguf_licence(path: Path) -> str:
    """Return the licence that a GGUF file's header names; raises :class:`ConfigError`."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        metadata, _ = read_gguf_metadata(str(path))
    except (ValueError, KeyError, IndexError, struct.error, OSError) as e:
        raise ConfigError(f"{path} is no GGUF file that can be read: {e}") from e
    return str(metadata.get("general.license", "unknown"))


def copy_model(source: Path, folder: Path) -> None:
    """Copy a Hugging Face folder's model, tokenizer and licence, and nothing else of it."""
    for path in _chosen(source, MODEL_FILES + TOKENIZER_FILES):
        shutil.copyfile(path, folder / path.name)
    copy_licence(source, folder, LICENCE_FILES)
    take_tokenizer_as_it_is(folder)


def copy_licence(source: Path, folder: Path, names: tuple[str, ...] = ("*",)) -> None:
    """Copy the texts of a licence beside the weights in ``folder``."""
    for path in _chosen(source, names):
        (folder / LICENCE).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / LICENCE / path.name)


def _chosen(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()})


def take_tokenizer_as_it_is(folder: Path, longest: int | None = None) -> None:
    """Have ``tokenizer.json`` used as it stands.

    The class that ``tokenizer_config.json`` names would put its own normaliser and pre-tokenizer
    in the place of the file's, and say nothing. ``longest``: tokens that the model takes.
    """
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config["tokenizer_class"] = GENERIC
    for name in ("is_local", "local_files_only", "auto_map"):  # of the machine that saved it
        config.pop(name, None)
    if longest is not None:
        config["model_max_length"] = longest
    text = json.dumps(config, ensure_ascii=False, indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def licence_of(readme: Path) -> str:
    """Return the licence that the head of a model card names."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    head = text.split("---")[1] if text.startswith("---") else ""
    found = re.search(r"^license:\s*(\S+)", head, re.MULTILINE)
    return found[1] if found else "unknown"
