"""Loading a pretrained encoder whose tokens are averaged: without a pooler, in fp32."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModel

from csrm_tasks.base_models import pretrained
from csrm_tasks.errors import ConfigError


def load_encoder(key: str, name: str) -> Any:
    """Load an encoder, a folder or a Hugging Face name@commit, from safetensors.

    Raises :class:`ConfigError` naming ``key`` when it cannot be loaded.
    """
    source: dict[str, Any] = {
        **pretrained(name),
        "dtype": torch.float32,
        "use_safetensors": True,
    }
    try:
        try:
            found = AutoModel.from_pretrained(**source, add_pooling_layer=False)
        except TypeError:  # an architecture that has none to leave out
            found = AutoModel.from_pretrained(**source)
    except (OSError, ValueError) as e:
        reason = str(e).strip().split("\n")[0]
        raise ConfigError(f"{key} {name!r} cannot be loaded: {reason}") from e
    return without_pooler(found)


def without_pooler(encoder: Any) -> Any:
    """Remove what mean pooling has no use for; where the base lacks it, it would be random."""
    if "pooler" in dict(encoder.named_children()):
        encoder.pooler = None
    return encoder


def longest(config: Any) -> int:
    """Return how many tokens an encoder of absolute positions reads."""
    if not hasattr(config, "max_position_embeddings"):  # relative positions: no end
        return sys.maxsize
    positions = int(config.max_position_embeddings)
    # RoBERTa and its kin count positions from the padding token's id on.
    return positions - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)


def check_reads(name: str, config: Any, asked: Mapping[str, int]) -> None:
    """Raise :class:`ConfigError` where a text of so many tokens, by key, is more than it reads.

    At the start and not, after hours, at the first text that is so long.
    """
    for key, tokens in asked.items():
        if tokens > longest(config):
            raise ConfigError(
                f"{key} is {tokens}, but {name!r} reads {longest(config)} tokens at once; lower it "
                "or choose another encoder"
            )
