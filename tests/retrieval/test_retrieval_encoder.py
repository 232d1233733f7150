"""The bi-encoder: pooling against a loop, prefixes, batching by length, saving and loading."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.retrieval.encoder import BiEncoder, Reading
from csrm_tasks.text import normalise
from tests.retrieval_fixtures import products, tiny_encoder

TEXTS = [*products()["title"], "", "커피", "a very long title " * 40]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("base"), products()["title"].to_list())


@pytest.fixture(scope="module")
def model(base: Path) -> BiEncoder:
    return BiEncoder.from_base(str(base), 16, 24, seed=0).eval()


def test_an_embedding_is_the_unit_mean_of_its_tokens(model: BiEncoder) -> None:
    got = model.encode_titles(TEXTS)
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
    tokenised = model.titles(TEXTS)
    batches = list(tokenised.by_length(64))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(TEXTS)))
    padded = sum(len(rows) * int(tokenised.lengths[rows].max()) for rows in batches)
    assert tokenised.lengths.sum() / padded > 0.9
    assert all(len(r) * tokenised.lengths[r].max() <= 64 or len(r) == 1 for r in batches)


def test_a_batch_ends_before_it_is_mostly_padding(model: BiEncoder) -> None:
    words = [" ".join(["커피"] * n) for n in range(1, 12) for _ in range(60)]
    tokenised = model.titles(words)
    batches = list(tokenised.by_length(8192))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(words)))
    padded = sum(len(rows) * int(tokenised.lengths[rows].max()) for rows in batches)
    assert tokenised.lengths.sum() / padded >= 0.95  # in one batch it would be half
    assert len(batches) < 12


def test_another_precision_changes_vectors_little(model: BiEncoder) -> None:
    cast = deepcopy(model).for_inference(torch.bfloat16)
    texts = [t for t in TEXTS if t]  # an empty one has no tokens and no direction
    cosine = (cast.encode_titles(texts) * model.encode_titles(texts)).sum(axis=1)
    assert cast.encode_titles(TEXTS).dtype == np.float32
    assert 0.99 < cosine.min() < 1.0


def test_a_batch_is_what_the_tokenizer_pads(model: BiEncoder) -> None:
    tokenised = model.titles(TEXTS)
    rows = np.array([3, 0, len(TEXTS) - 1, 3])
    ids, mask = tokenised.batch(rows)
    for i, row in enumerate(rows):
        one = model.tokenizer(TEXTS[row].casefold(), truncation=True, max_length=24)["input_ids"]
        assert ids[i][mask[i].bool()].tolist() == one
        assert mask[i].sum() == len(one)


def test_encoding_does_not_depend_on_neighbours_or_writing(model: BiEncoder) -> None:
    together = model.encode_titles(TEXTS)
    alone = np.concatenate([model.encode_titles([t]) for t in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert (model.encode_titles(["ACME  커피"]) == model.encode_titles(["acme 커피"])).all()


def test_saving_keeps_every_bit_and_the_digest_tells_models_apart(
    model: BiEncoder, base: Path, tmp_path: Path
) -> None:
    digest = model.save(tmp_path / "a")
    again = BiEncoder.load(tmp_path / "a")
    assert (again.encode_titles(TEXTS) == model.encode_titles(TEXTS)).all()
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
    full = BiEncoder.from_base(str(base), 16, 78, seed=0).encode_titles(["커피 " * 200])
    assert np.isfinite(full).all()
    with pytest.raises(ConfigError, match=r"ebr\.max_length is 79, but .* reads 78 tokens at once"):
        BiEncoder.from_base(str(base), 16, 79, seed=0)


def by_hand(model: BiEncoder, text: str, prefix: str, limit: int) -> torch.Tensor:
    """Return the unit vector of one text, read after ``prefix``, by transformers alone."""
    ids = model.tokenizer(prefix + normalise(text), truncation=True, max_length=limit)["input_ids"]
    tokens = torch.tensor([ids])
    with torch.no_grad():
        mean = model.encoder(tokens, torch.ones_like(tokens)).last_hidden_state[0].mean(dim=0)
        projected = model.head(mean)
    return projected / projected.norm()


@pytest.mark.parametrize("dim", [16, None])
def test_queries_and_titles_are_read_after_their_prefixes(
    base: Path, tmp_path: Path, dim: int | None
) -> None:
    made = BiEncoder.from_base(str(base), dim, 24, 0, "query: ", "passage: ").eval()
    made.save(tmp_path / "saved")
    kept = BiEncoder.load(tmp_path / "saved")
    texts = [t for t in TEXTS if t and len(t) < 40]
    for model in (made, kept):
        for prefix, found in (
            ("query: ", model.encode_queries(texts)), ("passage: ", model.encode_titles(texts))
        ):  # fmt: skip
            for text, vector in zip(texts, found, strict=True):
                expected = by_hand(model, text, prefix, 64)
                assert torch.allclose(torch.from_numpy(vector), expected, atol=1e-5), text
    assert made.dim == (dim or 32) == made.encode_queries(["커피"]).shape[1]


def test_a_prefix_takes_nothing_of_a_texts_end(base: Path) -> None:
    """A text of just ``max_length`` tokens is whole with a prefix, too; one more is cut."""
    bare = BiEncoder.from_base(str(base), 16, 6, 0)
    told = BiEncoder.from_base(str(base), 16, 6, 0, "query: ")

    def count(text: str) -> int:
        return len(bare.tokenizer(text)["input_ids"])

    added = count("query: 커피") - count("커피")
    assert added > 1
    whole = [t for t in ("커피", "acme 커피", "zeta 라면 우유") if count(t) <= 6]
    longer = " ".join(["커피"] * 20)
    for text in (*whole, longer):
        ids = bare.queries([text]).batch(np.arange(1))[0][0].tolist()
        with_prefix = told.queries([text]).batch(np.arange(1))[0][0].tolist()
        assert with_prefix[-len(ids) :] == ids and len(with_prefix) == len(ids) + added
    assert len(whole) > 1
    told.read_as(Reading(78 - added, "query: "), "it")
    with pytest.raises(ConfigError, match=r"max_length with query_prefix is 79, but 'it' reads 78"):
        told.read_as(Reading(79 - added, "query: "), "it")


def test_without_a_projection_nothing_is_kept_of_one(base: Path, tmp_path: Path) -> None:
    model = BiEncoder.from_base(str(base), None, 24, seed=0)
    first, second = model.save(tmp_path / "a"), BiEncoder.from_base(str(base), None, 24, 1)
    assert second.save(tmp_path / "b") == first  # a seed has nothing to choose
    assert not (tmp_path / "a" / "head.safetensors").exists()
    told = BiEncoder.from_base(str(base), None, 24, 0, "query: ")
    assert told.save(tmp_path / "c") != first  # an index is bound to how queries are read


def test_a_bi_encoder_of_before_there_were_prefixes_has_none(
    model: BiEncoder, tmp_path: Path
) -> None:
    model.save(tmp_path)
    about = {"dim": 16, "max_length": 24, "pool": "mean"}
    (tmp_path / "biencoder.json").write_text(json.dumps(about))
    assert BiEncoder.load(tmp_path).reading == Reading(24)
