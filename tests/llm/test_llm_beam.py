"""Beam search against enumeration and against an obvious search without a cache."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from csrm_tasks.llm.network.beam import CachedNextTokens, Hypothesis, beam_search, written
from csrm_tasks.llm.network.head import run_trunk
from csrm_tasks.llm.network.model import Model, load_base
from tests.llm_fixtures import make_base

STOP = 0
Text = tuple[int, ...]


class Tabulated:
    """Next tokens from a table drawn by a seed: any context has its own distribution."""

    def __init__(self, seeds: list[int], vocabulary: int) -> None:
        self._seeds, self._vocabulary = seeds, vocabulary
        self._rows: list[tuple[int, Text]] = [(s, ()) for s in seeds]

    def log_probabilities(self, seed: int, text: Text) -> Tensor:
        rng = np.random.default_rng([seed, *text])
        drawn = torch.tensor(rng.normal(0.0, 1.5, self._vocabulary), dtype=torch.float32)
        return torch.log_softmax(drawn, -1)

    def first(self) -> Tensor:
        return torch.stack([self.log_probabilities(*row) for row in self._rows])

    def after(self, rows: Tensor, tokens: Tensor) -> Tensor:
        pairs = zip(rows.tolist(), tokens.tolist(), strict=True)
        self._rows = [(self._rows[r][0], (*self._rows[r][1], t)) for r, t in pairs]
        return self.first()


def score(model: Tabulated, seed: int, text: Text) -> float:
    whole = (*text, STOP)
    logs = [float(model.log_probabilities(seed, whole[:i])[t]) for i, t in enumerate(whole)]
    return math.fsum(logs) / len(whole)


def enumerated(model: Tabulated, seed: int, vocabulary: int, most: int) -> list[Hypothesis]:
    """Every text that ends within ``most`` tokens, best first."""
    letters = [t for t in range(vocabulary) if t != STOP]
    texts = (t for n in range(most) for t in itertools.product(letters, repeat=n))
    return sorted((Hypothesis(t, score(model, seed, t)) for t in texts), key=lambda h: -h.score)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=3), st.integers(2, 4),
       st.integers(1, 4))  # fmt: skip
def test_beams_that_are_wide_enough_find_what_enumeration_finds(
    seeds: list[int], vocabulary: int, most: int
) -> None:
    model = Tabulated(seeds, vocabulary)
    wide = vocabulary**most
    found = beam_search(model, beams=wide, most=most, stop=STOP)
    for seed, own in zip(seeds, found, strict=True):
        every = enumerated(model, seed, vocabulary, most)
        assert [h.tokens for h in own] == [h.tokens for h in every]
        assert [h.score for h in own] == pytest.approx([h.score for h in every], abs=1e-5)


def slow(model: Tabulated, seed: int, vocabulary: int, beams: int, most: int) -> list[Hypothesis]:
    """The same rule for one prompt, in plain lists, that never stops early."""
    live: list[Text] = [()]
    ended: list[Hypothesis] = []
    for _ in range(most):
        grown = [(*text, token) for text in live for token in range(vocabulary)]

        def total(text: Text) -> float:
            return math.fsum(
                float(model.log_probabilities(seed, text[:i])[t]) for i, t in enumerate(text)
            )

        best = sorted(grown, key=lambda t: -total(t))[: 2 * beams]
        ended += [Hypothesis(t[:-1], total(t) / len(t)) for t in best if t[-1] == STOP]
        live = [t for t in best if t[-1] != STOP][:beams]
    return sorted(ended, key=lambda h: -h.score)[:beams]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=3), st.integers(3, 6),
       st.integers(1, 3), st.integers(1, 5))  # fmt: skip
def test_narrow_beams_do_as_the_obvious_search_and_prompts_do_not_touch(
    seeds: list[int], vocabulary: int, beams: int, most: int
) -> None:
    model = Tabulated(seeds, vocabulary)
    found = beam_search(model, beams=beams, most=most, stop=STOP)
    for seed, own in zip(seeds, found, strict=True):
        expected = slow(model, seed, vocabulary, beams, most)
        assert [h.tokens for h in own] == [h.tokens for h in expected]
        assert [h.score for h in own] == pytest.approx([h.score for h in expected], abs=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_base(str(make_base(tmp_path_factory.mktemp("base"))))


def test_the_cache_changes_no_text_and_no_probability(model: Model) -> None:
    """Every score is that of the whole text run at once without a cache; alone as in a batch."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, len(model.tokenizer), 7).astype(np.int32) for _ in range(3)]
    with torch.inference_mode():
        stop = int(CachedNextTokens(model, prompts).first().mean(0).argmax())  # so that texts end
    together = written(model, prompts, beams=64, most=4, stop=stop)
    assert all(together) and max(len(h.tokens) for own in together for h in own) > 1
    for prompt, own in zip(prompts, together, strict=True):
        alone = written(model, [prompt], beams=64, most=4, stop=stop)[0]
        assert [h.tokens for h in own[:8]] == [h.tokens for h in alone[:8]]
        for h in own[:8]:
            whole = torch.tensor([[*prompt.tolist(), *h.tokens, stop]])
            with torch.inference_mode():
                hidden = run_trunk(model.causal, whole)
                logs = torch.log_softmax(model.causal.get_output_embeddings()(hidden)[0], -1)
            start = len(prompt)
            each = [float(logs[i - 1, whole[0, i]]) for i in range(start, whole.shape[1])]
            assert h.score == pytest.approx(sum(each) / len(each), abs=1e-4)


def test_a_model_keeps_its_mode(model: Model, tmp_path: Path) -> None:
    model.causal.train()
    written(model, [np.asarray([5, 6], np.int32)], beams=1, most=2, stop=2)
    assert model.causal.training
    model.causal.eval()
