"""A base of its first layers only: states are those of the whole one at that depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from csrm_tasks.bases.adding import add_base
from csrm_tasks.bases.record import read_record
from csrm_tasks.bases.sources import Folder
from csrm_tasks.bases.texts import market_texts
from csrm_tasks.bases.trim import trim_base
from csrm_tasks.cli.main import main
from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.settings import load_settings
from tests.bases_fixtures import TITLES, store_of_titles, tiny_e5, tiny_gemma


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stand-ins, whole and cut to one layer."""
    folder = tmp_path_factory.mktemp("layers")
    home = load_settings({"CSRM_HOME": str(folder / "home")})
    store_of_titles(home)
    texts = market_texts(home, "tiny")
    for name, made in (("gemma", tiny_gemma(folder / "g")), ("e5", tiny_e5(folder / "e"))):
        add_base(folder / "bases", name, Folder(made), accept_terms=False)
        place = folder / "bases" / f"{name}-1"
        lines = list(trim_base(folder / "bases" / name, place, "tiny", texts, layers=1))
        assert "layers: the first 1" in lines
    return folder / "bases"


def test_a_causal_base_ends_behind_its_first_layer(bases: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(bases / "gemma").eval()
    cut = AutoModelForCausalLM.from_pretrained(bases / "gemma-1").eval()
    tokenizers = [AutoTokenizer.from_pretrained(bases / n) for n in ("gemma", "gemma-1")]
    assert len(whole.base_model.layers) > 1 and len(cut.base_model.layers) == 1
    for text in TITLES["zh-TW"]:
        ids, cut_ids = (torch.tensor([t(text)["input_ids"]]) for t in tokenizers)
        with torch.no_grad():
            behind = whole.base_model(ids, output_hidden_states=True).hidden_states[1]
            found = cut.base_model(cut_ids).last_hidden_state
        torch.testing.assert_close(found, whole.base_model.norm(behind), atol=1e-5, rtol=0)
    assert read_record(bases / "gemma-1").trimmed.layers == 1  # type: ignore[union-attr]
    assert len(load_base(str(bases / "gemma-1")).causal.base_model.layers) == 1


def test_an_encoder_ends_behind_its_first_layer(bases: Path) -> None:
    whole, cut = (
        AutoModel.from_pretrained(bases / n, add_pooling_layer=False).eval() for n in ("e5", "e5-1")
    )
    tokenizers = [AutoTokenizer.from_pretrained(bases / n) for n in ("e5", "e5-1")]
    for text in TITLES["zh-TW"]:
        given, cut_given = (t(text, return_tensors="pt") for t in tokenizers)
        with torch.no_grad():
            expected = whole(**given, output_hidden_states=True).hidden_states[1]
            found = cut(**cut_given).last_hidden_state
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_base_has_no_more_layers_than_it_has(
    bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = load_settings({"CSRM_HOME": str(tmp_path / "home")})
    store_of_titles(home)
    texts = market_texts(home, "tiny")
    place = bases / "gemma-99"
    with pytest.raises(ConfigError, match=r"base gemma has \d+ layers; keep 1 to \d+, not 99"):
        list(trim_base(bases / "gemma", place, "tiny", texts, layers=99))
    assert not place.exists()
    command = ["base", "trim", "gemma", "--market", "demo", "--layers", "0"]
    assert main(command) == 2 and "--layers" in capsys.readouterr().err
