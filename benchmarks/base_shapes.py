"""The bases of ``base_trim``: the two real ones where they are kept, else stand-ins of their build.

A stand-in has random weights, as many table rows as the real one (``--quick``: a fortieth) and the
tokenizer of the demo's shipped bases: speed, memory and bytes do not depend on what a weight is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from csrm_tasks.base_models import KEPT, local_folder
from csrm_tasks.bases.adding import add_base
from csrm_tasks.bases.sources import Folder
from csrm_tasks.settings import PROJECT_ROOT

SHIPPED = PROJECT_ROOT / "csrm_tasks" / "demo" / "bases" / "shipped"
GEMMA_ROWS, E5_ROWS = 262_144, 250_037
REAL = ("gemma-270m", "e5-small")


def whole_bases(work: Path, quick: bool) -> tuple[Path, Path, str]:
    """Return folders of a causal base and an encoder, and in words what they are."""
    kept = [local_folder(f"{KEPT}{name}") for name in REAL]
    if not quick and kept[0] and kept[1]:
        return kept[0], kept[1], f"{REAL[0]} and {REAL[1]}, as kept"
    parts = (40, 2, 64) if quick else (1, 18, 640)
    made = _gemma(work / "made-llm", *parts), _e5(work / "made-encoder", parts[0], quick)
    for name, folder in zip(REAL, made, strict=True):
        add_base(work / "bases", name, Folder(folder), accept_terms=True)
    places = [work / "bases" / name for name in REAL]
    return places[0], places[1], "random stand-ins of the build of " + " and ".join(REAL)


def _gemma(folder: Path, part: int, layers: int, width: int) -> Path:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = _tokenizer("llm", folder)
    config = Gemma3TextConfig(
        vocab_size=max(GEMMA_ROWS // part, len(tokenizer)), hidden_size=width,
        intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256 if width > 64 else 16, sliding_window=512,
        max_position_embeddings=1024, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


def _e5(folder: Path, part: int, quick: bool) -> Path:
    from transformers import BertConfig, BertModel

    tokenizer = _tokenizer("encoder", folder)
    config = BertConfig(
        vocab_size=max(E5_ROWS // part, len(tokenizer)), hidden_size=64 if quick else 384,
        num_hidden_layers=2 if quick else 12, num_attention_heads=4 if quick else 12,
        intermediate_size=256 if quick else 1536, max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def _tokenizer(kind: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / kind)
    tokenizer.save_pretrained(folder)
    return tokenizer
