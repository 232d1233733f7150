"""Random encoders of real shapes: what the benchmarks of retrieval and serving share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

from csrm_tasks.settings import PROJECT_ROOT


def make_base(folder: Path, layers: int, tokenizer: Any = None) -> Path:
    """Save a random encoder with XLM-R-base's widths and a tokenizer, by default the shipped."""
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(
            PROJECT_ROOT / "csrm_tasks/demo/bases/shipped/encoder"
        )
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=768, num_hidden_layers=layers,
        num_attention_heads=12, intermediate_size=3072, max_position_embeddings=130,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
