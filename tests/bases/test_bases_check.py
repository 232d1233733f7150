"""``csrm base check``: what is measured, and the one line with which a base is refused."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch.nn import functional
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from csrm_tasks.bases.check import log_loss, same_tokenizer, shortest_window
from csrm_tasks.bases.record import Origin, describe
from csrm_tasks.cli.main import main
from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.settings import Settings
from tests.bases_fixtures import TITLES, gemma_tokenizer, store_of_titles, tiny_e5, tiny_gemma
from tests.data_fixtures import DAY1, ingest, land_lines, market, product
from tests.llm_fixtures import save_random


@pytest.fixture(autouse=True)
def home(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with a market of six titles; its prompts have at most 128 tokens."""
    store_of_titles(settings)
    folder = tmp_path / "markets"
    folder.mkdir()
    text = yaml.safe_load((Path(__file__).parents[1] / "markets" / "mini.yaml").read_text())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(text | {"market": "tiny"}))
    monkeypatch.setenv("CSRM_HOME", str(settings.home))
    monkeypatch.setenv("CSRM_MARKETS", str(folder))
    return tmp_path


def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    assert main(["base", "add", "b", "--from", str(folder)]) == 0
    capsys.readouterr()
    code = main(["base", "check", "b", "--market", "tiny"])
    out, err = capsys.readouterr()
    return code, out, "\n".join(x for x in err.splitlines() if x.startswith("csrm:"))


def test_a_causal_base_is_measured_on_the_titles_of_both_languages(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = check(tiny_gemma(home / "made"), capsys)
    assert (code, err) == (0, "")
    for said in ("labels in one token: relevance 0=", "a window of 256 tokens", "memory by formula",
                 "a prompt of llm.max_length (128 tokens) runs",
                 "ko-KR: ", "zh-TW: ", "tokens a character on 3 titles", "perplexity ",
                 "tokenizer: as tokenizer.json on 6 titles", "speed by formula"):  # fmt: skip
        assert said in out, (said, out)


def test_an_encoder_is_measured_without_perplexity(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = check(tiny_e5(home / "made"), capsys)
    assert (code, err) == (0, "")
    assert "perplexity: none, it is an encoder" in out and "texts/s" in out
    assert main(["base", "trim", "b", "--market", "tiny"]) == 0
    assert "next: csrm base check b-tiny --market tiny" in capsys.readouterr().out
    assert main(["base", "check", "b-tiny", "--market", "tiny"]) == 0
    assert "of 7 titles and queries 0 are cut otherwise than by b" in capsys.readouterr().out


def test_texts_that_came_since_the_cut_are_counted(
    home: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_gemma(home / "made")
    assert main(["base", "add", "b", "--from", str(home / "made")]) == 0
    assert main(["base", "trim", "b", "--market", "tiny"]) == 0
    land_lines(settings, DAY1, "zh-TW/catalogue.jsonl", [product(7, "чайник красный магазин")])
    ingest(settings, DAY1, market())
    capsys.readouterr()
    assert main(["base", "check", "b-tiny", "--market", "tiny"]) == 0
    said = capsys.readouterr().out
    found = re.search(
        r"queries 1 are cut otherwise than by b, into (\d+) tokens instead of (\d+)", said
    )
    assert found is not None, said
    assert int(found[1]) > int(found[2])


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes without a single merge: "yes" is three tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "<eos>"})
    return tokenizer


def gemma2(folder: Path) -> Path:
    """A model that caps its attention and its logits softly."""
    tokenizer = gemma_tokenizer()
    tokenizer.save_pretrained(folder)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=256,
    )  # fmt: skip
    return save_random(Gemma2ForCausalLM, config, folder)


def gpt2(folder: Path) -> Path:
    """A model of layers that are called otherwise."""
    tokenizer = gemma_tokenizer()
    tokenizer.save_pretrained(folder)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256)
    return save_random(GPT2LMHeadModel, config, folder)


def split_labels(folder: Path) -> Path:
    tiny_gemma(folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    words_tokenizer().save_pretrained(folder)
    return folder


def replaced(folder: Path) -> Path:
    """An encoder whose tokenizer has no padding token."""
    tiny_e5(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (split_labels, "does not keep label"),
        (gemma2, "soft-capped attention"),
        (gpt2, "is not built of layers"),
        (replaced, "padding token"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], make: object, reason: str
) -> None:
    code, _, err = check(make(home / "made"), capsys)  # type: ignore[operator]
    assert code == 2
    assert reason in err and err.count("\n") == 0


def test_a_changed_file_is_said_before_anything_is_loaded(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tiny_e5(home / "made"), capsys)[0] == 0
    path = home / "home" / "bases" / "b" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert main(["base", "check", "b", "--market", "tiny"]) == 2
    assert "model.safetensors was changed" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_its_file_is_refused(home: Path) -> None:
    folder = tiny_gemma(home / "made")
    record = describe(folder, Origin("folder:made", "1", "unknown"))
    used = PreTrainedTokenizerFast.from_pretrained(folder)
    titles = [*TITLES["zh-TW"], "MILK"]
    assert "on 4 titles" in same_tokenizer(folder, record, used, titles)
    used.backend_tokenizer.normalizer = normalizers.Lowercase()  # as a class of its own would
    with pytest.raises(ConfigError, match=r"of 4 titles \d have other tokens than tokenizer\.json"):
        same_tokenizer(folder, record, used, titles)


def test_perplexity_is_that_of_every_token_behind_the_start(home: Path) -> None:
    model = load_base(str(tiny_gemma(home / "made")))
    titles = TITLES["ko-KR"]
    expected, count = 0.0, 0
    for title in titles:  # token by token, each from its own run
        ids = model.tokenizer(title)["input_ids"]
        for end in range(1, len(ids)):
            with torch.no_grad():
                logits = model.causal(input_ids=torch.tensor([ids[:end]])).logits[0, -1]
            expected -= float(functional.log_softmax(logits, -1)[ids[end]])
            count += 1
    nats, tokens = log_loss(model, titles)
    assert tokens == count and math.isclose(nats, expected, rel_tol=1e-4)


def test_the_window_is_that_of_layers_that_slide(home: Path) -> None:
    config = load_base(str(tiny_gemma(home / "made"))).causal.config
    assert shortest_window(config) == 256
    config.layer_types = ["full_attention"] * 3
    assert shortest_window(config) is None
    shutil.rmtree(home / "made")
