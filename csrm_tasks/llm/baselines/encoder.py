"""Baseline of paper 1, table 2: a supervised encoder classifier (XLM-RoBERTa there).

Any Hugging Face encoder reads query and product in one sequence; the mean over real tokens feeds
three logits; everything is fine-tuned on the same train pairs that the LLM sees. The best weights
on dev count. The head starts at random on states that are alike in most of what they hold, and
learns at a rate of its own: at an encoder's it has not left the majority class when all is over.
Small on purpose: a baseline is run by hand, once in a while, and not resumed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer

from csrm_tasks.base_models import pretrained
from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.prompt.batching import BatchStream, Epoch, Indices, by_length
from csrm_tasks.llm.prompt.prompts import ProductFields, QueryFields
from csrm_tasks.sections import Rates
from csrm_tasks.training.encoders import load_encoder, longest
from csrm_tasks.training.optimizer import EncoderOptimizer
from csrm_tasks.training.precision import choose_device
from csrm_tasks.training.schedule import Schedule

log = logging.getLogger("csrm")

Floats = npt.NDArray[np.float32]
TOKENS = 8192  # of one scoring batch, padding included
EVALUATIONS = 5  # on dev, evenly over the training
HEAD_LR = 1e-3  # peak rate of the head, where the encoder's is lower; chosen on dev


@dataclass(frozen=True)
class EncoderRecipe:
    """How the encoder is fine-tuned; AdamW, linear warm-up over a tenth, linear decay to zero."""

    encoder: str  # folder or Hugging Face name
    steps: int
    batch: int
    lr: float
    max_length: int
    seed: int


@dataclass(frozen=True)
class JudgedTexts:
    """Aligned pairs as texts, with their grades (N,)."""

    queries: Sequence[QueryFields]
    products: Sequence[ProductFields]
    grades: npt.NDArray[np.int64]

    def texts(self) -> tuple[list[str], list[str]]:
        """Return query and product (title, brand, category) of every pair."""
        products = [" ".join(filter(None, (p.title, p.brand, p.category))) for p in self.products]
        return [q.query for q in self.queries], products


class EncoderClassifier(nn.Module):
    """Encoder, mean over real tokens, three logits."""

    def __init__(self, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.encoder = load_encoder("encoder", recipe.encoder)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(**pretrained(recipe.encoder))
        except (OSError, ValueError) as e:
            reason = str(e).strip().split("\n")[0]
            raise ConfigError(f"encoder {recipe.encoder!r} has no tokenizer: {reason}") from e
        torch.manual_seed(recipe.seed)
        self.head = nn.Linear(self.encoder.config.hidden_size, 3)
        reads = min(longest(self.encoder.config), int(self.tokenizer.model_max_length))
        if reads < recipe.max_length:
            log.info("encoder %s reads %d tokens, not %d", recipe.encoder, reads, recipe.max_length)
        self.max_length = min(reads, recipe.max_length)
        self.to(choose_device())

    def tokenize(self, pairs: JudgedTexts) -> list[list[int]]:
        """Return token ids; where the tokenizer has no separator of its own, a line break is it.

        Of a pair longer than the window the longer text is cut, down to the other one, then both.
        """
        queries, products = pairs.texts()
        if self.tokenizer.sep_token is None:
            queries = [f"{q}\n" for q in queries]
        ids: list[list[int]] = self.tokenizer(
            queries, products, truncation="longest_first", max_length=self.max_length,
            return_token_type_ids=False,
        )["input_ids"]  # fmt: skip
        return ids

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, 3) of padded ``ids`` (B, T)."""
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        real = mask[..., None].to(states.dtype)
        mean = (states * real).sum(dim=1) / real.sum(dim=1)
        logits: Tensor = self.head(mean)
        return logits

    def batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Pad ``rows`` on the right; returns ids and mask (B, T)."""
        device = self.head.weight.device
        lengths = torch.tensor([len(r) for r in rows], device=device)
        padding = self.tokenizer.pad_token_id or 0
        width = int(lengths.max())
        ids = [[*r, *[padding] * (width - len(r))] for r in rows]
        mask = torch.arange(width, device=device) < lengths[:, None]
        return torch.tensor(ids, device=device), mask.long()


class _Rows:
    """Epochs over tokenised pairs, for length-bucketed batches (A11)."""

    def __init__(self, tokens: Sequence[Sequence[int]], seed: int) -> None:
        self._lengths = np.asarray([len(t) for t in tokens], np.int64)
        self._seed = seed

    def start_epoch(self, epoch: int) -> Epoch:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
        return Epoch(order, self._lengths[order], np.zeros(len(order), np.int8))


def train_encoder(
    recipe: EncoderRecipe, train: JudgedTexts, dev: JudgedTexts
) -> tuple[EncoderClassifier, float]:
    """Return the classifier with its best weights on dev, and its dev micro-F1."""
    model = EncoderClassifier(recipe)
    tokens, labels = model.tokenize(train), torch.from_numpy(train.grades)
    stream = BatchStream(_Rows(tokens, recipe.seed), recipe.batch, recipe.seed)
    schedule = Schedule(recipe.lr, recipe.steps, warmup=max(1, recipe.steps // 10))
    optimizer = EncoderOptimizer(model, schedule, Rates(head=max(1.0, HEAD_LR / recipe.lr)))
    every = max(1, -(-recipe.steps // EVALUATIONS))
    best, kept = -1.0, model.state_dict()
    for step in range(recipe.steps):
        model.train()
        epoch, at = next(stream)
        chosen: Indices = epoch.order[at]
        ids, mask = model.batch([tokens[i] for i in chosen])
        target = labels[torch.from_numpy(chosen)].to(ids.device)
        loss = functional.cross_entropy(model(ids, mask), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.update(step)
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            right = float((predict_encoder(model, dev).argmax(axis=1) == dev.grades).mean())
            log.info("encoder step %d/%d: dev micro-F1 %.4f", step + 1, recipe.steps, right)
            if right > best:
                best = right
                optimizer.catch_up()
                kept = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer.finish()
    model.load_state_dict(kept)
    return model, best


def predict_encoder(model: EncoderClassifier, pairs: JudgedTexts) -> Floats:
    """Return probabilities (N, 3), dropout off."""
    model.eval()
    tokens = model.tokenize(pairs)
    probabilities = np.empty((len(tokens), 3), np.float32)
    lengths = np.asarray([len(t) for t in tokens], np.int64)
    with torch.inference_mode():
        for at in by_length(lengths, TOKENS):
            ids, mask = model.batch([tokens[i] for i in at])
            probabilities[at] = model(ids, mask).softmax(-1).cpu().numpy()
    return probabilities
