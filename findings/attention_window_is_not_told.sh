#!/usr/bin/env bash
# transformers 5.23.0, sliding windows and an attention function of one's own.
#
# Who registers a function in ALL_ATTENTION_FUNCTIONS and makes the masks himself (packed rows, paged
# caches) has to know each layer's window. Mistral, Gemma 3 and Qwen 3 hand it to every call as
# `sliding_window`, None where a layer sees everything before it. Qwen2-MoE and Phi-MoE build it into the mask
# only: the function gets no such argument at all, and taking that for "no window" gives other logits
# than the model's own beyond the window, without a word. It is in the configuration then:
# `sliding_window`, and `layer_types` where the model has them (csrm_tasks/llm/network/packed.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

told = []


def listening(module, *args, **given):
    told.append(given.get("sliding_window", "not told"))
    return sdpa_attention_forward(module, *args, **given)


ALL_ATTENTION_FUNCTIONS.register("listening", listening)
ALL_MASK_ATTENTION_FUNCTIONS.register("listening", sdpa_mask)
same = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=8, initializer_range=0.2)
layers = dict(layer_types=["sliding_attention"] * 2)
kinds = {
    "mistral": {}, "gemma3_text": layers, "qwen3": layers | dict(use_sliding_window=True),
    "qwen2_moe": layers | dict(use_sliding_window=True, num_experts=2, num_experts_per_tok=1),
    "phimoe": dict(num_local_experts=2, num_experts_per_tok=2),
}
seen = {}
for kind, more in kinds.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **same, **more)).eval()
    model.set_attn_implementation("listening")
    ids = torch.arange(40)[None]
    other = ids.clone()
    other[0, :20] = 7  # out of the last token's sight through two layers with a window of 8
    told.clear()
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
        first = list(told)
        moved = float((model(input_ids=ids).logits - model(input_ids=other).logits)[0, -1].abs().max())
    seen[kind] = first
    print(f"{kind:12} told of windows by layer: {first}; last logits move by {moved:.2g}")
    assert moved == 0, "a window does not act"
assert seen["mistral"] == seen["gemma3_text"] == seen["qwen3"] == [8, 8]
assert seen["qwen2_moe"] == seen["phimoe"] == ["not told"] * 2, "the behaviour changed"
PY
