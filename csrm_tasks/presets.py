"""Named recipes: ``llm.preset``, ``retrieval.ebr.preset`` and ``towers.preset`` of a market file.

A market's own keys win over the preset's, field by field. Neither paper says how an LLM's
batch is cut into passes; ``micro_batch`` and ``gradient_checkpointing`` are ours, for a 14B base on
a GPU of 80 GB, and on several of 24 GB with ``llm.processes`` and ``llm.sharding: full`` beside the
preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Presets = Mapping[str, Mapping[str, Any]]

LLM: Presets = {
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
    # Gemma 3 270M (csrm base add gemma-270m; csrm base trim … --layers 12) for some thousand labels
    # on a CPU: every linear layer is adapted, for few steps at a high rate. Chosen on fresh queries
    # of the generated names market, neither dev nor gold (docs/BASES.md): at 5e-4 with a scale of 4
    # and 16 pairs a step nothing was learnt in 800 pairs, at 2e-3 it diverged.
    "gemma-270m": {
        "base": "base:gemma-270m",
        "lora": {"r": 32, "alpha": 64, "dropout": 0.0, "targets": "all-linear"},
        "mixture": {"mt": 0.25, "mt_weight": 0.3, "cvr": 0.25},
        "lr": 7e-4,
        "warmup": 0.05,
        "batch": 48,  # 32 judged pairs, 8 translations, 8 conversion examples
        "steps": 200,
        "ranker_steps": 80,
        "evaluate_every": 200,
        "patience": 2,
        "max_length": 256,
        "product_fields": ["brand", "category"],
        "category_levels": 2,  # a whole path is twice as long and repeats what others say
        "siblings": 2,
        "micro_batch": 16,
    },
}


TWO_TOWERS: dict[str, Any] = {  # what both recipes share: paper 1, section 6.1, and A31
    "encoder": "FacebookAI/xlm-roberta-base@e73636d4f797dec63c3081bb6ed5c7b0bb3f2089",
    "dim": 128,
    "scale": 8.0,
    "impressed": 20,
    "retrieved": 100,
    "batch_queries": 64,
    "batch_products": 16,
    "lr": 8e-5,
    "lr_end": 1e-6,
}
# multilingual-e5-small (csrm base add e5-small), as retriever and towers read it.
E5_SMALL: dict[str, Any] = {
    "encoder": "base:e5-small",
    "dim": None,  # its own 384
    "query_prefix": "query: ",
    "title_prefix": "passage: ",
}
TOWERS: Presets = {
    # Two models of a head each, s fixed and no b, no random products, queries as they were typed.
    "paper": {
        **TWO_TOWERS,
        "separate_trunks": True,
        "learn_scale": False,
        "random": 0,
        "typo_share": 0.0,
    },
    # One trunk pair for both heads, at half the cost; s and b learnt (A28, A29, A31).
    "recommended": {
        **TWO_TOWERS,
        "separate_trunks": False,
        "learn_scale": True,
        "random": 8,
        "typo_share": 0.3,
    },
    # On a CPU, for a base cut to its first two layers (csrm base trim e5-small --layers 2). Chosen
    # on fresh queries of the generated names market, neither dev nor gold (docs/BASES.md).
    "e5-small": {
        **E5_SMALL,
        "learn_scale": True,
        "scale": 14.0,  # at 8 a cosine of 1 is hardly sure of an exact match; 40 learns slower
        "lexical": True,
        "fitted_start": True,
        "impressed": 10,
        "retrieved": 16,
        "random": 5,
        "steps": 1200,
        "batch_queries": 32,
        "batch_products": 4,
        "lr": 1e-3,
        "lr_end": 2e-6,
        "warmup": 0.1,
        "query_tokens": 24,
        "title_tokens": 48,
        "product_fields": ["brand", "leaf_category"],
    },
}
EBR: Presets = {
    # As the towers' of the same name. Not final.
    "e5-small": {
        **E5_SMALL,
        "steps": 100,
        "batch": 128,
        "pool": 64,
        "lr": 5e-5,
        "max_length": 48,
    },
}
SECTIONS = {"llm": LLM, "retrieval.ebr": EBR, "towers": TOWERS}


def with_presets(market: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a market file with its sections over the presets that they name.

    Nested sections likewise; what is unknown is left for validation to refuse.
    """
    found = dict(market)
    for name, presets in SECTIONS.items():
        found = _filled(found, name.split("."), presets)
    return found


def _filled(market: Mapping[str, Any], path: list[str], presets: Presets) -> dict[str, Any]:
    """Return ``market`` with the section at ``path`` over the preset that it names."""
    name, *below = path
    own = market.get(name)
    if not isinstance(own, Mapping):
        return dict(market)
    if below:
        return {**market, name: _filled(own, below, presets)}
    return {**market, name: _over(presets.get(str(own.get("preset")), {}), own)}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        key: _over(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
    }
    return {**below, **above, **nested}
