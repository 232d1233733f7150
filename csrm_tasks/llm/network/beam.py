"""Beam search over next tokens: what a causal LM would write, best first.

At every step each prompt's best ``2 · beams`` continuations are looked at: those that end are
finished, the best ``beams`` of the others go on. A text's score is the mean log-probability of its
tokens with the stop token, so that short texts have no advantage by being short. A prompt is done
when no beam that goes on could still beat its worst finished text, and its rows leave the batch.

Keys and values of what was written so far are kept in the model's own cache, so a step costs one
token per beam. Prompts of a batch are of one length: nothing is padded, and nothing is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.prompt.encoding import Ids


@dataclass(frozen=True)
class Hypothesis:
    """One text that a search has finished."""

    tokens: tuple[int, ...]  # without the stop token
    score: float  # mean log-probability of a token, the stop token among them


class NextTokens(Protocol):
    """What says how probable each next token is."""

    def first(self) -> Tensor:
        """Return log-probabilities (B, V) of the first token behind each prompt."""
        ...

    def after(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Return log-probabilities (R, V) behind what ``rows`` (R,) of the last answer stood for,
        each longer by one of ``tokens`` (R,).
        """
        ...


Beam = tuple[tuple[int, ...], float]  # tokens so far and the sum of their log-probabilities


def beam_search(model: NextTokens, *, beams: int, most: int, stop: int) -> list[list[Hypothesis]]:
    """Return at most ``beams`` finished texts of each prompt, best first; maybe none.

    ``most``: tokens of a text, its stop token among them. What has not ended by then is no text.
    """
    probable = model.first()
    live: list[list[Beam]] = [[((), 0.0)] for _ in probable]
    finished: list[list[Hypothesis]] = [[] for _ in probable]
    for length in range(1, most + 1):
        # The best of all are among the best of each row: only these leave the device.
        best = probable.topk(min(2 * beams, probable.shape[1]))
        values, tokens = best.values.cpu().double(), best.indices.cpu()  # (R, at most 2 · beams)
        rows, start = [], 0
        for at, own in enumerate(live):
            here = slice(start, start + len(own))
            ended, grown = _continued(own, values[here], tokens[here], beams, stop)
            texts = [Hypothesis(text, total / length) for text, total in ended]
            finished[at] = sorted([*finished[at], *texts], key=lambda h: -h.score)[:beams]
            if length == most or _done(finished[at], [b for b, _ in grown], beams, most):
                grown = []
            live[at] = [beam for beam, _ in grown]
            rows += [start + parent for _, parent in grown]
            start += len(own)
        if not rows:
            break
        last = [text[-1] for own in live for text, _ in own]
        probable = model.after(torch.tensor(rows), torch.tensor(last))
    return finished


def _continued(
    own: list[Beam], values: Tensor, tokens: Tensor, beams: int, stop: int
) -> tuple[list[Beam], list[tuple[Beam, int]]]:
    """Return the beams that end here, and the best that go on, each with its parent's place."""
    if not own:
        return [], []
    sums = torch.tensor([total for _, total in own], dtype=torch.float64)
    totals = (values + sums[:, None]).flatten()
    best = totals.topk(min(2 * beams, len(totals)))
    ended: list[Beam] = []
    grown: list[tuple[Beam, int]] = []
    for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        parent, token = place // values.shape[1], int(tokens.flatten()[place])
        if total == -torch.inf:
            break
        if token == stop:
            ended.append((own[parent][0], total))
        elif len(grown) < beams:
            grown.append((((*own[parent][0], token), total), parent))
    return ended, grown


def _done(finished: list[Hypothesis], grown: list[Beam], beams: int, most: int) -> bool:
    """Whether no beam that goes on can get among the finished: a sum of logs only ever falls."""
    possible = max((total / most for _, total in grown), default=-torch.inf)
    return len(finished) == beams and finished[-1].score >= possible


class CachedNextTokens:
    """A causal LM's next tokens, with its cache of keys and values."""

    def __init__(self, model: Model, prompts: Sequence[Ids]) -> None:
        """``prompts`` are of one length."""
        self._causal, self._device = model.causal, model.device
        self._prompts = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(model.device)
        self._cache: Any = None

    def first(self) -> Tensor:
        """Return (B, V) behind the prompts."""
        return self._run(self._prompts)

    def after(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Return (R, V) one token later; a row may go on several times, or not at all."""
        self._cache.reorder_cache(rows.to(self._device))
        return self._run(tokens.to(self._device)[:, None])

    def _run(self, ids: Tensor) -> Tensor:
        out = self._causal.base_model(input_ids=ids, past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        logits = self._causal.get_output_embeddings()(out.last_hidden_state[:, -1])
        return torch.log_softmax(logits.float(), -1)


def written(
    model: Model, prompts: Sequence[Ids], *, beams: int, most: int, stop: int
) -> list[list[Hypothesis]]:
    """Do :func:`beam_search` behind ``prompts`` of one length, dropout off."""
    training = model.causal.training
    model.causal.eval()
    try:
        with torch.inference_mode():
            return beam_search(CachedNextTokens(model, prompts), beams=beams, most=most, stop=stop)
    finally:
        model.causal.train(training)
