"""The cost formula against the clock: one rate of FLOPs, fitted on some shapes, predicts others.

Random Qwen3-shaped models, a training step on labels (LoRA, label rows) and scoring of the same
prompts, fp32 on one thread. All shapes are run in turn, and the least of their times counts. The
rate of each kind is the median over the first half of the shapes; its
error is on the second half, whose widths, depths, batches and lengths are others. There is no
peer: what is shown is how far the formula of docs/SCALE.md may be trusted on one machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.harness import alternate, closing_line, table
from benchmarks.llm_shapes import LABELS
from csrm_tasks.llm.cost.formula import Shape, forward_flops, one_by_one, train_flops
from csrm_tasks.llm.network.head import label_logits, soft_cross_entropy
from csrm_tasks.llm.network.packed import pack, run_packed
from csrm_tasks.sections import Lora

LORA, VOCABULARY = Lora(r=16, alpha=32), 8192
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A model's size and a batch's."""

    hidden: int
    layers: int
    rows: int
    length: int


FITTED = (Case(384, 6, 16, 96), Case(512, 8, 16, 96), Case(512, 4, 8, 192), Case(768, 6, 8, 128))
HELD_OUT = (Case(640, 8, 12, 96), Case(448, 12, 16, 128), Case(896, 6, 8, 96), Case(512, 8, 8, 320))
QUICK = (Case(128, 2, 4, 32),), (Case(192, 2, 4, 32),)
KINDS, REPEATS = ("train", "score"), 4


def model(case: Case) -> Any:
    """Return a random Qwen3 of this size with LoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    heads = case.hidden // 64
    causal = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=case.hidden, intermediate_size=3 * case.hidden,
            num_hidden_layers=case.layers, num_attention_heads=heads, num_key_value_heads=heads,
            head_dim=64, tie_word_embeddings=True,
        )
    ).requires_grad_(False)  # fmt: skip
    config = LoraConfig(
        r=LORA.r, lora_alpha=LORA.alpha, target_modules=[*LORA.targets], task_type="CAUSAL_LM"
    )
    get_peft_model(causal, config)
    return causal


@dataclass(frozen=True)
class Contest:
    """One kind of work on one case: FLOPs by formula, and a way to do it."""

    flops: float
    run: Callable[[], object]


def contests(case: Case) -> dict[str, Contest]:
    """Return a training step and scoring of one batch."""
    causal = model(case)
    rng = np.random.default_rng(0)
    nothing = np.empty(0, np.int32)
    parts = [
        (nothing, rng.integers(0, VOCABULARY, case.length, np.int32)) for _ in range(case.rows)
    ]
    target, rows = torch.full((case.rows, 3), 1 / 3), torch.tensor(LABELS)

    def train() -> None:
        logits = label_logits(causal, run_packed(causal, pack(parts, CPU)), rows)
        soft_cross_entropy(logits, target).backward()

    def score() -> None:
        with torch.inference_mode():
            label_logits(causal, run_packed(causal, pack(parts, CPU)), rows)

    shape, work = Shape.of(causal.config), one_by_one(case.rows, case.length)
    return {
        "train": Contest(train_flops(shape, work, LORA), train),
        "score": Contest(forward_flops(shape, work, LORA), score),
    }


def main(quick: bool) -> None:
    """Print tables and the closing line."""
    torch.set_num_threads(1)
    fitted, held_out = QUICK if quick else (FITTED, HELD_OUT)
    cut, cases = len(fitted), [*fitted, *held_out]
    tried = [contests(case) for case in cases]
    errors: dict[str, float] = {}
    for kind in KINDS:
        own = [found[kind] for found in tried]
        timings = alternate({str(i): one.run for i, one in enumerate(own)}, 1 if quick else REPEATS)
        took = [min(t.seconds) for t in timings.values()]  # in turn, and the least disturbed
        rate = statistics.median(
            one.flops / s for one, s in zip(own[:cut], took[:cut], strict=True)
        )
        off = [one.flops / rate / s - 1 for one, s in zip(own, took, strict=True)]
        errors[kind] = statistics.median(map(abs, off[cut:]))
        print(f"{kind}, at {rate / 1e9:.1f} GFLOP/s\n")
        print(table([
            {"hidden × layers, rows × length":
                f"{case.hidden} × {case.layers}, {case.rows} × {case.length}",
             "used to": "fit" if i < cut else "test", "GFLOP": one.flops / 1e9,
             "measured s": took[i], "predicted s": one.flops / rate, "error": f"{off[i]:+.1%}"}
            for i, (case, one) in enumerate(zip(cases, own, strict=True))
        ]), end="\n\n")  # fmt: skip
    figures = {f"error_{kind}": error for kind, error in errors.items()}
    print(closing_line("llm_cost", figures, ("torch", "transformers", "peft")))
