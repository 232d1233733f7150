"""Gradient caching: a batch is embedded in chunks, and only one chunk's graph is in memory.

First every chunk is embedded without a graph; the loss is taken on the embeddings and gives their
gradient; then every chunk is embedded again, with the same dropout, and its part of that gradient
goes through it. Forward and backward equal the plain batch's; a third more time buys memory that
does not grow with the batch (Gao et al., 2021, "Scaling deep contrastive learning batch size under
memory limited setup").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Chunk = tuple[Tensor, Tensor]  # ids and mask, (b, T)
Embed = Callable[[Tensor, Tensor], Tensor]


@dataclass
class GradCache:
    """The chunks of one step, the random state each began with, and their embeddings."""

    embed: Embed
    _held: list[tuple[Sequence[Chunk], list[Tensor], Tensor]] = field(default_factory=list)

    def encode(self, chunks: Sequence[Chunk]) -> Tensor:
        """Embed ``chunks`` as one (n, dim) leaf whose gradient :meth:`backward` passes on."""
        states, vectors = [], []
        with torch.no_grad():
            for ids, mask in chunks:
                states.append(torch.get_rng_state())
                vectors.append(self.embed(ids, mask))
        leaf = torch.cat(vectors).requires_grad_()
        self._held.append((chunks, states, leaf))
        return leaf

    def backward(self) -> None:
        """Pass the leaves' gradients through their chunks; to be called after the loss's own."""
        after = torch.get_rng_state()
        for chunks, states, leaf in self._held:
            if leaf.grad is None:
                continue
            parts = torch.split(leaf.grad, [len(ids) for ids, _ in chunks])
            for (ids, mask), state, gradient in zip(chunks, states, parts, strict=True):
                torch.set_rng_state(state)
                self.embed(ids, mask).backward(gradient)  # type: ignore[no-untyped-call]
        torch.set_rng_state(after)
        self._held.clear()
