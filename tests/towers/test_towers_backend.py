"""Which variant of the query tower serves: never a refused one, pinned, or clearly the quickest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import XLMRobertaConfig, XLMRobertaModel

from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.towers.export import write_onnx
from csrm_tasks.towers.quantise import quantise
from csrm_tasks.towers.serving import backend
from csrm_tasks.towers.serving.backend import VARIABLE, choose_backend, quickest, time_query
from csrm_tasks.towers.serving.runtime import ONNX, open_session
from csrm_tasks.towers.serving.texts import TEXT_VERSION
from csrm_tasks.towers.tower import Tower


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    config = XLMRobertaConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    write_onnx(Tower(XLMRobertaModel(config), 4), tmp_path / ONNX["query", "fp32"])
    quantise(tmp_path / ONNX["query", "fp32"], tmp_path / ONNX["query", "int8"], "all")
    about = {"serve": {"query": "int8"}, "text_version": TEXT_VERSION}
    (tmp_path / "serving.json").write_text(json.dumps(about))
    return tmp_path


@pytest.mark.parametrize(
    ("fp32", "int8", "exported", "chosen"),
    [
        (0.030, 0.005, "int8", "int8"),
        (0.030, 0.005, "fp32", "int8"),
        (0.005, 0.030, "int8", "fp32"),
        (0.0045, 0.005, "int8", "int8"),  # a tenth quicker: not worth it
        (0.0001, 0.0004, "int8", "int8"),  # a quarter of the time, but of nothing
    ],
)
def test_the_exported_one_stays_unless_another_clearly_pays(
    fp32: float, int8: float, exported: str, chosen: str
) -> None:
    assert quickest({"fp32": fp32, "int8": int8}, exported) == chosen


def test_the_probe_decides_by_what_it_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def opening(path: Path, threads: int) -> Any:
        opened.append(path.name)
        return open_session(path, threads)

    took = iter([0.001, 0.02])  # fp32, int8
    monkeypatch.setattr(backend, "open_session", opening)
    monkeypatch.setattr(backend, "time_query", lambda _: next(took))
    assert choose_backend(folder, 1) == "fp32"
    assert opened == [ONNX["query", v] for v in ("fp32", "int8")]


def test_a_real_probe_chooses_one_that_is_there(folder: Path) -> None:
    assert choose_backend(folder, 1) in ("fp32", "int8")


def test_a_refused_variant_is_never_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ONNX["query", "int8"]).unlink()
    monkeypatch.setattr(backend, "time_query", lambda _: pytest.fail("one variant needs no probe"))
    assert choose_backend(folder, 1) == "fp32"
    monkeypatch.setenv(VARIABLE, "int8")
    with pytest.raises(ArtifactError, match="refused at export"):
        open_session(folder / ONNX["query", choose_backend(folder, 1)], 1)


@pytest.mark.parametrize(
    ("pinned", "chosen"), [("exported", "int8"), ("fp32", "fp32"), ("int8", "int8")]
)
def test_a_pinned_backend_is_not_probed(
    folder: Path, pinned: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, pinned)
    monkeypatch.setattr(backend, "time_query", lambda _: pytest.fail("pinned"))
    assert choose_backend(folder, 1) == chosen


def test_an_unknown_backend_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ConfigError, match="'cuda'; give exported, fp32 or int8"):
        choose_backend(folder, 1)


def test_time_is_the_median_run() -> None:
    class Session:
        runs = 0

        def run(self, _: None, feed: dict[str, Any]) -> None:
            Session.runs += 1
            assert {k: v.shape for k, v in feed.items()} == {
                "input_ids": (1, backend.TOKENS), "attention_mask": (1, backend.TOKENS),
            }  # fmt: skip
            assert np.all(feed["attention_mask"] == 1)

    assert 0 < time_query(Session()) < backend.SECONDS
    assert Session.runs >= 2 + backend.LEAST_RUNS
