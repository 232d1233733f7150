"""AdamW for a vocabulary table: the rows that a batch does not read cost nothing.

A market's batch reads a few thousand rows of a table that may have a quarter of a million, yet the
dense optimiser makes a gradient for all of them and moves all of them, since momentum and weight
decay go on without a gradient. Here the gradient is sparse, and a row is left behind until it is
read again. What it has missed is a function of its two moments m, v and of the steps alone: of a
row that last had a gradient in step l, step s = l + j would have taken

    rate(s) / (1 - b1^s) · b1^j m / (√v · b2^(j/2) / √(1 - b2^s) + eps),    then decay

so the missed steps are summed up at once when the row is next read (a hook on the embedding), or
when all rows are asked for. That equals ``torch.optim.AdamW`` but for rounding. The sum ends where
b1^j is below what a float32 can add to the first term: a row costs its last 158 steps at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPS = 1e-8
# Steps after which (b1/√b2)^j, a missed step's share of the first, is below 2^-24.
MISSED = math.ceil(24 * math.log(2) / -math.log(BETAS[0] / math.sqrt(BETAS[1])))
BLOCK = 1 << 18  # numbers of one pass over rows × missed steps × width, to stay in the cache
ROWS = 8192  # brought up to date at a time, to bound memory

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]


class History:
    """What AdamW did in each step, counted from 1, as far as a row without a gradient sees it."""

    def __init__(self, rate: Callable[[int], float], decay: float) -> None:
        self._rate, self._decay = rate, decay
        self.size: Floats = np.zeros(1)  # rate / (1 - b1^s)
        self.shrunk: Floats = np.zeros(1)  # log of the product of all decays up to s
        self.root: Floats = np.ones(1)  # √(1 - b2^s)

    def reach(self, last: int) -> None:
        """Know steps up to ``last``."""
        if last < len(self.size):
            return
        steps = np.arange(2 * last)
        rates = np.array([self._rate(int(s)) for s in steps])  # of step s + 1
        one, two = (-np.expm1((steps + 1) * math.log(b)) for b in BETAS)  # (1 - b^s)
        self.size = np.concatenate([[0.0], rates / one])
        self.shrunk = np.concatenate([[0.0], np.cumsum(np.log1p(-self._decay * rates))])
        self.root = np.concatenate([[1.0], np.sqrt(two)])


class LazyTable:
    """One embedding's weights and moments, each row as of the step in ``state["step"]``.

    ``rate`` gives the learning rate of a step, counted from 0. From here on the embedding has
    sparse gradients, and brings rows up to date before it reads them, until :meth:`release`.
    """

    def __init__(self, table: nn.Embedding, rate: Callable[[int], float], decay: float) -> None:
        self._table, self.weight, self._decay = table, table.weight, decay
        self._rate = rate
        self._history = History(rate, decay)
        self.done = 0  # steps taken
        self.state: dict[str, Tensor] = {
            "exp_avg": torch.zeros_like(self.weight),
            "exp_avg_sq": torch.zeros_like(self.weight),
            "step": torch.zeros(len(self.weight), dtype=torch.int64, device=self.weight.device),
            "done": torch.tensor(0.0),
        }
        table.sparse = True
        self._hook = table.register_forward_pre_hook(self._before)

    def release(self) -> None:
        """Bring all rows up to date and make the embedding a plain one again."""
        self.catch_up()
        self._table.sparse = False
        self._hook.remove()

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` was once."""
        self.state, self.done = state, int(state["done"])

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Return the rows (n,) that have a gradient and a copy of their weights that holds it."""
        gradient = self.weight.grad
        if gradient is None:
            return None
        self.weight.grad = None
        # A dense gradient: the weights have another use, such as an output layer's.
        sparse = gradient.coalesce() if gradient.is_sparse else gradient.to_sparse(1)
        rows = sparse.indices()[0]
        self.catch_up(rows)
        leaf = self.weight.detach()[rows]
        leaf.grad = sparse.values()
        return rows, leaf

    @torch.no_grad()
    def step(self, rows: Tensor, leaf: Tensor) -> None:
        """Take AdamW's next step on what :meth:`take` returned."""
        gradient = leaf.grad
        assert gradient is not None
        now, (one, two) = self.done + 1, BETAS
        rate = self._rate(self.done)
        mean = self.state["exp_avg"][rows].lerp_(gradient, 1.0 - one)
        square = self.state["exp_avg_sq"][rows].mul_(two)
        square.addcmul_(gradient, gradient, value=1.0 - two)
        below = (square.sqrt() / math.sqrt(1.0 - two**now)).add_(EPS)
        leaf.mul_(1.0 - rate * self._decay).addcdiv_(mean, below, value=-rate / (1.0 - one**now))
        self._put(rows, leaf, mean, square, now)
        self.done = now
        self.state["done"].fill_(now)

    def _before(self, _module: nn.Module, args: Any) -> None:
        self.catch_up(torch.unique(args[0]))

    @torch.no_grad()
    def catch_up(self, rows: Tensor | None = None) -> None:
        """Bring ``rows`` (n,), each there once, or all rows to the step that was taken last."""
        steps = self.state["step"]
        rows = torch.arange(len(steps), device=steps.device) if rows is None else rows
        rows = rows[steps[rows] < self.done]
        for part in rows[steps[rows].argsort(stable=True)].split(ROWS):  # type: ignore[no-untyped-call]
            self._catch_up(part)

    def _catch_up(self, rows: Tensor) -> None:
        """Let ``rows``, the longest behind first, take their missed steps."""
        last: Steps = self.state["step"][rows].cpu().numpy()
        self._history.reach(self.done)
        shrunk = self._history.shrunk
        decay = self._column(np.exp(shrunk[self.done] - shrunk[last]))
        weight = self.weight.detach()[rows]
        mean, square = self.state["exp_avg"][rows], self.state["exp_avg_sq"][rows]
        fresh = int((last == 0).sum())  # rows that never had a gradient: they only decay
        if fresh < len(last):
            weight[fresh:] -= mean[fresh:] * self._missed(last[fresh:], square[fresh:])
        gap = (self.done - last).astype(np.float64)
        mean *= self._column(BETAS[0] ** gap)
        square *= self._column(BETAS[1] ** gap)
        self._put(rows, weight * decay, mean, square, self.done)

    def _missed(self, last: Steps, square: Tensor) -> Tensor:
        """Return (n, d): what the missed steps take of the weights, as a multiple of the momentum.

        It counts in weights as they were at ``last`` (n,), before the decay since then.
        """
        known = self._history
        longest = min(self.done - int(last[0]), MISSED)
        root = square.sqrt()
        total = torch.zeros_like(root)
        begin = 1
        while begin <= longest:
            n = int(np.searchsorted(last, self.done - begin, side="right"))
            width = min(max(1, BLOCK // (n * root.shape[1])), longest - begin + 1)
            after = np.arange(begin, begin + width)
            wanted = last[:n, None] + after  # (n, width)
            steps = np.minimum(wanted, self.done)
            share = known.size[steps] * BETAS[0] ** after
            share *= np.exp(known.shrunk[last[:n, None]] - known.shrunk[steps])
            share *= wanted <= self.done
            scale = BETAS[1] ** (after / 2) / known.root[steps]
            below = root[:n, None, :] * self._like(scale)[:, :, None]  # (n, width, d)
            parts = below.add_(EPS).reciprocal_()
            total[:n] += torch.bmm(self._like(share)[:, None, :], parts).squeeze(1)
            begin += width
        return total

    def _put(self, rows: Tensor, weight: Tensor, mean: Tensor, square: Tensor, step: int) -> None:
        self.weight.detach().index_copy_(0, rows, weight)
        self.state["exp_avg"].index_copy_(0, rows, mean)
        self.state["exp_avg_sq"].index_copy_(0, rows, square)
        self.state["step"][rows] = step

    def _like(self, values: Floats) -> Tensor:
        return torch.from_numpy(values).to(self.weight)

    def _column(self, values: Floats) -> Tensor:
        return self._like(values)[:, None]
