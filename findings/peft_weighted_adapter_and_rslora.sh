#!/usr/bin/env bash
# peft 0.21.2, LoraModel.add_weighted_adapter of adapters that were trained with use_rslora=True.
#
# The merged factors already hold scale and weights, so the new adapter is made with
# lora_alpha = r, "scale 1". It inherits use_rslora from the first adapter, though, and then its scale
# is r / √r: the exact kinds (svd, cat) give √r times the weighted sum they stand for, without a word.
# At rank 64 that is a change eight times too large. Without rslora they are exact. Who merges
# rslora adapters has to divide by the scale of the result, or merge B·A himself as
# csrm_tasks/llm/network/merging.py does. TIES, by the way, divides by the number of adapters that
# agree on a sign, so weights of 1/n, as for a mean, leave it n times too small.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 peft==0.21.2
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import torch
from peft import LoraConfig, get_peft_model

RANK = 16


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q = torch.nn.Linear(64, 48, bias=False)


def merged(rslora, kind, weight, same=False):
    """Return ‖merged‖ / ‖weighted sum‖ of two random adapters, or of one and itself."""
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=32, use_rslora=rslora, target_modules=["q"])
    model = get_peft_model(Base(), config, adapter_name="one")
    model.add_adapter("two", config)
    layer = model.base_model.model.q
    for name in ("one", "two"):
        if same:
            torch.manual_seed(1)
        torch.nn.init.normal_(layer.lora_A[name].weight)
        torch.nn.init.normal_(layer.lora_B[name].weight)
    model.requires_grad_(False)
    expected = weight * sum(layer.get_delta_weight(name) for name in ("one", "two"))
    model.base_model.add_weighted_adapter(
        ["one", "two"], [weight] * 2, "sum", combination_type=kind, svd_rank=2 * RANK, density=1.0
    )
    delta = layer.get_delta_weight("sum").detach()
    return float(delta.norm() / expected.norm())


for kind in ("svd", "cat"):
    plain, rslora = (merged(rs, kind, 0.5) for rs in (False, True))
    print(f"{kind:4} of two adapters, result of rank {2 * RANK}: {plain:.4f} times the mean "
          f"without rslora, {rslora:.4f} times with it (√rank = {(2 * RANK) ** 0.5:.4f})")
    assert abs(plain - 1) < 1e-3
    assert abs(rslora - (2 * RANK) ** 0.5) < 1e-2, "the behaviour changed"
twice = merged(False, "ties_svd", 0.5, same=True)
print(f"ties of an adapter with itself, nothing trimmed, weights 1/2: {twice:.4f} times the adapter")
assert abs(twice - 0.5) < 1e-3, "the behaviour changed"
PY
