"""One optimizer step on a label task: label rows against the model's own full-vocabulary logits.

Same random Qwen3 (25 M trunk, vocabulary 151,936), same LoRA, same batch (16 × 96), same AdamW.
The peer is what one writes with transformers: ``model(input_ids, labels=…)``, every position but
the label's ignored. Time in one process, alternating; memory each in a process of its own, as the
peak above what the loaded model takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.harness import alternate, closing_line, ratio, table, timing_rows
from benchmarks.llm_shapes import LABELS, VOCABULARY, qwen3, with_lora
from csrm_tasks.llm.head import label_logits, soft_cross_entropy
from csrm_tasks.llm.packed import pack, run_packed
from csrm_tasks.llm.precision import choose_dtype

BATCH, LENGTH = 16, 96
IGNORED = -100
Step = Callable[[], object]


def steps(dtype: torch.dtype, batch: int) -> dict[str, Step]:
    """Return one optimizer step of each contestant on one shared model and batch."""
    causal = with_lora(qwen3().to(dtype)).train()
    trained = [p for p in causal.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (batch, LENGTH), generator=generator)
    prompts = [(row[:0], row) for row in ids.int().numpy()]  # nothing to share
    rows = torch.tensor(LABELS)
    answer = torch.randint(0, len(LABELS), (batch,), generator=generator)
    soft = torch.nn.functional.one_hot(answer, len(LABELS)).float()
    # The peer's label is a token after the prompt, ours is read where the prompt ends: its prompt
    # holds one token less, so that both run S positions.
    told = torch.full((batch, LENGTH), IGNORED)
    told[:, -1] = rows[answer]

    def update(loss: Any) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def ours() -> None:
        hidden = run_packed(causal, pack(prompts, ids.device))
        update(soft_cross_entropy(label_logits(causal, hidden, rows), soft))

    def peer() -> None:
        update(causal(input_ids=ids, labels=told).loss)

    return {"label rows (ours)": ours, "transformers, full logits": peer}


def extra_bytes(which: str, batch: int) -> int:
    """Return the peak memory of two steps above the loaded model's; runs in a fresh process.

    The peak is the kernel's for this program (``VmHWM``): ``ru_maxrss`` is never below what the
    process took before it became this program, which is what its parent had.
    """
    torch.set_num_threads(1)
    step = steps(torch.float32, batch)[which]
    loaded = psutil.Process().memory_info().rss
    step()
    step()
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(peak) * 1024 - loaded


def fresh(which: str, batch: int) -> int:
    """Run :func:`extra_bytes` in a new interpreter."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(extra_bytes, which, batch).result()


def native() -> str:
    """Say whether the processor has bf16 products."""
    return "native" if choose_dtype(torch.device("cpu"), 512) == torch.bfloat16 else "emulated"


def main(quick: bool) -> None:
    """Print tables and the closing line."""
    torch.set_num_threads(1)
    batch, repeats = (4, 2) if quick else (BATCH, 5)
    contestants = steps(torch.float32, batch)
    ours, peer = contestants
    fp32 = alternate(contestants, repeats)
    bf16 = alternate(steps(torch.bfloat16, batch), 1 if quick else 3)
    memory = {name: fresh(name, batch) for name in contestants}
    for title, timings in (("fp32", fp32), (f"bf16 ({native()} on this CPU)", bf16)):
        print(f"{title}, batch {batch} × {LENGTH}\n")
        print(table(timing_rows(timings, batch, "pairs/s")), end="\n\n")
    print(table([{"contestant": k, "MB above the model": v / 1e6} for k, v in memory.items()]))
    print()
    figures = {
        "time_ratio_fp32": ratio(fp32[peer], fp32[ours]),
        "memory_ratio_fp32": memory[peer] / memory[ours],
        "time_ratio_bf16": ratio(bf16[peer], bf16[ours]),
    }
    print(closing_line("llm_step", figures, ("torch", "transformers", "peft")))
