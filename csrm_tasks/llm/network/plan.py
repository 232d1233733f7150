"""Which tokens of a packed row look at which: segments, in blocks of about one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csrm_tasks.llm.prompt.encoding import Ids

Indices = npt.NDArray[np.int64]
Seen = npt.NDArray[np.bool_]

ALIKE = 0.75  # the shortest segment of an attention block is at least so long as its longest


@dataclass(frozen=True)
class Block:
    """Segments whose attention is taken together; all indices are places in the row."""

    queries: Tensor  # (n, L)
    keys: Tensor  # (n, P + L), the prefix first
    seen: Tensor | None  # (n, 1, L, P + L), bool; None: plain causal attention, no prefix


@dataclass(frozen=True)
class Plan:
    """How attention of one layer is taken: by blocks, their outputs put back by ``order``."""

    blocks: tuple[Block, ...]
    order: Tensor  # (T,): where each token's output is among those of all blocks


@dataclass(frozen=True)
class Segment:
    """Some neighbouring tokens of the row."""

    tokens: Ids
    start: int  # place of the first token
    prefix: Segment | None  # what it sees besides itself

    @property
    def before(self) -> int:
        """Tokens of the prefix."""
        return 0 if self.prefix is None else len(self.prefix.tokens)


def make_plan(
    segments: Sequence[Segment],
    total: int,
    device: torch.device,
    last: bool,
    window: int | None = None,
) -> Plan:
    """Cut segments into blocks; with ``last`` only the last token of each one asks."""
    blocks, order, done = [], np.full(total, -1, np.int64), 0
    for group in _alike(segments):
        block, asked, real = _block(group, last, window)
        order[asked[real]] = done + np.flatnonzero(real.ravel())
        done += asked.size
        blocks.append(Block(*(None if x is None else torch.from_numpy(x).to(device)
                              for x in block)))  # type: ignore[arg-type]  # fmt: skip
    order[order < 0] = done  # a row of zeros behind them all
    return Plan(tuple(blocks), torch.from_numpy(order).to(device))


def _alike(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Yield segments in groups: all with or all without a prefix, all of about one length."""
    for wanted in (False, True):
        group: list[Segment] = []
        chosen = [s for s in segments if (s.prefix is not None) == wanted]
        for segment in sorted(chosen, key=lambda s: -len(s.tokens)):
            if group and len(segment.tokens) < ALIKE * len(group[0].tokens):
                yield group
                group = []
            group.append(segment)
        if group:
            yield group


def _block(
    group: Sequence[Segment], last: bool, window: int | None
) -> tuple[tuple[Indices, Indices, Seen | None], Indices, Seen]:
    """Return queries, keys and mask of a block, again the queries, and which of these are real."""
    lengths = np.asarray([len(s.tokens) for s in group])[:, None]
    before = np.asarray([s.before for s in group])[:, None]
    starts = np.asarray([s.start for s in group])[:, None]
    own_at, own_real = _places(starts, lengths)
    prefix_starts = np.asarray([s.prefix.start if s.prefix else 0 for s in group])[:, None]
    prefix_at, prefix_real = _places(prefix_starts, before)
    keys = np.hstack([prefix_at, own_at])
    width, prefix = own_at.shape[1], prefix_at.shape[1]
    asked = starts + lengths - 1 if last else own_at
    real = np.ones_like(asked, bool) if last else own_real
    if last:
        seen = np.hstack([prefix_real, own_real])[:, None]  # (n, 1, P + L)
        place = lengths - 1
    else:
        causal = np.broadcast_to(np.tri(width, dtype=bool), (len(group), width, width))
        prefix_seen = np.broadcast_to(prefix_real[:, None], (len(group), width, prefix))
        seen = np.concatenate([prefix_seen, causal], 2)  # (n, L, P + L)
        place = np.arange(width)[None]
    if window is not None:
        key_at = np.hstack([np.tile(np.arange(prefix), (len(group), 1)), before + np.arange(width)])
        seen = seen & (key_at[:, None] > (before + place)[:, :, None] - window)
    plain = not (last or prefix) and (window is None or width <= window)
    return (asked, keys, None if plain else seen[:, None]), asked, real


def _places(starts: Indices, lengths: Indices) -> tuple[Indices, Seen]:
    """Return the places (n, longest) of some segments' tokens, and which of them are real."""
    steps = np.arange(int(lengths.max()))[None]
    real = steps < lengths
    return starts + np.where(real, steps, 0), real
