"""Adapters of one base merged into one: linear, TIES and DARE over their products, in fp32 (A55).

What is merged is what an adapter adds to a layer's weight, ΔW = s·B·A (O, I), s its scale. Factors
are not: they are known up to any invertible matrix between them, and (ΣB)·(ΣA) has the products of
one adapter's B with another's A in it. So ranks and scales may differ; the layers may not.

- linear: the mean of ΔW.
- TIES (density 0.5): of each ΔW the larger half by magnitude; the sign of their sum is elected for
  each weight; the mean of those that have it. Trimmed layer by layer, as peft does, where the paper
  trims the adapter as a whole: no layer is left out for being small.
- DARE (p 0.5): of each ΔW a random half is dropped and the rest doubled, then the mean.

The arithmetic is peft's (``peft.utils.merge_utils``). Its ``add_weighted_adapter`` calls the same
functions, but (peft 0.21) gives the result the scale of the first adapter's configuration, √r
instead of 1 for rslora, which makes it √r times too strong; without ``_svd`` it merges the factors;
and it wants all adapters in a base in memory. Its TIES divides by how many agree, so the weights
must be 1 and not 1/n, or the result is n times too weak.

The result is a product of the first adapter's rank again, the nearest one there is (truncated SVD),
with that adapter's configuration. Kept as a sum of ranks the linear one would be exact, but of n
times the rank: no start for next week's trainings (``llm.warm_start``), and n times wider again
every week that it is merged with the next ones. What is lost is reported, and dev judges what is
left. It costs one full SVD a layer, on the GPU where there is one.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils.merge_utils import dare_linear, task_arithmetic, ties
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from csrm_tasks.errors import ArtifactError
from csrm_tasks.sections import MergeMethod
from csrm_tasks.training.precision import choose_device

DENSITY = 0.5  # share of its weights that TIES keeps of each adapter (A55)
DROPPED = 0.5  # probability that DARE drops a weight of an adapter (A55)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A, B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Truncation:
    """What the rank of the merged adapter leaves out, as shares of ‖ΔW‖ (Frobenius)."""

    error: float  # of all layers together
    worst: float  # of the layer that loses most


def layers_of(folder: Path) -> set[str]:
    """Return the names of the layers that the adapter in ``folder`` adapts."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {name.removesuffix(A) for name in file.keys() if name.endswith(A)}  # noqa: SIM118


def merge_adapters(
    folders: Sequence[Path], method: MergeMethod, seed: int, out: Path
) -> Truncation:
    """Merge the adapters in ``folders`` and write the result as an adapter to ``out``.

    All weigh alike. DARE draws by ``seed``, ``folders`` in the given order. Raises
    :class:`ArtifactError` where they adapt different layers, or a weight is not finite.
    """
    device = choose_device()
    adapters = [_Adapter(folder, device) for folder in folders]
    first = adapters[0]
    state: dict[str, Tensor] = {}
    lost, norms = [], []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in first.layers:
            merged = merged_product([one.product(layer) for one in adapters], method)
            a, b, left_out = factors(merged, first.rank)
            state |= {layer + A: a.cpu(), layer + B: (b / first.scale).cpu()}
            lost.append(left_out)
            norms.append(float(merged.norm()))
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(folders[0] / CONFIG, out)
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    shares = [x / norm if norm else 0.0 for x, norm in zip(lost, norms, strict=True)]
    whole = math.hypot(*norms)
    return Truncation(math.hypot(*lost) / whole if whole else 0.0, max(shares))


class _Adapter:
    """An adapter's weights in fp32, and what they mean."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        config = LoraConfig.from_pretrained(str(folder))
        self.rank: int = config.r
        root = math.sqrt(self.rank) if config.use_rslora else self.rank
        self.scale: float = config.lora_alpha / root
        state = load_file(str(folder / WEIGHTS))
        self.layers = sorted(name.removesuffix(A) for name in state if name.endswith(A))
        self._folder = folder
        self._state = {k: v.to(device, torch.float32) for k, v in state.items()}

    def product(self, layer: str) -> Tensor:
        """Return ΔW (O, I) of ``layer``."""
        try:
            delta: Tensor = self.scale * (self._state[layer + B] @ self._state[layer + A])
        except KeyError as e:
            raise ArtifactError(
                f"{self._folder}: adapts no layer {layer!r} as what it is merged with does; merge "
                "adapters of the same layers"
            ) from e
        if not bool(delta.isfinite().all()):
            raise ArtifactError(f"{self._folder}: layer {layer!r} is not finite; train it again")
        return delta


def merged_product(products: Sequence[Tensor], method: MergeMethod) -> Tensor:
    """Merge what adapters add to one layer, each (O, I)."""
    given = list(products)
    ones = torch.ones(len(given), device=given[0].device)
    merged: Tensor
    if method == "ties":
        merged = ties(given, ones, DENSITY)
    elif method == "dare":
        merged = dare_linear(given, ones / len(given), 1.0 - DROPPED)
    else:
        merged = task_arithmetic(given, ones / len(given))
    return merged


def factors(product: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return A (r, I), B (O, r) whose B·A is nearest to ``product``, and how far (Frobenius)."""
    u, s, v = torch.linalg.svd(product, full_matrices=False)
    kept = min(rank, len(s))  # a layer may be narrower than the rank: the rest stays zero
    a = product.new_zeros(rank, product.shape[1])
    b = product.new_zeros(product.shape[0], rank)
    a[:kept], b[:, :kept] = v[:kept], u[:, :kept] * s[:kept]
    return a, b, float(s[kept:].norm())
