"""Random models of real shapes, and prompts of realistic lengths: what the LLM benchmarks share.

No weights can be fetched, and speed and memory do not depend on their values. The vocabulary is
Qwen3's 151,936 (``--quick``: a twentieth); the trunk has 25 M parameters.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import QUICK

VOCABULARY = 7_596 if os.environ.get(QUICK) else 151_936
LABELS = (17, 16, 15)  # any three rows will do
Lengths = npt.NDArray[np.int64]


def qwen3(vocabulary: int = VOCABULARY, layers: int = 8) -> Any:
    """Return a random Qwen3, fp32, ready for inference; 8 layers are a 25 M-parameter trunk."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=512, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, max_position_embeddings=1024,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    model.requires_grad_(False)
    return model


def with_lora(causal: Any) -> Any:
    """Put LoRA of rank 16 on query, key and value in place; the base stays frozen (A5)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    get_peft_model(causal, config)
    return causal


def realistic_lengths(n: int, seed: int = 0) -> Lengths:
    """Return ``n`` prompt lengths in tokens: mean about 160, 95th percentile 240, at most 766."""
    rng = np.random.default_rng(seed)
    found = np.exp(rng.normal(np.log(154.5), 0.265, n))
    found[rng.random(n) < 0.002] *= 3.0  # a few very long descriptions
    return np.clip(found.round(), 20, 766).astype(np.int64)
