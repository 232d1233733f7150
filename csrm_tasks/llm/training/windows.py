"""The task of stage 0: next-token loss on short texts, several in one window.

A sample of the loop is a window: whole texts of together at most so many tokens, so that a step
has the same number of tokens whether queries or long titles are drawn, and a pass can be halved.
Texts of a window do not see each other (:mod:`csrm_tasks.llm.network.packed`), and nothing is
padded; the loss is the mean over a window's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.network.next_token import next_token_loss
from csrm_tasks.llm.network.packed import pack, run_every
from csrm_tasks.llm.prompt.batching import Epoch, Indices, by_length
from csrm_tasks.llm.prompt.encoding import Ids
from csrm_tasks.llm.training.tasks import draw_by_kind

NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True)
class Sequences:
    """Token sequences to learn, as aligned columns."""

    ids: Sequence[Ids]
    starts: Indices  # the first token that is to be told, at least 1
    kinds: npt.NDArray[np.str_]
    names: Sequence[str]  # for an error message

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Indices:
        """Tokens of each."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))


@dataclass(frozen=True)
class WindowEpoch(Epoch):
    """An epoch of windows: ``order`` numbers them, ``windows`` holds each one's sequences."""

    windows: Sequence[Indices] = ()


class WindowTask:
    """Next-token loss on sequences, kinds drawn in proportion to n^0.5 (as A7)."""

    def __init__(
        self, name: str, model: Model, sequences: Sequences, window: int, seed: int
    ) -> None:
        """``window``: tokens of a window at most, and no sequence is longer."""
        self.name = name
        self._model, self._sequences, self._seed = model, sequences, seed
        self._window, self._lengths = window, sequences.lengths

    def start_epoch(self, epoch: int) -> WindowEpoch:
        """Draw as many sequences as there are, and cut them into windows in that order."""
        order = draw_by_kind(self._sequences.kinds, np.random.default_rng([self._seed, epoch]))
        windows = fill(order, self._lengths, self._window)
        n = len(windows)
        lengths = np.asarray([self._lengths[w].sum() for w in windows], np.int64)
        return WindowEpoch(np.arange(n), lengths, np.zeros(n, np.int8), None, windows)

    def loss(self, epoch: Epoch, at: Indices) -> tuple[Tensor, int]:
        """Return the mean over windows of their mean loss, and how many tokens were run."""
        windows = _windows(epoch, at)
        chosen = np.concatenate(windows)
        told = self._lengths[chosen] - self._sequences.starts[chosen]
        window = np.repeat(np.arange(len(windows)), [len(w) for w in windows])
        in_window = np.bincount(window, told)
        weights = 1.0 / (len(windows) * in_window[window])
        return sequence_loss(self._model, self._sequences, chosen, weights)

    def sample_names(self, epoch: Epoch, at: Indices) -> list[str]:
        """Return the texts."""
        return [self._sequences.names[i] for i in np.concatenate(_windows(epoch, at))]


def _windows(epoch: Epoch, at: Indices) -> list[Indices]:
    assert isinstance(epoch, WindowEpoch)
    return [epoch.windows[i] for i in epoch.order[at]]


def fill(order: Indices, lengths: Indices, window: int) -> list[Indices]:
    """Cut ``order`` into runs of together at most ``window`` tokens, a longer one by itself."""
    cuts, used = [], 0
    for place, length in enumerate(lengths[order].tolist()):
        if used and used + length > window:
            cuts.append(place)
            used = 0
        used += length
    return np.split(order, cuts)


def sequence_loss(
    model: Model, sequences: Sequences, chosen: Indices, weights: npt.NDArray[np.float64]
) -> tuple[Tensor, int]:
    """Return Σ weightᵢ · (the summed loss of sequence ``chosen[i]``), and how many tokens were run.

    ``weights`` is aligned with ``chosen``.
    """
    texts = [sequences.ids[i] for i in chosen]
    packed = pack([(NOTHING, ids) for ids in texts], model.device, every=True)
    lengths, starts = np.asarray([len(t) for t in texts]), sequences.starts[chosen]
    first = np.cumsum(lengths) - lengths  # of each text in the row
    told = [np.arange(f + s, f + n) for f, s, n in zip(first, starts, lengths, strict=True)]
    place = torch.from_numpy(np.concatenate(told)).to(model.device)
    weight = np.repeat(weights, lengths - starts).astype(np.float32)
    hidden = run_every(model.causal, packed).index_select(0, place - 1)
    targets = packed.ids[0].index_select(0, place)
    loss = next_token_loss(model.causal, hidden, targets, torch.from_numpy(weight).to(model.device))
    return loss, packed.ids.shape[1]


def mean_loss(model: Model, sequences: Sequences, tokens: int) -> float:
    """Return the mean loss of a token over all sequences, ``tokens`` at once, dropout off."""
    model.causal.eval()
    lengths = sequences.lengths
    with torch.inference_mode():
        losses = [
            float(sequence_loss(model, sequences, chosen, np.ones(len(chosen)))[0])
            for chosen in by_length(lengths, tokens)
        ]
    return math.fsum(losses) / max(1, int((lengths - sequences.starts).sum()))
