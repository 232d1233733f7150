"""One epoch of LoRA fine-tuning on label prompts: packed rows against TRL's ``SFTTrainer``.

Same random Qwen3 (25 M trunk, vocabulary 151,936) in the precision that our probe chooses, same
LoRA and initial values, same prompts, batch, AdamW, schedule and number of optimizer steps. Label
sets as markets have them: 8 to 16 products a query, about 110 tokens of prefix and 60 of product,
one label token. The label shows in the product's tokens, so that there is something to learn.

TRL runs completion-only loss without gradient checkpointing. As it ships, its fused head scores
*every* position on a CPU, and no setting helps; its rate is taken over few steps, in all settings
(``pairs_ratio_trl``: the best of them). On a GPU that head scores positions with a label only; told
that this CPU is one, TRL does the same here. That is the harder peer, and both models' dev losses
are those of whole epochs against it (``pairs_ratio_trl_label_head``). Dev loss is over the labels.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.harness import Timing, closing_line, ratio, table, timing_rows
from benchmarks.llm_shapes import LABELS, VOCABULARY, qwen3, with_lora
from csrm_tasks.llm.network.head import label_logits, soft_cross_entropy
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.network.packed import pack, run_packed
from csrm_tasks.llm.prompt.batching import BatchStream, Epoch, draw_siblings
from csrm_tasks.llm.prompt.encoding import Ids
from csrm_tasks.llm.scoring.calibration import log_loss
from csrm_tasks.llm.scoring.predict import label_probabilities
from csrm_tasks.sections import Llm
from csrm_tasks.training.precision import choose_dtype

PREFIX, PRODUCT = 110, 60  # tokens
TELLING, WORDS = 20, 1  # tokens of a product that tell its label, out of so many different ones
BATCH, LR, CLIP = 16, 3e-3, 1.0
IGNORED = -100
SIBLINGS = int(Llm.model_fields["siblings"].default)  # as markets do
PACK, PACKS = 1024, 3  # tokens of a packed row, rows of a step: about as many pairs as BATCH
PADDED, PACKED = "padded, by length", "packed rows"
SETTINGS: dict[str, dict[str, Any]] = {
    PADDED: {"train_sampling_strategy": "group_by_length"},
    "padding-free": {"padding_free": True},
    PACKED: {
        "packing": True, "max_length": PACK, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": PACKS,
    },
}  # fmt: skip
OURS = "packed rows, shared prefix (ours)"
TRL = "TRL SFTTrainer, padded by length, its head on labels only"


@dataclass(frozen=True)
class Market:
    """Label prompts of some queries; the arrays are aligned."""

    parts: list[tuple[Ids, Ids]]
    labels: np.ndarray  # (N,), 0 to 2
    owners: np.ndarray  # (N,), the query

    def start_epoch(self, epoch: int) -> Epoch:
        """Draw siblings together, as the product's label tasks do."""
        order, groups = draw_siblings(self.owners, SIBLINGS, np.random.default_rng(epoch))
        lengths = np.asarray([len(a) + len(b) for a, b in self.parts])[order]
        return Epoch(order, lengths, np.zeros(len(order), np.int8), groups)


def make_market(queries: int, seed: int) -> Market:
    """Return prompts whose product holds words of its label among others."""
    rng = np.random.default_rng(seed)
    parts, labels, owners = [], [], []
    for query in range(queries):
        prefix = rng.integers(1000, VOCABULARY, max(20, int(rng.normal(PREFIX, 15))), np.int32)
        for _ in range(rng.integers(8, 17)):
            label = int(rng.integers(len(LABELS)))
            product = rng.integers(1000, VOCABULARY, max(20, int(rng.normal(PRODUCT, 15))))
            at = rng.choice(len(product), TELLING, replace=False)
            product[at] = 100 + WORDS * label + rng.integers(0, WORDS, TELLING)
            parts.append((prefix, product.astype(np.int32)))
            labels.append(label)
            owners.append(query)
    return Market(parts, np.asarray(labels), np.asarray(owners))


def new_model(dtype: torch.dtype, layers: int) -> Model:
    """Return the same model with the same fresh LoRA every time."""
    causal = qwen3(layers=layers).to(dtype)
    labels = {"bench": torch.tensor(LABELS)}
    return Model(with_lora(causal), None, labels, torch.device("cpu"), dtype, "qwen3-shaped", "")


def our_epoch(model: Model, market: Market, steps: int) -> None:
    """Make ``steps`` optimizer steps of an epoch in our way."""
    from transformers import get_linear_schedule_with_warmup

    model.causal.train()
    trained = [p for p in model.causal.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.01, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, steps)
    targets = torch.eye(len(LABELS))[torch.from_numpy(market.labels)]
    stream = BatchStream(market, BATCH, seed=0)
    for _ in range(steps):
        epoch, at = next(stream)
        chosen = epoch.order[at]
        hidden = run_packed(model.causal, pack([market.parts[i] for i in chosen], model.device))
        loss = soft_cross_entropy(
            label_logits(model.causal, hidden, model.labels["bench"]), targets[chosen]
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def trl_trainer(model: Model, market: Market, steps: int, setting: dict[str, Any]) -> Any:
    """Return TRL's trainer of as many optimizer steps over the same prompts."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    told = []
    for part, label in zip(market.parts, market.labels, strict=True):
        row = np.concatenate(part).tolist()
        answer = [LABELS[label]]
        told.append({"input_ids": row + answer, "labels": [IGNORED] * len(row) + answer})
    given = {"per_device_train_batch_size": BATCH, "max_length": None} | setting
    args = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=steps, learning_rate=LR, weight_decay=0.01,
        max_grad_norm=CLIP, warmup_steps=1, lr_scheduler_type="linear", optim="adamw_torch_fused",
        gradient_checkpointing=False, bf16=False, fp16=False, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, **given,
    )  # fmt: skip
    return SFTTrainer(
        model.causal, args=args, train_dataset=Dataset.from_list(told),
        processing_class=blank_tokenizer(),
    )  # fmt: skip


def blank_tokenizer() -> Any:
    """Return a tokenizer that is asked for nothing but its padding token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<pad>")


def dev_loss(model: Model, dev: Market) -> float:
    """Return the log loss over the label rows."""
    found = label_probabilities(model, dev.parts, "bench").astype(np.float64)
    return log_loss(found, dev.labels)


def seconds(run: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def label_head() -> Iterator[None]:
    """Let TRL's head score labelled positions only, as it does on a GPU."""
    with mock.patch("trl.trainer.utils._use_triton", lambda device: True):
        yield


def shipped_rates(
    dtype: torch.dtype, layers: int, market: Market, names: tuple[str, ...]
) -> dict[str, float]:
    """Return pairs/s of one step of TRL as it ships, by setting."""
    mean = np.mean([len(a) + len(b) for a, b in market.parts])
    rates = {}
    for name in names:
        trainer = trl_trainer(new_model(dtype, layers), market, 1, SETTINGS[name])
        pairs = PACKS * PACK / mean if name == PACKED else BATCH
        rates[name] = float(pairs / seconds(trainer.train))
    return rates


def epochs(
    dtype: torch.dtype, layers: int, market: Market, dev: Market, repeats: int
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Return times and dev losses of whole epochs of both, alternating."""
    steps = len(market.parts) // BATCH
    taken: dict[str, list[float]] = {OURS: [], TRL: []}
    losses = {"before training": dev_loss(new_model(dtype, layers), dev)}
    for _ in range(repeats):
        ours, peer = new_model(dtype, layers), new_model(dtype, layers)
        trainer = trl_trainer(peer, market, steps, SETTINGS[PADDED])
        taken[OURS].append(seconds(partial(our_epoch, ours, market, steps)))
        with label_head():
            taken[TRL].append(seconds(trainer.train))
        losses |= {OURS: dev_loss(ours, dev), TRL: dev_loss(peer, dev)}
    return {name: Timing(tuple(t)) for name, t in taken.items()}, losses


def main(quick: bool) -> None:
    """Print tables and the closing line."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    dtype = choose_dtype(torch.device("cpu"), 512)
    layers = 1 if quick else 8
    market, dev = make_market(3 if quick else 32, 0), make_market(1 if quick else 10, 1)
    shipped = shipped_rates(dtype, layers, market, (PACKED,) if quick else tuple(SETTINGS))
    timings, losses = epochs(dtype, layers, market, dev, 1 if quick else 3)
    pairs = len(market.parts) // BATCH * BATCH
    precision = str(dtype).removeprefix("torch.")
    print(f"An epoch of {pairs} pairs, batch {BATCH}, {precision}\n")
    print(table(timing_rows(timings, pairs, "pairs/s")), end="\n\n")
    print(table([{"model": k, "dev log loss": v} for k, v in losses.items()]), end="\n\n")
    print(table([{"TRL as it ships, one step": k, "pairs/s": v} for k, v in shipped.items()]))
    print()
    figures = {
        "pairs_ratio_trl": pairs / timings[OURS].median / max(shipped.values()),
        "pairs_ratio_trl_label_head": ratio(timings[TRL], timings[OURS]),
        "dev_loss": losses[OURS],
        "dev_loss_trl": losses[TRL],
    }
    print(closing_line("llm_epoch", figures, ("torch", "transformers", "peft", "trl")))
