"""Named recipes of the relevance LLM (A5): ``llm.preset`` in a market file, then field by field.

A market's own keys win over the preset's. Neither paper says how a batch is cut into passes;
``micro_batch`` and ``gradient_checkpointing`` are ours, for a 14B base on a GPU of 80 GB, and on
several of 24 GB with ``llm.processes`` and ``llm.sharding: full`` beside the preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Paper 1, section 4.1; warm-up is A5's.
    "csrm-llm": {
        "lora": {"r": 128, "alpha": 256, "dropout": 0.01},
        "lr": 2e-5,
        "weight_decay": 0.01,
        "warmup": 0.03,
        "schedule": "linear",
        "batch": 64,
        "steps": 500_000,
        "max_length": 2048,
        "micro_batch": 16,
    },
    # Paper 2, section 4.1.2, query-item task (query-category: lr 7.5e-5, batch 128). The paper is
    # silent on alpha: twice the rank, as in paper 1.
    "data-centric": {
        "lora": {"r": 32, "alpha": 64, "dropout": 0.1},
        "lr": 5e-5,
        "schedule": "cosine",
        "batch": 64,
        "max_length": 512,
        "micro_batch": 8,
        "gradient_checkpointing": True,
    },
}


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` over its preset, nested sections likewise; unknown names change nothing."""
    return _over(PRESETS.get(str(given.get("preset")), {}), given)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        key: _over(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
    }
    return {**below, **above, **nested}
