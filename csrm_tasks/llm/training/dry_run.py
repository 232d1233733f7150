"""How fast this machine trains and scores with a market's LLM: tried out for less than a minute.

Samples are random token ids, as many as the market's landed texts have on average, else as the cost
formula takes. The number of prompts in a
step is doubled while the next one fits into what is left of the time, up to a pass of the market's;
the last one counts. FLOPs by the formula over seconds are the machine's speed at this base.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from csrm_tasks.base_models import weights_bytes
from csrm_tasks.errors import CsrmError
from csrm_tasks.llm.cost.formula import Shape, Work, forward_flops, shared, train_flops
from csrm_tasks.llm.cost.job import PREFIX, PRODUCT, Speed
from csrm_tasks.llm.network.head import label_logits, soft_cross_entropy
from csrm_tasks.llm.network.model import Model, add_lora, checkpoint_activations, load_base
from csrm_tasks.llm.network.packed import Parts, pack, run_packed
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields, product_form
from csrm_tasks.sections import Llm

SECONDS = 45.0  # of loading and trying, so that all is over within a minute
SLOWEST = (
    2e10  # FLOP/s of a slow core: a base that needs the whole time for one prompt is not tried
)
BYTES = 4  # of a weight while it is loaded


Texts = tuple[Sequence[QueryFields], Sequence[ProductFields]]


def dry_run(
    llm: Llm, shape: Shape, threads: int, texts: Texts = ((), ()), seconds: float = SECONDS
) -> Speed:
    """Load the base with a fresh LoRA, and train and score with it for ``seconds`` at most.

    Raises :class:`CsrmError` where the base is too large to be tried here, and as
    :func:`load_base`.
    """
    started = time.monotonic()
    _check_size(llm, shape, seconds)
    torch.set_num_threads(threads)
    model = load_base(llm.base)
    add_lora(model, llm.lora, seed=0)
    if llm.gradient_checkpointing:
        checkpoint_activations(model.causal)
    parameters = [p for p in model.causal.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    prefix, product = _lengths(model, llm, *texts)
    rows, most = 1, llm.micro_batch or llm.batch
    _train(model, optimizer, _parts(model, 1, 1, prefix, product))  # what is slow once only
    while True:
        siblings = min(rows, llm.siblings)
        parts = _parts(model, rows, siblings, prefix, product)
        work = _work(rows, siblings, prefix, product)
        took = _train(model, optimizer, parts)
        left = seconds - (time.monotonic() - started)
        if rows >= most or 2.5 * took > left:  # the next one, and scoring
            break
        rows = min(most, 2 * rows)
    kept = llm.gradient_checkpointing
    train = train_flops(shape, work, llm.lora, checkpointing=kept) / took
    score = forward_flops(shape, work, llm.lora) / _score(model, parts)
    return Speed(train, score, prefix, product, time.monotonic() - started, threads)


def _lengths(
    model: Model, llm: Llm, queries: Sequence[QueryFields], products: Sequence[ProductFields]
) -> tuple[int, int]:
    """Return mean tokens of a prompt's query part and of the rest."""
    prefix, product = PREFIX, PRODUCT
    if queries and products:
        encoder = PromptEncoder(model.tokenizer, llm.max_length, product_form(llm))
        encoder.prepare(RELEVANCE, queries, products)
        prefix = math.ceil(np.mean([len(encoder.prefix(RELEVANCE, q)) for q in queries]))
        product = math.ceil(np.mean([len(encoder.product(p)) for p in products]))
        product += len(encoder.slot)
    share = min(1.0, llm.max_length / (prefix + product))
    return max(1, int(prefix * share)), max(1, int(product * share))


def _check_size(llm: Llm, shape: Shape, seconds: float) -> None:
    if not weights_bytes(llm.base):
        raise CsrmError(f"no dry run: the weights of llm.base {llm.base!r} are not on this machine")
    free = _free_bytes()
    if shape.weights * BYTES > free:
        raise CsrmError(
            f"no dry run: llm.base {llm.base!r} takes {shape.weights * BYTES / 2**30:.1f} GiB "
            f"while it is loaded, and this machine has {free / 2**30:.1f} free"
        )
    one = train_flops(shape, shared(1, 1, PREFIX, PRODUCT), llm.lora)
    if not torch.cuda.is_available() and one / SLOWEST > seconds:
        raise CsrmError(
            f"no dry run: a single prompt takes {one / 1e12:.1f} TFLOP with llm.base {llm.base!r}, "
            "too many for a CPU"
        )


def _free_bytes() -> float:
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else float("inf")


def _work(rows: int, siblings: int, prefix: int, product: int) -> Work:
    return shared(rows / siblings, siblings, prefix, product)


def _parts(model: Model, rows: int, siblings: int, prefix: int, product: int) -> Parts:
    """Return prompts of random tokens, ``siblings`` behind one prefix."""
    rng = np.random.default_rng(0)
    vocabulary = int(model.causal.get_input_embeddings().num_embeddings)
    prefixes = [rng.integers(0, vocabulary, prefix, np.int32) for _ in range(-(-rows // siblings))]
    return [
        (prefixes[i // siblings], rng.integers(0, vocabulary, product, np.int32))
        for i in range(rows)
    ]


def _train(model: Model, optimizer: torch.optim.Optimizer, parts: Parts) -> float:
    """Make one optimizer step; return its seconds."""
    labels = model.labels[RELEVANCE.name]
    target = torch.full((len(parts), len(labels)), 1 / len(labels), device=model.device)
    model.causal.train()
    started = time.monotonic()
    hidden = run_packed(model.causal, pack(parts, model.device))
    loss = soft_cross_entropy(label_logits(model.causal, hidden, labels), target)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    float(loss.detach())  # a GPU has done it all when its value is here
    return time.monotonic() - started


def _score(model: Model, parts: Parts) -> float:
    """Read the label probabilities out; return the seconds."""
    model.causal.eval()
    started = time.monotonic()
    with torch.inference_mode():
        hidden = run_packed(model.causal, pack(parts, model.device))
        label_logits(model.causal, hidden, model.labels[RELEVANCE.name]).cpu()
    return time.monotonic() - started
