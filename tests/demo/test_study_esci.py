"""The study of the Shopping Queries Data Set: metrics of its three tasks, and the ladder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.cli.main import main
from csrm_tasks.demo.public.esci import LETTERS, judge
from tests.layouts_fixtures import example, item, write_esci

GAINS = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
GRADES = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(LETTERS),
        st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any),
    ),
    min_size=1, max_size=20,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(GRADES)
def test_the_three_figures_are_those_of_a_slow_reading(rows: list[Any]) -> None:
    frame = pl.DataFrame(
        [(f"q{q}", letter) for q, letter, _ in rows], ["query_id", "letter"], orient="row"
    )
    p = np.array([[x / sum(weights) for x in weights] for _, _, weights in rows])
    found = judge(frame, p)
    said = ["ISE"[int(np.argmax(one))] for one in p]
    truth = [letter for _, letter, _ in rows]
    ndcgs = []
    for query in sorted({q for q, _, _ in rows}):
        own = [i for i, row in enumerate(rows) if row[0] == query]
        ranked = sorted(own, key=lambda i: -(0.1 * p[i, 1] + p[i, 2]))
        ideal = sorted(own, key=lambda i: -GAINS[truth[i]])
        reached, best = (
            sum(GAINS[truth[i]] / math.log2(rank + 2) for rank, i in enumerate(order))
            for order in (ranked, ideal)
        )
        ndcgs += [reached / best] if best else []
    task_1 = found.ndcg.sum(0)
    assert task_1[1] == len(ndcgs) and task_1[0] == pytest.approx(sum(ndcgs))
    values = {name: x.value for name, x in found.figures().items()}
    right = sum(t == s for t, s in zip(truth, said, strict=True)) / len(rows)
    alike = sum((t == "S") == (s == "S") for t, s in zip(truth, said, strict=True)) / len(rows)
    assert values["task 2 micro-F1"] == pytest.approx(right)
    assert values["task 3 micro-F1"] == pytest.approx(alike)


def write(folder: Path, flipped: bool = False) -> Path:
    words = ("lamp", "vase", "bowl", "cup", "fork", "sofa")
    items = [item(f"B{i}", place, f"{w} {place} {i // 6}", product_brand="Orla")
             for place in ("us", "jp") for i, w in enumerate(words * 4)]  # fmt: skip
    examples = []
    for i in range(60):
        place = ("us", "jp")[i % 2]
        for k, letter in enumerate("ESCI"):
            shown = "ISCE"[k] if flipped and i >= 48 else letter
            product = f"B{(i % 6 + 6 * k) if k < 2 else (i + k) % 6 + 6 * k}"
            examples.append(
                example(4 * i + k, place, f"orla {words[i % 6]} {i}", product, shown,
                        small=int(i % 3 > 0), split="train" if i < 48 else "test")
            )  # fmt: skip
    examples.append(example(998, "us", "orla", "B999", "E", split="test"))  # no such product
    examples.append(example(999, "us", "orla", "B1", None, split="test"))
    return write_esci(folder, examples, items)


def test_the_ladder_is_judged_on_the_public_test_which_is_not_taken_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(tmp_path / "markets"))
    data = write(tmp_path / "data")
    asked = ["study", "esci", "--data-dir", str(data), "--steps", "4"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "test, large: 48 labelled examples" in out and "or without label: 2" in out
    for part in ("all: 48 examples", "en-US: 24 examples", "ja-JP: 24 examples"):
        assert f"test, {part}" in out
    for model in ("majority", "linear", "LLM SFT"):
        assert out.count(f"| {model} |") == 3
    assert "| task 2 micro-F1 | 65.50 |" in out and "amazon-science/esci-data" in out
    assert len(list((tmp_path / "home").glob("artifacts/esci/publish_day/*"))) == 1
    models = set((tmp_path / "home").glob("artifacts/esci/train_llm/*"))
    write(data, flipped=True)  # other labels of the test: the same models, other figures
    assert main(asked) == 0
    assert set((tmp_path / "home").glob("artifacts/esci/train_llm/*")) == models
    assert capsys.readouterr().out != out
