"""The translators that are models: the relevance LLM, and sequence-to-sequence models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    NllbTokenizer,
    PreTrainedTokenizerFast,
)

from csrm_tasks import records, tracking
from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.curation.translation.generation import LlmTranslator
from csrm_tasks.curation.translation.seq2seq import Seq2SeqTranslator, identity
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.records import TRANSLATED, read_table, write_table
from csrm_tasks.sections import Augmentation
from csrm_tasks.settings import load_settings
from csrm_tasks.steps.running import run_step
from tests.llm_fixtures import (
    SOURCE,
    TARGET,
    WORDS,
    make_base,
    make_given,
    make_market,
    make_snapshot,
    run_as,
)

KOREAN, CHINESE = WORDS[:5], WORDS[5:10]


def in_other_words(snapshot: Path) -> dict[str, str]:
    """Let the market's translations be of its whole queries, word by word; return them."""
    words = dict(zip(KOREAN, CHINESE, strict=True))
    queries = pl.read_parquet(snapshot / "queries.parquet").filter(locale=SOURCE)["query"].unique()
    found = {q: " ".join(words[w] for w in q.split()) for q in queries.sort()}
    rows = [("query", *pair, "train", SOURCE, TARGET) for pair in found.items()]
    table = pl.DataFrame(rows, records.TRANSLATIONS, orient="row")
    write_table(table, records.TRANSLATIONS, snapshot / "translations.parquet")
    return found


def test_an_llm_translates_what_it_has_learnt_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through training and steps; the second time no model is loaded."""
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    given = make_given(tmp_path)
    pairs = in_other_words(given.snapshot)
    lora = {"r": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}
    market = make_market(
        make_base(tmp_path / "base"), steps=150, evaluate_every=150, lr=2e-2, batch=24, lora=lora,
        mixture={"mt": 4.0, "cvr": 0.0}, augmentation={"translator": "llm", "beams": 3},
    )  # fmt: skip
    trained = run_as("translator", market, given, tmp_path)
    assert {"loss_mt", "loss_mt_back"} <= set(trained.curves)
    settings = load_settings({"CSRM_HOME": str(tmp_path / "home")})
    store = ArtifactStore(settings.artifacts, settings.cache)
    for ref, folder in (("snapshot/1", given.snapshot), ("llm/1", tmp_path / "out-translator")):
        store.publish(f"tiny/{ref}", folder, facts={}, inputs={}, about={})

    def shard(**params: int) -> str:
        inputs = {"snapshot": "tiny/snapshot/1", "llm": "tiny/llm/1"}
        return run_step("translate_shard", market, inputs, params, settings)

    shards = [shard(shard=0, of=1)]
    made = store.open(
        run_step("translate_queries", market, {"snapshot": "tiny/snapshot/1", "shards": shards},
                 {}, settings)
    )  # fmt: skip
    rows = read_table(made.file("translated.parquet"), TRANSLATED)
    right = [pairs[q] == text for q, text in rows.select("query", "text").unique().iter_rows()]
    assert made.facts["queries"] >= 5 and sum(right) >= 0.8 * made.facts["queries"]
    assert rows["translator"].unique().to_list()[0].startswith("llm:")

    def refuse(*_: object) -> LlmTranslator:
        raise AssertionError("asked again")

    monkeypatch.setattr(LlmTranslator, "load", refuse)
    again = [shard(shard=k, of=2) for k in (0, 1)]
    both = store.open(
        run_step("translate_queries", market, {"snapshot": "tiny/snapshot/1", "shards": again},
                 {}, settings)
    )  # fmt: skip
    assert read_table(both.file("translated.parquet"), TRANSLATED).equals(rows)


def test_texts_of_all_lengths_are_answered_in_their_order(tmp_path: Path) -> None:
    model = load_base(str(make_base(tmp_path)))
    encoder = PromptEncoder(model.tokenizer, 64)
    translator = LlmTranslator(model, encoder, 2)
    texts = ["라면", "우유 멸균", "라면 우유 기저귀", "우유", "soup " * 60]
    together = translator.translate(texts, SOURCE, TARGET)
    assert together == [translator.translate([t], SOURCE, TARGET)[0] for t in texts]
    assert together[-1] == ()  # no room is left behind the prompt
    model.tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end-of-text token") as caught:
        LlmTranslator(model, PromptEncoder(model.tokenizer, 64), 2)
    assert "\n" not in str(caught.value)


def word_tokenizer(extra: Sequence[str] = ()) -> Tokenizer:
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *KOREAN, *CHINESE, *"0123456789", *extra]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return inner


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BART that has learnt five words in both directions."""
    folder = tmp_path_factory.mktemp("bart")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None, max_position_embeddings=64,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    there, back = list(zip(KOREAN, CHINESE, strict=True)), list(zip(CHINESE, KOREAN, strict=True))
    pairs = there + back
    given = tokenizer([a for a, _ in pairs], return_tensors="pt", padding=True)
    labels = tokenizer([b for _, b in pairs], return_tensors="pt", padding=True)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(200):
        loss = model(**given, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(str(folder))
    return folder


def test_a_sequence_to_sequence_model_answers_in_order_with_its_beams(bart: Path) -> None:
    config = Augmentation(translator="seq2seq", model=str(bart), beams=3)
    translator = Seq2SeqTranslator(config, str(bart))
    found = translator.translate([*reversed(KOREAN), "짬뽕"], SOURCE, TARGET)
    assert [answers[0] for answers in found[:-1]] == [*reversed(CHINESE)]
    assert found[-1] == ()  # all of it is unknown to the tokenizer
    assert all(len(answers) <= 3 for answers in found)
    assert [a[0] for a in translator.translate(CHINESE, TARGET, SOURCE)] == [*KOREAN]
    with pytest.raises(DataError, match="does not know the language of ja-JP: all of 2"):
        translator.translate(["ラーメン", "お茶"], "ja-JP", TARGET)


def test_its_identity_follows_what_its_answers_depend_on(bart: Path) -> None:
    one = Augmentation(translator="seq2seq", model=str(bart))
    assert identity(one, str(bart)) == identity(one.model_copy(update={"weight": 0.5}), str(bart))
    for change in ({"beams": 2}, {"prefix": "{target}: "}, {"codes": {TARGET: "zho"}}):
        assert identity(one, str(bart)) != identity(one.model_copy(update=change), str(bart))


def test_a_prefix_tells_the_languages(bart: Path) -> None:
    seen: list[str] = []
    config = Augmentation(
        translator="seq2seq", model=str(bart), prefix=">>{source}-{target}<< ",
        codes={TARGET: "zht"}, beams=1,
    )  # fmt: skip
    translator: Any = Seq2SeqTranslator(config, str(bart))
    inner = translator._answers

    def answers(texts: list[str], *more: object) -> list[tuple[str, ...]]:
        seen.extend(texts)
        answered: list[tuple[str, ...]] = inner(texts, *more)
        return answered

    translator._answers = answers
    translator.translate(["라면"], SOURCE, TARGET)
    assert seen == [">>ko-zht<< 라면"]


def test_a_model_of_many_languages_is_told_them_by_tokens(tmp_path: Path) -> None:
    """A random M2M: its first token is the target's, and an unknown language is named in a line."""
    letters = sorted(set("".join(WORDS)))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters, "kor_Hang", "zho_Hant"]
    vocabulary = {w: i for i, w in enumerate(tokens)}
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[], src_lang="kor_Hang", tgt_lang="zho_Hant")
    tokenizer.save_pretrained(str(tmp_path))
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(M2M100Config(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        decoder_start_token_id=2,
    ))  # fmt: skip
    model.save_pretrained(str(tmp_path))
    codes = {SOURCE: "kor_Hang", TARGET: "zho_Hant"}
    config = Augmentation(translator="seq2seq", model=str(tmp_path), codes=codes, beams=2)
    translator: Any = Seq2SeqTranslator(config, str(tmp_path))
    forced = translator._told_languages({"source": "kor_Hang", "target": "zho_Hant"})
    assert forced == {"forced_bos_token_id": tokenizer.convert_tokens_to_ids("zho_Hant")}
    assert translator._tokenizer.src_lang == "kor_Hang"
    assert len(translator.translate(["라면", "우유"], SOURCE, TARGET)) == 2
    with pytest.raises(ConfigError, match="knows no language 'ja'; give its name") as caught:
        translator.translate(["라면"], "ja-JP", TARGET)
    assert "\n" not in str(caught.value)


def test_a_market_says_who_translates_in_one_piece(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"translator": "seq2seq"}, "go together"),
        ({"translator": "table", "model": "./m"}, "go together"),
        ({"prefix": "{language}"}, "other braces"),
        ({"prefix": "{"}, "other braces"),
    ]
    for given, said in wrong:
        with pytest.raises(ValueError, match=said):
            Augmentation(**given)
    with pytest.raises(ValueError, match=r"mixture\.mt is 0"):
        make_market(tmp_path, augmentation={"translator": "llm"}, mixture={"mt": 0.0})
    assert make_snapshot(tmp_path).is_dir()
