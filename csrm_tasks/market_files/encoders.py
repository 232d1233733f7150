"""What ``csrm market check`` advises on encoders: width of vectors, prefixes. Loads no model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from csrm_tasks.base_models import RECORD, local_folder
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import Ebr, Towers
from csrm_tasks.settings import PROJECT_ROOT

SHIPPED = PROJECT_ROOT / "csrm_tasks" / "demo" / "bases" / "shipped"
NARROW = 512  # own widths up to this are hardly dearer to search and store than a projection's
E5 = re.compile(r"(?:^|[^a-z0-9]|nano)e5(?:[^a-z0-9]|$)")


def of_encoders(config: MarketConfig) -> Iterator[str]:
    """Yield a line for each setting under which a pretrained encoder is worth less than it could.

    The shipped one is left out: it has read the demo's made-up shop only.
    """
    sections: dict[str, Ebr | Towers] = {
        "retrieval.ebr": config.retrieval.ebr, "towers": config.towers,
    }  # fmt: skip
    for key, section in sections.items():
        if (local_folder(section.encoder) or Path("/")).is_relative_to(SHIPPED):
            continue
        yield from _of_width(key, section)
        yield from _of_prefixes(key, section)


def _of_width(key: str, section: Ebr | Towers) -> Iterator[str]:
    width = _about(section.encoder, "config.json").get("hidden_size")
    if section.dim is not None and isinstance(width, int) and section.dim < width <= NARROW:
        yield (
            f"{key}.dim: {section.dim}, and the encoder's own width is {width}: a fresh projection "
            "throws away some of what it knows (e5-small, 384 to 64: three to four points of AUC); "
            "null keeps its own"
        )


def _of_prefixes(key: str, section: Ebr | Towers) -> Iterator[str]:
    if not (section.query_prefix and section.title_prefix) and _is_e5(section.encoder):
        yield (
            f"{key}.query_prefix, title_prefix: e5 encoders were pretrained to read 'query: ' "
            "before a query and 'passage: ' before a title; set both"
        )


def _is_e5(encoder: str) -> bool:
    """Whether an encoder calls itself of that family, or was made of one that does."""
    names = (encoder.partition("@")[0], str(_about(encoder, RECORD).get("origin", {})))
    return any(E5.search(name.lower()) for name in names)


def _about(encoder: str, file: str) -> dict[str, Any]:
    """Return what a JSON file in an encoder's folder says; nothing of one that is not here."""
    folder = local_folder(encoder)
    if folder is None or not (folder / file).is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads((folder / file).read_text(encoding="utf-8"))
    except ValueError:  # the check of its folder says so
        return {}
    return found
