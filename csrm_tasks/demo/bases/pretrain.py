"""Pre-train the base LLM until it reads well enough in every language, then cool down.

Each step answers the questions of one batch of pages (label rows only, A2); every fourth step also
predicts listings token by token. The rate is constant until held-out listings are read nearly well
enough, and then falls to zero; a model that is still below the bar goes on at the full rate. So the
quality decides when training ends.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from csrm_tasks.demo.bases.lessons import Lesson, Row, lessons, listing_row, page_row
from csrm_tasks.demo.bases.questions import READING, QuestionSource, uniforms
from csrm_tasks.demo.bases.text import Library
from csrm_tasks.errors import CsrmError
from csrm_tasks.llm.network.head import label_logits, run_trunk
from csrm_tasks.llm.prompt.batching import pad
from csrm_tasks.llm.prompt.encoding import PromptEncoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

log = logging.getLogger("csrm")

BAR = 0.85  # held-out questions answered rightly, per language
READY = 0.80  # at which the rate begins to fall; falling brings about ten points
LEARNING_RATE, WARM_UP = 1.5e-3, 30
BATCH_TOKENS, BATCH_ROWS = 2200, 16
LISTINGS_EVERY, LISTINGS, LISTINGS_WEIGHT = 4, 20, 0.3
JUDGE_EVERY, JUDGED = 250, 300  # steps; questions of each kind and language
COOL_DOWN, MOST_STEPS = 1500, 12_000
RECENT = 20  # batches over which a lesson must be known
MAX_TOKENS = 512
CPU = torch.device("cpu")


class Pretraining:
    """One pre-training run of ``causal`` on ``libraries``."""

    def __init__(
        self,
        causal: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        libraries: Sequence[Library],
        seed: int,
    ) -> None:
        self.causal, self.libraries = causal, libraries
        self.encoder = PromptEncoder(tokenizer, MAX_TOKENS)
        self.answer_ids = answer_ids(tokenizer)
        self.lessons = deque(lessons(libraries, seed))
        self.optimizer = torch.optim.AdamW(
            causal.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
        )
        self._uniforms = uniforms(seed + 1)
        self._batches = self._draw()

    def run(self, held_out: Sequence[Library]) -> dict[str, float]:
        """Train; return the accuracy per language.

        Raises :class:`CsrmError` where the bar is not passed in :data:`MOST_STEPS`.
        """
        step = 0
        while step < MOST_STEPS:
            step += 1
            self.step(step, min(1.0, step / WARM_UP))
            if len(self.lessons) > 1 or step % JUDGE_EVERY or not self._above(held_out, READY):
                continue
            for left in range(COOL_DOWN, 0, -1):
                step += 1
                self.step(step, left / COOL_DOWN)
            if self._above(held_out, BAR):
                return reading_accuracy(self.causal, self.encoder, held_out, JUDGED)
        raise CsrmError(f"base LLM below its bar of {BAR} after {step} steps; try another --seed")

    def step(self, number: int, share: float) -> None:
        """Make one step at ``share`` of the full rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * share
        self.causal.train()
        logits, wanted = answer_logits(self.causal, next(self._batches), self.answer_ids)
        loss = functional.cross_entropy(logits, wanted)
        if len(self.lessons) <= 2 and number % LISTINGS_EVERY == 0:
            loss = loss + LISTINGS_WEIGHT * self._listings_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.causal.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._right.append(float((logits.argmax(-1) == wanted).float().mean()))

    def _draw(self) -> Iterator[list[Row]]:
        """Yield batches of the present lesson; drop it when it is known."""
        while True:
            lesson = self.lessons[0]
            log.info("base LLM: lesson %r", lesson.name)
            self._right: deque[float] = deque(maxlen=RECENT)
            while len(self.lessons) == 1 or not self._known(lesson):
                yield from self._shuffled(lesson)
            self.lessons.popleft()

    def _known(self, lesson: Lesson) -> bool:
        return len(self._right) == RECENT and float(np.mean(self._right)) >= lesson.learnt

    def _shuffled(self, lesson: Lesson) -> list[list[Row]]:
        """Draw rows and put those of like length together."""
        rows = sorted(
            (page_row(self.encoder, lesson.page()) for _ in range(BATCH_ROWS * 16)),
            key=lambda row: len(row.ids),
        )
        batches: list[list[Row]] = [[]]
        for row in rows:
            if len(batches[-1]) * len(row.ids) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(row)
        return sorted(batches, key=lambda _: next(self._uniforms))

    def _listings_loss(self) -> Tensor:
        """Return the cross-entropy of every token of some listings."""
        u = self._uniforms
        chosen = [self.libraries[int(next(u) * len(self.libraries))] for _ in range(LISTINGS)]
        ids, lengths = pad([listing_row(self.encoder, lib, next(u)) for lib in chosen], CPU)
        hidden = run_trunk(self.causal, ids)[:, :-1]  # (B, T-1, H)
        real = torch.arange(1, ids.shape[1])[None] < lengths[:, None]
        return functional.cross_entropy(self.causal.lm_head(hidden[real]), ids[:, 1:][real])

    def _above(self, held_out: Sequence[Library], least: float) -> bool:
        found = reading_accuracy(self.causal, self.encoder, held_out, JUDGED)
        log.info("base LLM: reading %s", found)
        return min(found.values()) >= least


def answer_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return the sorted ids of all answers, (A,)."""
    tokens = [token for space in READING for token in space.tokens]
    return torch.tensor(sorted({int(i) for i in tokenizer.convert_tokens_to_ids(tokens)}))


def answer_logits(
    causal: LlamaForCausalLM, rows: Sequence[Row], answers: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits (N, A) at the N slots of ``rows`` and the answers' positions (N,)."""
    ids, _ = pad([row.ids for row in rows], CPU)
    hidden = run_trunk(causal, ids)  # (B, T, H)
    at = torch.from_numpy(np.concatenate([row.slots for row in rows]))
    of = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row.slots) for row in rows]))
    given = torch.from_numpy(np.concatenate([row.answers for row in rows]))
    logits = label_logits(causal, hidden[of, at], answers)
    return logits, torch.searchsorted(answers, given)


@torch.inference_mode()
def reading_accuracy(
    causal: LlamaForCausalLM, encoder: PromptEncoder, libraries: Sequence[Library], questions: int
) -> dict[str, float]:
    """Return the share of right answers per language, over single listings of every kind."""
    causal.eval()
    answers = answer_ids(encoder.tokenizer)
    found: dict[str, float] = {}
    for library in libraries:
        reader = QuestionSource(library, seed=0)
        pages = [reader.page(space, 1) for space in READING for _ in range(questions)]
        rows = sorted((page_row(encoder, page) for page in pages), key=lambda row: len(row.ids))
        right = 0
        for start in range(0, len(rows), 100):
            logits, wanted = answer_logits(causal, rows[start : start + 100], answers)
            right += int((logits.argmax(-1) == wanted).sum())
        found[library.lang] = round(right / len(rows), 4)
    return found
