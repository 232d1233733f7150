"""The optimiser of encoders: AdamW, clipped, with own rates for head, encoder and vocabulary.

The vocabulary table is most of a multilingual encoder (96 of 117 million weights of e5-small). From
``LAZY_FROM`` weights on it is trained by :mod:`csrm_tasks.training.vocabulary`, and the rest by
torch's fused AdamW; both equal the plain AdamW but for rounding. A smaller one, such as the demo's
base has, is trained by the plain AdamW: it gains little there, and keeps its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from csrm_tasks.sections import Rates
from csrm_tasks.training.heap import Heap
from csrm_tasks.training.schedule import Schedule
from csrm_tasks.training.vocabulary import BETAS, EPS, LazyTable

WEIGHT_DECAY = 0.01
CLIP = 1.0  # norm of the whole gradient
LAZY_FROM = 1 << 21  # weights of a table
PLAIN_RATES = Rates()


class EncoderOptimizer(torch.optim.AdamW):
    """Trains the weights of ``model`` that require gradients, at ``schedule`` times their rates.

    The word embeddings of the encoders in it are the vocabulary, the encoders' other weights the
    encoder, all else the head. ``apart`` are groups with a ``weight_decay`` and a ``share`` of the
    schedule of their own. :meth:`finish` must be called before the weights are used elsewhere.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        rates: Rates = PLAIN_RATES,
        apart: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._schedule, self._heap = schedule, Heap()
        tables = vocabularies(model)
        lazy = [t for t in tables if t.weight.requires_grad and t.weight.numel() >= LAZY_FROM]
        self._tables = [LazyTable(t, self._rate_of(rates.vocabulary), WEIGHT_DECAY) for t in lazy]
        groups = [*apart, *_parts(model, tables, rates, apart)]
        super().__init__(
            [g for g in groups if g["params"]], lr=schedule.peak, betas=BETAS, eps=EPS,
            weight_decay=WEIGHT_DECAY, fused=True if lazy else None,
        )  # fmt: skip
        own = {id(t.weight) for t in lazy}
        for group in self.param_groups:
            # Its state is not what the fused kernel keeps, and is not to be cast when it is loaded.
            if own & {id(p) for p in group["params"]}:
                group["fused"] = None
        # In the model's order: the norm is summed in it.
        trained = [p for p in model.parameters() if p.requires_grad]
        self._dense = [p for p in trained if id(p) not in own]
        for table in self._tables:
            self.state[table.weight] = table.state

    def _rate_of(self, share: float) -> Callable[[int], float]:
        return lambda step: self._schedule.rate(step) * share

    def load_state_dict(self, state_dict: Any) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        for table in self._tables:
            table.load(self.state[table.weight])

    def update(self, step: int) -> None:
        """Take the step that is ``step``-th from 0 with the gradients that there are; drop them."""
        for group in self.param_groups:
            group["lr"] = self._schedule.rate(step) * group["share"]
        taken = [(table, found) for table in self._tables if (found := table.take()) is not None]
        nn.utils.clip_grad_norm_([*self._dense, *(leaf for _, (_, leaf) in taken)], CLIP)
        self.step()
        for table, (rows, leaf) in taken:
            table.step(rows, leaf)
        self.zero_grad(set_to_none=True)
        self._heap.trim()

    def catch_up(self) -> None:
        """Give every row the weights that the dense optimiser would have given it by now."""
        for table in self._tables:
            table.catch_up()

    def finish(self) -> None:
        """End the training: all rows caught up, and the model as plain as it was."""
        for table in self._tables:
            table.release()
        self._tables = []


def vocabularies(model: nn.Module) -> list[nn.Embedding]:
    """Return the word embeddings of the encoders in ``model``, a shared one once."""
    encoders = (m for m in model.modules() if isinstance(m, PreTrainedModel))
    found = {id(t): t for e in encoders if isinstance(t := e.get_input_embeddings(), nn.Embedding)}
    return list(found.values())


def _parts(
    model: nn.Module, tables: Sequence[nn.Embedding], rates: Rates, apart: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Group the other trained weights, in the model's order."""
    encoders = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    inside = {id(p) for e in encoders for p in e.parameters()}
    rows = {id(t.weight) for t in tables}
    elsewhere = {id(p) for group in apart for p in group["params"]}
    parts: dict[str, list[Tensor]] = {"head": [], "encoder": [], "vocabulary": []}
    for weight in model.parameters():
        if weight.requires_grad and id(weight) not in elsewhere:
            kind = "vocabulary" if id(weight) in rows else "encoder"
            parts[kind if id(weight) in inside else "head"].append(weight)
    return [{"params": ps, "share": getattr(rates, kind)} for kind, ps in parts.items()]
