"""Scoring with a shared query prefix against one prompt at a time (A12)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csrm_tasks.llm.network.model import Model, load_base
from csrm_tasks.llm.prompt.batching import by_length
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import CVR, RELEVANCE, LabelSpace, ProductFields, QueryFields
from csrm_tasks.llm.scoring.predict import predict
from csrm_tasks.llm.scoring.predict import rows as cut_rows
from tests.llm_fixtures import WORDS, make_base


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_base(str(make_base(tmp_path_factory.mktemp("base"))))


def make_pairs(queries: int, products: int) -> tuple[list[QueryFields], list[ProductFields]]:
    """Queries and products of many lengths, in an order that mixes them."""
    rng = np.random.default_rng(0)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))

    asked = [QueryFields(f"{i} {words(3)}", "", (words(4),) * (i % 3)) for i in range(queries)]
    pairs = [(q, ProductFields(words(9), "", words(3))) for q in asked for _ in range(products)]
    rng.shuffle(pairs)
    return [q for q, _ in pairs], [p for _, p in pairs]


def one_by_one(
    model: Model, encoder: PromptEncoder, space: LabelSpace,
    queries: list[QueryFields], products: list[ProductFields],
) -> np.ndarray:  # fmt: skip
    """Every prompt alone, whole vocabulary, no cache."""
    rows = []
    for q, p in zip(queries, products, strict=True):
        ids = torch.from_numpy(encoder.prompt(space, q, p)).long()[None]
        with torch.no_grad():
            logits = model.causal(input_ids=ids).logits[0, -1, model.labels[space.name]]
        rows.append(logits.softmax(-1).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("space", [RELEVANCE, CVR])
@pytest.mark.parametrize(("queries", "products"), [(9, 7), (40, 1), (1, 3)])
@pytest.mark.parametrize("max_length", [200, 40])
def test_scores_are_those_of_one_prompt_at_a_time(
    model: Model, space: LabelSpace, queries: int, products: int, max_length: int
) -> None:
    pairs = make_pairs(queries, products)
    encoder = PromptEncoder(model.tokenizer, max_length)
    found = predict(model, encoder, space, *pairs)
    assert (encoder.truncated > 0) == (max_length == 40)
    assert np.abs(found - one_by_one(model, encoder, space, *pairs)).max() <= 1e-5


def test_a_prefix_is_run_once_per_query(model: Model) -> None:
    tokens = []
    hook = model.causal.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    pairs = make_pairs(6, 20)
    encoder = PromptEncoder(model.tokenizer, 200)
    predict(model, encoder, RELEVANCE, *pairs)
    hook.remove()
    parts = [encoder.parts(RELEVANCE, q, p) for q, p in zip(*pairs, strict=True)]
    prefixes = {p.tobytes(): len(p) for p, _ in parts}
    again = len(tokens) * max(prefixes.values())  # at the start of a row
    assert sum(tokens) <= sum(prefixes.values()) + sum(len(t) for _, t in parts) + again
    assert sum(tokens) < 0.75 * sum(len(p) + len(t) for p, t in parts)


def test_rows_hold_every_prompt_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(0, 9, n, np.int32) for n in rng.integers(1, 60, 30)]
    parts = [(prefixes[i], np.ones(n, np.int32)) for i, n in
             zip(rng.integers(0, 30, 500), rng.integers(1, 90, 500), strict=True)]  # fmt: skip
    found = list(cut_rows(parts, 256))
    assert sorted(np.concatenate(found)) == list(range(500))
    used = [sum({parts[i][0].tobytes(): len(parts[i][0]) for i in row}.values())
            + sum(len(parts[i][1]) for i in row) for row in found]  # fmt: skip
    assert max(used) <= 256
    assert np.mean(used) > 0.75 * 256
    assert [len(r) for r in cut_rows([(np.ones(3, np.int32), np.ones(400, np.int32))], 256)] == [1]


def test_scoring_leaves_training_mode_as_it_was_and_draws_nothing(model: Model) -> None:
    encoder = PromptEncoder(model.tokenizer, 200)
    model.causal.train()
    state = torch.get_rng_state()
    predict(model, encoder, RELEVANCE, *make_pairs(2, 2))
    assert model.causal.training
    assert torch.equal(torch.get_rng_state(), state)
    model.causal.eval()


def test_a_row_that_fails_leaves_training_mode_as_it_was(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("csrm_tasks.llm.scoring.predict.run_packed", fail)
    model.causal.train()
    with pytest.raises(MemoryError):
        predict(model, PromptEncoder(model.tokenizer, 200), RELEVANCE, *make_pairs(2, 2))
    assert model.causal.training
    model.causal.eval()


def test_nothing_to_score_gives_no_rows(model: Model) -> None:
    assert predict(model, PromptEncoder(model.tokenizer, 200), RELEVANCE, [], []).shape == (0, 3)


def test_batches_hold_every_position_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 500)
    batches = list(by_length(lengths, 256))
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 256 for b in batches)
