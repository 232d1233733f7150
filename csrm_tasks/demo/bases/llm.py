"""The demo's base LLM: a tiny Llama and the initialisation that lets it learn to match words.

With usual initialisation this model needs hundreds of CPU-seconds before it notices that a word
stands twice in its prompt. Three things bring that down to about ten:

- queries and keys start equal ("mimetic", Trockman & Kolter 2023), so a token attends to its like;
- the first layer and half of the heads start near-uniform, so that a token's state also says where
  it stands (a query's word is not a title's), and the output projection starts as the transposed
  value projection, so that what was attended to comes through;
- token embeddings start from the base encoder's, which knows what goes together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaAttention

WIDTH, LAYERS, HEADS, INNER = 128, 3, 4, 256
POSITIONS = 1024
EMBEDDING_STD = 0.07
NEAR_UNIFORM = 0.1  # factor on a head's query weights


def new_llm(tokenizer: PreTrainedTokenizerFast, embeddings: Tensor, seed: int) -> LlamaForCausalLM:
    """Return a fresh model whose embeddings are ``embeddings`` (V, H), rescaled."""
    torch.manual_seed(seed)
    causal = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            intermediate_size=INNER,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        scaled = embeddings - embeddings.mean(0)
        causal.model.embed_tokens.weight.copy_(scaled * (EMBEDDING_STD / scaled.std()))
        for number, layer in enumerate(causal.model.layers):
            _start_attention(layer.self_attn, first=number == 0)
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                nn.init.normal_(linear.weight, std=1 / math.sqrt(WIDTH))
            nn.init.normal_(layer.mlp.down_proj.weight, std=0.6 / math.sqrt(WIDTH * LAYERS))
    return causal


def _start_attention(attention: LlamaAttention, first: bool) -> None:
    """Keys equal to queries; near-uniform in the first layer and in half of the heads."""
    query, value = attention.q_proj.weight, attention.v_proj.weight  # (H, H)
    nn.init.normal_(query, std=1 / math.sqrt(WIDTH))
    nn.init.normal_(value, std=1 / math.sqrt(WIDTH))
    attention.k_proj.weight.copy_(query)
    attention.o_proj.weight.copy_(0.5 * value.T)
    query[: WIDTH if first else WIDTH // 2] *= NEAR_UNIFORM
