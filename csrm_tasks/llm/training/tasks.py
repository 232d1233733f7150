"""The training tasks: label spaces (relevance, CVR) and translation; what one sample costs (A6-A8).

A task draws an epoch from (seed, epoch) alone, turns positions of it into a padded batch, and has
a loss that is averaged within each sample and then across samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csrm_tasks.llm.data import LabelRows, TranslationRows
from csrm_tasks.llm.network.head import (
    corrected_cross_entropy,
    label_logits,
    run_trunk,
    soft_cross_entropy,
    translation_loss,
)
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.network.packed import pack, run_packed
from csrm_tasks.llm.prompt.batching import Epoch, Indices, draw_siblings, mixed, pad
from csrm_tasks.llm.prompt.encoding import Ids, PromptEncoder
from csrm_tasks.llm.prompt.prompts import (
    ProductFields,
    QueryFields,
    translation_segments,
)

DROP_SAME_TITLE = 0.5  # A24: a retrieved title that is the candidate itself gives the game away
DROP_PIVOT = 0.1  # A52: share of the samples whose translations are left out
# Variants of a sample: as it is, without RQA, without itself; and beside each, without translations
WHOLE, NO_TITLES, NO_SAME, NO_PIVOT = 0, 1, 2, 4


class Task(Protocol):
    """A training task of the mixture."""

    name: str

    def start_epoch(self, epoch: int) -> Epoch:
        """Draw one epoch; a function of the task's seed and ``epoch`` alone."""
        ...

    def loss(self, epoch: Epoch, at: Indices) -> tuple[Tensor, int]:
        """Return the batch's loss (a mean over its samples) and how many tokens were run."""
        ...

    def sample_names(self, epoch: Epoch, at: Indices) -> list[str]:
        """Name the samples of a batch, for an error message."""
        ...


class LabelTask:
    """Classification read out by the label-row head (A2, A3)."""

    def __init__(
        self,
        model: Model,
        rows: LabelRows,
        encoder: PromptEncoder,
        *,
        rqa_dropout: float,
        siblings: int,
        seed: int,
        families: Indices | None = None,  # (N,) which samples' queries are one in other languages
    ) -> None:
        self.name = rows.space.name
        self._model, self._rows, self._encoder = model, rows, encoder
        self._rqa_dropout, self._siblings, self._seed = rqa_dropout, siblings, seed
        self._families = families
        encoder.prepare(rows.space, rows.queries, rows.products)
        # Cross-entropy is linear in its target: a weighted target is a weighted loss (A38, A39).
        weights = np.float32(1.0) if rows.weights is None else rows.weights[:, None]
        self._targets = torch.from_numpy(rows.targets * weights).to(model.device)
        self._corrected = None if rows.corrected is None else [
            torch.from_numpy(part * weights).to(model.device)
            for part in (rows.corrected.votes, rows.corrected.rest)
        ]  # fmt: skip
        numbers: dict[QueryFields, int] = {}
        self._pivot = any(x.pivot for texts in (rows.queries, rows.products) for x in texts)
        self._owners = np.asarray([numbers.setdefault(q, len(numbers)) for q in rows.queries])

    def start_epoch(self, epoch: int) -> Epoch:
        """Draw a permutation, and which samples lose retrieved titles this time (A24).

        Samples of one query stand together and lose all titles together, so that they share their
        prefix. A title that is the candidate itself is dropped for that candidate alone. Together
        they lose their translations (A52), too.
        """
        rng = np.random.default_rng([self._seed, epoch])
        order, groups = draw_siblings(self._owners, self._siblings, rng)
        together = groups
        if self._families is not None:
            place, together = mixed(order, groups, self._owners, self._families)
            order, groups = order[place], groups[place]
        n = len(order)
        variants = np.where(rng.random(n) < DROP_SAME_TITLE, NO_SAME, WHOLE).astype(np.int8)
        variants[rng.random(n)[groups] < self._rqa_dropout] = NO_TITLES
        if self._pivot:
            variants[rng.random(n)[groups] < DROP_PIVOT] += NO_PIVOT
        lengths = [
            self._encoder.length(self._rows.space, self._query(i, v), self._product(i, v))
            for i, v in zip(order, variants, strict=True)
        ]
        return Epoch(order, np.asarray(lengths, np.int64), variants, together)

    def _query(self, i: int, variant: int) -> QueryFields:
        query = self._rows.queries[i]
        if variant & NO_PIVOT and query.pivot:
            query = replace(query, pivot="")
        titles = variant & ~NO_PIVOT
        if not query.titles or titles == WHOLE:
            return query
        if titles == NO_TITLES:
            return replace(query, titles=())
        return without_title(query, self._rows.products[i].title)

    def _product(self, i: int, variant: int) -> ProductFields:
        product = self._rows.products[i]
        return replace(product, pivot="") if variant & NO_PIVOT and product.pivot else product

    def loss(self, epoch: Epoch, at: Indices) -> tuple[Tensor, int]:
        """Return the soft-target cross-entropy, corrected (A51) or not, and the tokens run."""
        samples = zip(epoch.order[at], epoch.variants[at], strict=True)
        parts = [
            self._encoder.parts(self._rows.space, self._query(i, v), self._product(i, v))
            for i, v in samples
        ]
        packed = pack(parts, self._model.device)
        hidden = run_packed(self._model.causal, packed)
        logits = label_logits(self._model.causal, hidden, self._model.labels[self.name])
        chosen, tokens = torch.from_numpy(epoch.order[at]), packed.ids.shape[1]
        if self._corrected is not None:
            votes, rest = (part[chosen] for part in self._corrected)
            return corrected_cross_entropy(logits, votes, rest), tokens
        return soft_cross_entropy(logits, self._targets[chosen]), tokens

    def sample_names(self, epoch: Epoch, at: Indices) -> list[str]:
        """Return pair ids."""
        return [self._rows.names[i] for i in epoch.order[at]]


class TranslationTask:
    """Translation with full-vocabulary cross-entropy on target tokens only (A7)."""

    def __init__(
        self,
        model: Model,
        rows: TranslationRows,
        encoder: PromptEncoder,
        seed: int,
        name: str = "mt",
    ) -> None:
        self.name = name
        self._model, self._rows, self._seed = model, rows, seed
        self._groups = np.asarray(rows.groups)
        prompts = translation_prompts(rows, encoder)
        self._starts = np.asarray([len(before) for before, _ in prompts], np.int64)
        self._prompts = [np.concatenate(both) for both in prompts]
        self._lengths = _lengths(self._prompts)

    def start_epoch(self, epoch: int) -> Epoch:
        """Draw as many samples as there are, each kind of a direction by n^0.5 (A7)."""
        rng = np.random.default_rng([self._seed, epoch])
        order = draw_by_kind(self._groups, rng)
        return Epoch(order, self._lengths[order], np.zeros(len(order), np.int8))

    def loss(self, epoch: Epoch, at: Indices) -> tuple[Tensor, int]:
        """Return the translation loss and the number of real tokens."""
        samples = epoch.order[at]
        ids, lengths = pad([self._prompts[i] for i in samples], self._model.device)
        start = torch.from_numpy(self._starts[samples]).to(self._model.device)
        hidden = run_trunk(self._model.causal, ids)
        loss = translation_loss(self._model.causal, hidden, ids, start, lengths)
        return loss, int(epoch.lengths[at].sum())

    def sample_names(self, epoch: Epoch, at: Indices) -> list[str]:
        """Return kind and source text."""
        return [f"{self._rows.kinds[i]} {self._rows.sources[i]!r}" for i in epoch.order[at]]


def without_title(query: QueryFields, title: str) -> QueryFields:
    """Return ``query`` without the retrieved titles that start ``title`` (they may be cut, A24)."""
    candidate = " ".join(title.split())
    kept = tuple(t for t in query.titles if not candidate.startswith(" ".join(t.split())))
    return query if len(kept) == len(query.titles) else replace(query, titles=kept)


def draw_by_kind(kinds: npt.NDArray[np.str_], rng: np.random.Generator) -> Indices:
    """Draw len(kinds) indices, each kind in proportion to the square root of its size (A7).

    A kind is gone through in random order again and again, so no sample comes a third time before
    every sample of its kind came twice.
    """
    groups = [np.flatnonzero(kinds == k) for k in np.unique(kinds)]
    root = np.sqrt([len(g) for g in groups])
    quota = np.round(len(kinds) * root / root.sum()).astype(int)
    drawn = [_cycle(group, max(1, int(n)), rng) for group, n in zip(groups, quota, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def _cycle(group: Indices, n: int, rng: np.random.Generator) -> Indices:
    rounds = -(-n // len(group))
    return np.concatenate([rng.permutation(group) for _ in range(rounds)])[:n]


def _lengths(prompts: Sequence[Ids]) -> Indices:
    return np.fromiter((len(p) for p in prompts), np.int64, len(prompts))


def translation_prompts(rows: TranslationRows, encoder: PromptEncoder) -> list[tuple[Ids, Ids]]:
    """Return prompt and target of every translation; too long a source is cut, and counted."""
    texts = [
        translation_segments(kind, source_locale, target_locale, source)
        for kind, source, source_locale, target_locale in zip(
            rows.kinds, rows.sources, rows.source_locales, rows.target_locales, strict=True
        )
    ]
    encoder.tokenize([*(s for segments in texts for s in segments), *rows.targets])
    prompts = []
    for (head_text, source_text, slot_text), target_text in zip(texts, rows.targets, strict=True):
        head, source, slot = (
            encoder.join([head_text]), encoder.segment(source_text), encoder.segment(slot_text)
        )  # fmt: skip
        target = np.concatenate([encoder.segment(target_text), encoder.stop])
        room = encoder.max_length - len(head) - len(slot)
        encoder.truncated += len(source) + len(target) > room
        target = target[: max(1, room)]
        source = source[: max(0, room - len(target))]
        prompts.append((np.concatenate([head, source, slot]), target))
    return prompts
