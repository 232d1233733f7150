"""The bi-encoder: pooling against a loop, batching by length, saving and loading."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.retrieval.encoder import BiEncoder
from tests.retrieval_fixtures import products, tiny_encoder

TEXTS = [*products()["title"], "", "커피", "a very long title " * 40]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("base"), products()["title"].to_list())


@pytest.fixture(scope="module")
def model(base: Path) -> BiEncoder:
    return BiEncoder.from_base(str(base), 16, 24, seed=0).eval()


def test_an_embedding_is_the_unit_mean_of_its_tokens(model: BiEncoder) -> None:
    got = model.encode(TEXTS)
    for text, vector in zip(TEXTS, got, strict=True):
        ids = model.tokenizer(text.casefold(), truncation=True, max_length=24)["input_ids"] or [0]
        with torch.no_grad():
            tokens = torch.tensor([ids])
            hidden = model.encoder(tokens, attention_mask=torch.ones_like(tokens))
            mean = torch.stack(list(hidden.last_hidden_state[0])).mean(dim=0)
            expected = model.head.weight @ mean
        if text:
            assert torch.allclose(expected / expected.norm(), torch.from_numpy(vector), atol=1e-5)
    assert np.isfinite(got).all()


def test_batches_by_length_are_full_of_real_tokens(model: BiEncoder) -> None:
    tokenised = model.tokenise(TEXTS)
    batches = list(tokenised.by_length(64))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(TEXTS)))
    padded = sum(len(rows) * int(tokenised.lengths[rows].max()) for rows in batches)
    assert tokenised.lengths.sum() / padded > 0.9
    assert all(len(r) * tokenised.lengths[r].max() <= 64 or len(r) == 1 for r in batches)


def test_a_batch_ends_before_it_is_mostly_padding(model: BiEncoder) -> None:
    words = [" ".join(["커피"] * n) for n in range(1, 12) for _ in range(60)]
    tokenised = model.tokenise(words)
    batches = list(tokenised.by_length(8192))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(words)))
    padded = sum(len(rows) * int(tokenised.lengths[rows].max()) for rows in batches)
    assert tokenised.lengths.sum() / padded >= 0.95  # in one batch it would be half
    assert len(batches) < 12


def test_another_precision_changes_vectors_little(model: BiEncoder) -> None:
    cast = deepcopy(model).for_inference(torch.bfloat16)
    texts = [t for t in TEXTS if t]  # an empty one has no tokens and no direction
    cosine = (cast.encode(texts) * model.encode(texts)).sum(axis=1)
    assert cast.encode(TEXTS).dtype == np.float32
    assert 0.99 < cosine.min() < 1.0


def test_a_batch_is_what_the_tokenizer_pads(model: BiEncoder) -> None:
    tokenised = model.tokenise(TEXTS)
    rows = np.array([3, 0, len(TEXTS) - 1, 3])
    ids, mask = tokenised.batch(rows)
    for i, row in enumerate(rows):
        one = model.tokenizer(TEXTS[row].casefold(), truncation=True, max_length=24)["input_ids"]
        assert ids[i][mask[i].bool()].tolist() == one
        assert mask[i].sum() == len(one)


def test_encoding_does_not_depend_on_neighbours_or_writing(model: BiEncoder) -> None:
    together = model.encode(TEXTS)
    alone = np.concatenate([model.encode([t]) for t in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert (model.encode(["ACME  커피"]) == model.encode(["acme 커피"])).all()


def test_saving_keeps_every_bit_and_the_digest_tells_models_apart(
    model: BiEncoder, base: Path, tmp_path: Path
) -> None:
    digest = model.save(tmp_path / "a")
    again = BiEncoder.load(tmp_path / "a")
    assert (again.encode(TEXTS) == model.encode(TEXTS)).all()
    assert again.save(tmp_path / "b") == digest
    other = BiEncoder.from_base(str(base), 16, 24, seed=1)
    assert other.save(tmp_path / "c") != digest
    assert load_file(tmp_path / "c" / "head.safetensors").keys() == {"weight"}


def test_what_cannot_be_loaded_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"retrieval\.ebr\.encoder"):
        BiEncoder.from_base(str(tmp_path), 16, 24, seed=0)
    with pytest.raises(ArtifactError, match=r"biencoder\.json is missing"):
        BiEncoder.load(tmp_path)


def test_a_length_that_the_encoder_does_not_read_is_refused_at_the_start(base: Path) -> None:
    """80 positions, counted from behind the padding token's id, 1: 78 tokens."""
    full = BiEncoder.from_base(str(base), 16, 78, seed=0).encode(["커피 " * 200])
    assert np.isfinite(full).all()
    with pytest.raises(ConfigError, match=r"ebr\.max_length is 79, but .* reads 78 tokens at once"):
        BiEncoder.from_base(str(base), 16, 79, seed=0)
