"""One optimizer step on a label task: label rows against the model's own full-vocabulary logits.

Same random Qwen3 (25 M trunk, vocabulary 151,936), same LoRA, same batch (16 × 96), same AdamW.
The peer is what one writes with transformers: ``model(input_ids, labels=…)``, every position but
the label's ignored. Both also run with ``llm.gradient_checkpointing`` (a layer keeps its input only
and is computed again on the way back); the ratios are without it on both sides unless they say so.
Time in one process, alternating. Memory each in a process of its own, above the loaded model: *in
tensors* is the most that torch held at once, as ``max_memory_allocated`` tells of a GPU;
*resident* is the kernel's peak, in which the allocator's holes count as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import alternate, closing_line, ratio, table, timing_rows
from benchmarks.llm_shapes import LABELS, VOCABULARY, qwen3, with_lora
from csrm_tasks.llm.network.head import label_logits, soft_cross_entropy
from csrm_tasks.llm.network.model import checkpoint_activations
from csrm_tasks.llm.network.packed import pack, run_packed
from csrm_tasks.training.precision import choose_dtype

BATCH, LENGTH = 16, 96
IGNORED = -100
OURS, PEER = "label rows (ours)", "transformers, full logits"
CHECKPOINTED = ", layers checkpointed"
OURS_CHECKPOINTED, PEER_CHECKPOINTED = OURS + CHECKPOINTED, PEER + CHECKPOINTED
Step = Callable[[], object]


def steps(dtype: torch.dtype, batch: int, layers: int = 8) -> dict[str, Step]:
    """Return one optimizer step of each contestant on one batch."""
    plain = _steps(with_lora(qwen3(layers=layers).to(dtype)).train(), batch)
    thrifty = with_lora(qwen3(layers=layers).to(dtype)).train()
    checkpoint_activations(thrifty)
    return plain | {f"{name}{CHECKPOINTED}": run for name, run in _steps(thrifty, batch).items()}


def _steps(causal: Any, batch: int) -> dict[str, Step]:
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

    return {OURS: ours, PEER: peer}


def extra_bytes(which: str, batch: int) -> tuple[int, int]:
    """Return peak memory of a step above the loaded model's: in tensors, and resident.

    Runs in a fresh process. The resident peak is the kernel's (``VmHWM``), set back once the models
    are there: making them takes more than they hold.
    """
    torch.set_num_threads(1)
    step = steps(torch.float32, batch)[which]
    Path("/proc/self/clear_refs").write_text("5")
    loaded: int = psutil.Process().memory_info().rss
    step()
    step()
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return tensor_bytes(step), int(peak) * 1024 - loaded


def tensor_bytes(step: Step) -> int:
    """Return the most that was allocated at once during a step, by torch's own records."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    results: Any = seen.profiler
    records = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(records, key=lambda e: e.start_ns())]
    return int(np.cumsum(changes).max())


def fresh(names: list[str], batch: int, together: bool) -> dict[str, tuple[int, int]]:
    """Run :func:`extra_bytes` of each in a new interpreter, or of all in one: less exact."""
    found = {}
    for group in [names] if together else [[name] for name in names]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found |= {name: pool.submit(extra_bytes, name, batch).result() for name in group}
    return found


def native() -> str:
    """Say whether the processor has bf16 products."""
    return "native" if choose_dtype(torch.device("cpu"), 512) == torch.bfloat16 else "emulated"


def main(quick: bool) -> None:
    """Print tables and the closing line."""
    torch.set_num_threads(1)
    batch, repeats, layers = (2, 1, 1) if quick else (BATCH, 5, 8)
    contestants = steps(torch.float32, batch, layers)
    fp32 = alternate(contestants, repeats)
    bf16 = alternate(steps(torch.bfloat16, batch, layers), 1 if quick else 3)
    memory = fresh(list(contestants), batch, together=quick)
    for title, timings in (("fp32", fp32), (f"bf16 ({native()} on this CPU)", bf16)):
        print(f"{title}, batch {batch} × {LENGTH}\n")
        print(table(timing_rows(timings, batch, "pairs/s")), end="\n\n")
    print(table([{"contestant": k, "MB in tensors": held / 1e6, "MB resident": resident / 1e6}
                 for k, (held, resident) in memory.items()]))  # fmt: skip
    print()
    figures = {
        "time_ratio_fp32": ratio(fp32[PEER], fp32[OURS]),
        "memory_ratio_fp32": memory[PEER][0] / memory[OURS][0],
        "memory_ratio_fp32_resident": memory[PEER][1] / memory[OURS][1],
        "time_ratio_bf16": ratio(bf16[PEER], bf16[OURS]),
        "time_ratio_fp32_checkpointed": ratio(fp32[PEER_CHECKPOINTED], fp32[OURS_CHECKPOINTED]),
        "memory_ratio_fp32_checkpointed_resident": memory[PEER_CHECKPOINTED][1]
        / memory[OURS_CHECKPOINTED][1],
    }
    print(closing_line("llm_step", figures, ("torch", "transformers", "peft")))
