"""The transfer gap of a model: pairs put together from translations, and hidden states (A44)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields
from csrm_tasks.llm.scoring.gap import transfer_gap, translation_accuracy
from csrm_tasks.llm.scoring.transfer import (
    ParallelPairs,
    hidden_states,
    measure_transfer,
    parallel_pairs,
)
from csrm_tasks.llm.training.finetune import finetune
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.records import TRANSLATIONS
from tests.llm_fixtures import make_base, make_market, make_snapshot


def table(titles: list[tuple[str, str]], queries: list[tuple[str, str]]) -> pl.DataFrame:
    rows = (
        [("title", *t) for t in titles] + [("query", *q) for q in queries] + [("brand", "a", "b")]
    )
    whole = [(*row, "dev", "en-US", "zh-TW") for row in rows]
    return pl.DataFrame(whole, schema=TRANSLATIONS, orient="row")


TITLES = [(f"milk {i} large", f"牛奶 {i}") for i in range(4)] + [("soup hot", "拉麵")]
QUERIES = [("milk", "牛奶"), ("soup", "拉麵"), ("xyz", "尿布")]


def test_every_title_meets_its_query_and_another_in_both_languages() -> None:
    pairs = parallel_pairs(table(TITLES, QUERIES))
    assert len(pairs) == 2 * len(TITLES)
    met: dict[str, list[str]] = {}
    for query, title in zip(pairs.queries, pairs.titles, strict=True):
        assert query in QUERIES and title in TITLES
        met.setdefault(title[0], []).append(query[0])
    assert met["soup hot"][0] == "soup"
    assert all(asked[0] == "milk" for title, asked in met.items() if title.startswith("milk"))
    assert all(len(set(asked)) == 2 for asked in met.values())
    again = parallel_pairs(table(TITLES[::-1], QUERIES[::-1]))
    assert (again.queries, again.titles) == (pairs.queries, pairs.titles)


@pytest.mark.parametrize(
    ("titles", "queries", "most", "pairs"),
    [(TITLES, [], 10, 0), ([], QUERIES, 10, 0), (TITLES, QUERIES[:1], 10, 5),
     (TITLES, QUERIES, 2, 4), (TITLES * 2, QUERIES, 10, 10)],
)  # fmt: skip
def test_few_or_many_translations(
    titles: list[tuple[str, str]], queries: list[tuple[str, str]], most: int, pairs: int
) -> None:
    assert len(parallel_pairs(table(titles, queries), most)) == pairs


def test_hidden_states_are_what_the_label_rows_read(tmp_path: Path) -> None:
    """Slow reference: each prompt alone through the Hugging Face model itself."""
    model = load_base(str(make_base(tmp_path / "base")))
    encoder = PromptEncoder(model.tokenizer, 96)
    pairs = parallel_pairs(table(TITLES, QUERIES))
    states = []
    for side in (0, 1):
        prompts = [
            encoder.prompt(RELEVANCE, QueryFields(q[side]), ProductFields(t[side]))
            for q, t in zip(pairs.queries, pairs.titles, strict=True)
        ]
        alone = []
        for prompt in prompts:
            ids = torch.from_numpy(prompt).long()[None]
            with torch.no_grad():
                out = model.causal(input_ids=ids, output_hidden_states=True)
            alone.append(out.hidden_states[-1][0, -1].double().numpy())
        states.append(np.stack(alone))
        assert np.abs(hidden_states(model, prompts) - states[-1]).max() < 1e-4
    found = measure_transfer(model, encoder, pairs)
    assert found["transfer_pairs"] == len(pairs) == 10
    assert found["transfer_gap"] == pytest.approx(transfer_gap(*states), rel=1e-4)
    assert found["translation_accuracy"] == translation_accuracy(*states)


def test_too_few_or_equal_pairs_have_no_figure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_base(str(make_base(tmp_path / "base")))
    encoder = PromptEncoder(model.tokenizer, 96)
    assert measure_transfer(model, encoder, parallel_pairs(table(TITLES[:2], QUERIES))) == {}
    same = ParallelPairs([QUERIES[0]] * 12, [TITLES[0]] * 12)
    assert measure_transfer(model, encoder, same) == {}
    assert "no transfer gap" in caplog.text


def test_a_training_reports_the_gap_on_held_out_translations(tmp_path: Path) -> None:
    market = make_market(make_base(tmp_path / "base"), steps=2, evaluate_every=2)
    snapshot = make_snapshot(tmp_path / "snapshot")
    facts = finetune(
        market, FinetuneInputs(snapshot, None, None, "plain", 0), tmp_path / "a", tmp_path / "wa"
    ).facts  # fmt: skip
    assert "transfer_gap" not in facts  # the fixture holds no translation out
    trained = pl.read_parquet(snapshot / "translations.parquet")
    pl.concat([trained, table(TITLES, QUERIES)]).write_parquet(snapshot / "translations.parquet")
    facts = finetune(
        market, FinetuneInputs(snapshot, None, None, "plain", 0), tmp_path / "b", tmp_path / "wb"
    ).facts  # fmt: skip
    assert facts["transfer_pairs"] == 10
    assert facts["transfer_gap"] > 0 and 0 <= facts["translation_accuracy"] <= 1
