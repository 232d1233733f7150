"""A cut vocabulary: same tokens, same probabilities on the market's texts, a way out for others."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from csrm_tasks.base_models import base_digest
from csrm_tasks.bases.adding import add_base
from csrm_tasks.bases.record import read_record
from csrm_tasks.bases.sources import Folder
from csrm_tasks.bases.texts import encoder_texts, market_texts, prompt_texts
from csrm_tasks.bases.trim import trim_base
from csrm_tasks.bases.vocabulary import BYTES, cut_tokenizer, merged, scripts
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.llm.network.head import run_trunk, translation_loss
from csrm_tasks.llm.network.model import Model, load_base
from csrm_tasks.llm.prompt.prompts import (
    LABEL_SPACES,
    LANGUAGES,
    TASK_SPACES,
    QueryFields,
    language_name,
    query_segments,
)
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.text import normalise
from tests.bases_fixtures import (
    TITLES,
    e5_tokenizer,
    gemma_tokenizer,
    store_of_titles,
    tiny_e5,
    tiny_gemma,
)
from tests.data_fixtures import DAY2, KO, ingest, land_lines

GEMMA, E5 = gemma_tokenizer(), e5_tokenizer()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stand-ins, whole and trimmed for the market of one day."""
    folder = tmp_path_factory.mktemp("trim")
    home = load_settings({"CSRM_HOME": str(folder / "home")})
    store_of_titles(home)
    texts = market_texts(home, "tiny")
    for name, made in (("gemma", tiny_gemma(folder / "g")), ("e5", tiny_e5(folder / "e"))):
        add_base(folder / "bases", name, Folder(made), accept_terms=False)
        place = folder / "bases" / f"{name}-tiny"
        list(trim_base(folder / "bases" / name, place, "tiny", texts))
    return folder


def texts_of(bases: Path, name: str) -> list[str]:
    found = market_texts(load_settings({"CSRM_HOME": str(bases / "home")}), "tiny")
    return prompt_texts(found) if name == "gemma" else encoder_texts(found)


def mapping(bases: Path, name: str) -> list[int]:
    """Return the whole base's id of every token of the trimmed one, by its text."""
    whole = AutoTokenizer.from_pretrained(bases / "bases" / name)
    cut = AutoTokenizer.from_pretrained(bases / "bases" / f"{name}-tiny")
    kept = [whole.convert_tokens_to_ids(cut.convert_ids_to_tokens(i)) for i in range(len(cut))]
    assert len(set(kept)) == len(kept)
    return kept


def test_a_prefix_that_runs_into_the_text_keeps_what_the_two_become(
    bases: Path, tmp_path: Path
) -> None:
    """Without a space between, prefix and text are cut as one word."""
    prefixes = {"상품:", "q: "}
    whole = AutoTokenizer.from_pretrained(bases / "bases" / "e5")
    texts = market_texts(load_settings({"CSRM_HOME": str(bases / "home")}), "tiny")
    list(trim_base(bases / "bases" / "e5", tmp_path / "told", "tiny", texts, prefixes=prefixes))
    cut = AutoTokenizer.from_pretrained(tmp_path / "told")
    for text in (p + normalise(t) for p in prefixes for t in TITLES[KO]):
        assert text in encoder_texts(texts, prefixes)
        found, wanted = (t.convert_ids_to_tokens(t(text)["input_ids"]) for t in (cut, whole))
        assert found == wanted


@pytest.mark.parametrize("name", ["gemma", "e5"])
def test_every_text_of_the_market_has_the_same_tokens(bases: Path, name: str) -> None:
    whole = AutoTokenizer.from_pretrained(bases / "bases" / name)
    cut = AutoTokenizer.from_pretrained(bases / "bases" / f"{name}-tiny")
    kept = mapping(bases, name)
    texts = texts_of(bases, name)
    assert len(texts) >= 20 and len(cut) < 0.8 * len(whole)
    for text in texts:
        assert [kept[i] for i in cut(text)["input_ids"]] == whole(text)["input_ids"], text
    assert cut.special_tokens_map == whole.special_tokens_map
    assert cut.model_max_length == whole.model_max_length


def test_prompts_of_the_tasks_are_cut_as_before_in_every_language_that_is_named(
    bases: Path,
) -> None:
    """A market may take up query-category and query-item after its base was trimmed."""
    whole = AutoTokenizer.from_pretrained(bases / "bases" / "gemma")
    cut = AutoTokenizer.from_pretrained(bases / "bases" / "gemma-tiny")
    for space in TASK_SPACES.values():
        for locale in (*(f"{code}-XX" for code in LANGUAGES), KO):
            query = QueryFields(TITLES[KO][0], language=language_name(locale))
            for text in query_segments(space, query):
                found, wanted = (
                    t.convert_ids_to_tokens(t(text)["input_ids"]) for t in (cut, whole)
                )
                assert found == wanted, text


def test_judged_category_paths_and_their_queries_are_among_the_texts(
    bases: Path, tmp_path: Path
) -> None:
    home = load_settings({"CSRM_HOME": str(tmp_path / "home")})
    store_of_titles(home)
    row = {"label_id": "c1", "query": "찻주전자", "category": "주방, 식기,주전자", "label": "yes"}
    land_lines(home, DAY2, f"{KO}/query_categories.jsonl", [row])
    ingest(home, DAY2)
    before = texts_of(bases, "gemma")
    found = set(prompt_texts(market_texts(home, "tiny"))) - set(before)
    assert found == {"\nQ:찻주전자", "\nC:주방, 식기,주전자"}


def test_log_probabilities_are_the_whole_ones_over_kept_tokens(bases: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(bases / "bases" / "gemma").eval()
    cut = AutoModelForCausalLM.from_pretrained(bases / "bases" / "gemma-tiny").eval()
    tokenizer = AutoTokenizer.from_pretrained(bases / "bases" / "gemma-tiny")
    kept = torch.tensor(mapping(bases, "gemma"))
    assert cut.get_output_embeddings().weight is cut.get_input_embeddings().weight
    for text in texts_of(bases, "gemma")[::3]:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = functional.log_softmax(whole(input_ids=kept[ids]).logits[..., kept], -1)
            found = functional.log_softmax(cut(input_ids=ids).logits, -1)
        assert (found - expected).abs().max() <= 1e-5
        assert found.abs().max() > 1  # and not all alike


def test_translation_loss_is_over_kept_tokens_only(bases: Path) -> None:
    """That of the whole base, its other tokens struck out; a whole base reads all of them."""
    whole = load_base(str(bases / "bases" / "gemma"), dtype=torch.float32)
    cut = load_base(str(bases / "bases" / "gemma-tiny"), dtype=torch.float32)
    kept = torch.tensor(mapping(bases, "gemma"))
    batch = [cut.tokenizer(text)["input_ids"][:12] for text in texts_of(bases, "gemma")[:6]]
    ids = torch.tensor([row + [0] * (12 - len(row)) for row in batch])
    end = torch.tensor([len(row) for row in batch])
    start = end // 2

    def loss(model: Model, given: torch.Tensor) -> float:
        hidden = run_trunk(model.causal, given)
        return float(translation_loss(model.causal, hidden, given, start, end))

    with torch.no_grad():
        found, full = loss(cut, ids), loss(whole, kept[ids])
        expected = []
        for row, a, b in zip(kept[ids], start.tolist(), end.tolist(), strict=True):
            log_p = functional.log_softmax(whole.causal(row[None, :b]).logits[0][:, kept], -1)
            places = [int((kept == row[t]).nonzero()) for t in range(a, b)]
            expected.append(-sum(log_p[a - 1 + i, k] for i, k in enumerate(places)) / (b - a))
    assert found == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)
    assert found < full - 0.01  # the tokens that are gone took some of the probability


def test_an_encoders_states_are_the_whole_ones(bases: Path) -> None:
    whole = AutoModel.from_pretrained(bases / "bases" / "e5", add_pooling_layer=False).eval()
    cut = AutoModel.from_pretrained(bases / "bases" / "e5-tiny", add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(bases / "bases" / "e5-tiny")
    kept = torch.tensor(mapping(bases, "e5"))
    batch = tokenizer(list(TITLES["zh-TW"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = cut(**batch).last_hidden_state
        expected = whole(kept[batch["input_ids"]], batch["attention_mask"]).last_hidden_state
    assert (found - expected).abs().max() <= 1e-5
    assert cut.config.pad_token_id == tokenizer.pad_token_id
    assert cut.get_input_embeddings().padding_idx == tokenizer.pad_token_id


def test_training_loads_it_and_its_labels_are_the_same_words(bases: Path) -> None:
    whole, cut = (load_base(str(bases / "bases" / n)) for n in ("gemma", "gemma-tiny"))
    kept = mapping(bases, "gemma")
    for space in LABEL_SPACES:
        assert [kept[i] for i in cut.labels[space].tolist()] == whole.labels[space].tolist()
    assert cut.causal.config.eos_token_id == cut.tokenizer.eos_token_id
    assert cut.causal.generation_config.bos_token_id == cut.tokenizer.bos_token_id


def test_the_identity_begins_at_the_whole_base(
    bases: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_BASES", str(bases / "bases"))
    record = read_record(bases / "bases" / "gemma-tiny")
    assert record.trimmed is not None
    assert record.trimmed.root == base_digest("base:gemma")
    assert base_digest("base:gemma-tiny") != base_digest("base:gemma")
    assert record.origin == read_record(bases / "bases" / "gemma").origin
    assert sum(record.trimmed.kept.values()) == record.vocabulary
    texts = market_texts(load_settings({"CSRM_HOME": str(bases / "home")}), "tiny")
    place = bases / "bases" / "gemma-tiny"
    assert "is there already" in next(trim_base(bases / "bases" / "gemma", place, "tiny", texts))
    with pytest.raises(ConfigError, match="trimmed already"):
        next(trim_base(place, bases / "bases" / "again", "tiny", texts))


def test_other_texts_fall_back_on_bytes_and_letters_and_keep_their_meaning(bases: Path) -> None:
    whole = AutoTokenizer.from_pretrained(bases / "bases" / "gemma")
    cut = AutoTokenizer.from_pretrained(bases / "bases" / "gemma-tiny")
    fallback = set(cut.convert_tokens_to_ids(list(BYTES)))
    for text in ("чайник", "天地", "가나 라면", "<table>", "𝄞"):
        ids = cut(text, add_special_tokens=False)["input_ids"]
        assert cut.decode(ids) == text
        assert len(ids) >= len(whole(text, add_special_tokens=False)["input_ids"])
    assert fallback >= set(cut("ч", add_special_tokens=False)["input_ids"])
    assert not fallback & set(cut("天地가나", add_special_tokens=False)["input_ids"])
    e5 = AutoTokenizer.from_pretrained(bases / "bases" / "e5-tiny")
    assert e5.unk_token_id in e5("कच्चा")["input_ids"]


def test_the_worst_piece_stays_for_unknown_characters_cost_by_it() -> None:
    pieces = [("<unk>", 0.0), ("tea", -1.0), ("te", -15.0), ("as", -15.0), ("zebra", -20.0)]
    whole = Tokenizer(models.Unigram([*pieces, ("lion", -18.0)], unk_id=0))
    before = whole.encode("teas")
    cut = cut_tokenizer(whole, set(before.ids), [], [])
    assert cut.tokenizer.encode("teas").tokens == before.tokens == ["te", "as"]
    assert "zebra" in cut.tokenizer.get_vocab() and "lion" not in cut.tokenizer.get_vocab()
    without = Tokenizer(models.Unigram(pieces[:-1], unk_id=0)).encode("teas")
    assert 0 in without.ids  # what would come of it


def test_letters_of_scripts_that_the_market_hardly_writes_are_left_out() -> None:
    assert scripts(["라면" * 600, "拉麵" * 600, "abc", "ж"]) == {"HANGUL", "CJK", "LATIN"}


def test_nothing_is_cut_by_a_store_without_products(settings: Settings) -> None:
    with pytest.raises(DataError, match="ingest a day first"):
        market_texts(settings, "tiny")
    assert not settings.home.exists()
    store_of_titles(settings)
    with pytest.raises(DataError, match="market other has no products"):
        market_texts(settings, "other")


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="a WordLevel tokenizer cannot be trimmed"):
        cut_tokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), {0}, [], [])


def test_the_way_to_a_token_is_what_its_letters_make_alone() -> None:
    """Against merging whole texts: of a token that is left, the same symbols came into being."""
    model = json.loads(GEMMA.backend_tokenizer.to_str())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    rng = random.Random(0)
    pieces = [t for some in TITLES.values() for title in some for t in title.split()]
    for _ in range(50):
        text = "".join(rng.choices(pieces, k=4))
        whole = set(merged(text, ranks))  # every symbol that came into being in the text
        left = [t for t in GEMMA.backend_tokenizer.encode(text, add_special_tokens=False).tokens
                if t not in BYTES]  # fmt: skip
        assert {s for token in left for s in merged(token, ranks)} <= whole | set(text)


LETTERS = "라면우유 拉麵牛奶ちабв 0123abcABC～㎏\n\tㆍ<pad>▁é"


@examples(max_examples=300)
@given(st.lists(st.text(LETTERS, max_size=12), min_size=1, max_size=6), st.text(LETTERS))
@pytest.mark.parametrize("whole", [GEMMA, E5], ids=["bpe", "unigram"])
def test_whatever_a_vocabulary_is_cut_by_keeps_its_tokens(
    whole: object, texts: list[str], other: str
) -> None:
    inner: Tokenizer = whole.backend_tokenizer  # type: ignore[attr-defined]
    rows = [e.ids for e in inner.encode_batch(texts)]
    cut = cut_tokenizer(inner, {i for row in rows for i in row}, texts, [])
    for row, found in zip(rows, cut.tokenizer.encode_batch(texts), strict=True):
        assert [cut.kept[i] for i in found.ids] == row
    assert max(cut.tokenizer.encode(other).ids, default=0) < len(cut.kept)
