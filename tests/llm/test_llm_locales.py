"""Languages in training: translations of every direction, dev by language, unknown languages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.data import TranslationRows
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.known import refuse_unknown
from csrm_tasks.llm.scoring.transfer import parallel_pairs
from csrm_tasks.llm.training.judge import micro_f1_by_locale
from csrm_tasks.llm.training.tasks import draw_by_kind, translation_prompts
from csrm_tasks.records import TRANSLATIONS
from tests.llm_fixtures import make_tokenizer

KO, JA, ZH = "ko-KR", "ja-JP", "zh-TW"


def test_each_translation_is_told_its_own_direction(tmp_path: Path) -> None:
    rows = TranslationRows(
        ["title", "query"], ["라면", "ミルク"], ["拉麵", "牛奶"], [KO, JA], [ZH, ZH]
    )
    encoder = PromptEncoder(make_tokenizer(tmp_path), 90)
    said = [encoder.tokenizer.decode(before) for before, _ in translation_prompts(rows, encoder)]
    assert said[0].startswith("translate title ko-KR>zh-TW\nS:라면")
    assert said[1].startswith("translate query ja-JP>zh-TW\nS:ミルク")


def test_a_small_direction_is_drawn_more_often_than_its_share() -> None:  # A7
    groups = np.asarray([f"title {KO}>{ZH}"] * 900 + [f"title {JA}>{ZH}"] * 100)
    drawn = draw_by_kind(groups, np.random.default_rng(0))
    assert (groups[drawn] == f"title {JA}>{ZH}").sum() == 250  # roots 30 and 10 of 1,000


def test_the_order_of_kinds_is_that_of_one_direction_without_its_name() -> None:
    """A market of one source draws what it drew before directions were told apart."""
    kinds = ["title", "brand", "query", "category", "title", "title"]
    rows = TranslationRows(kinds, kinds, kinds, [KO] * 6, [ZH] * 6)
    named, bare = (
        draw_by_kind(np.asarray(g), np.random.default_rng(3)) for g in (rows.groups, kinds)
    )
    assert named.tolist() == bare.tolist()


def test_a_title_meets_queries_of_its_own_direction() -> None:  # A44
    rows = [
        (kind, f"{word}{i}", f"t{word}{i}", "dev", locale, ZH)
        for locale, word in ((KO, "k"), (JA, "j"))
        for kind in ("title", "query")
        for i in range(4)
    ]
    table = pl.DataFrame(rows, TRANSLATIONS, orient="row")
    pairs = parallel_pairs(table)
    met = list(zip(pairs.queries, pairs.titles, strict=True))
    assert len(met) == 16
    assert all(query[0][0] == title[0][0] for query, title in met)
    alone = parallel_pairs(table.filter(source_locale=JA))
    assert met[:8] == list(zip(alone.queries, alone.titles, strict=True))


def test_dev_is_told_by_language() -> None:
    pairs = pl.DataFrame({"locale": [KO, JA, KO, JA], "grade": [0, 1, 2, 2]})
    said = np.eye(3)[[0, 1, 1, 2]]
    assert micro_f1_by_locale(pairs, said) == {JA: 1.0, KO: 0.5}


def test_a_language_that_the_tokenizer_does_not_know_is_one_line(tmp_path: Path) -> None:
    inner = Tokenizer(
        models.WordLevel({"<unk>": 0, "milk": 1, "red": 2, "a": 3}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    known = [("en-US", "red milk"), ("en-US", "milk other")]
    refuse_unknown(PromptEncoder(words, 90), known)
    with pytest.raises(ConfigError, match="does not know th-TH: 100%") as caught:
        refuse_unknown(PromptEncoder(words, 90), [*known, ("th-TH", "นม สด")])
    assert "\n" not in str(caught.value)
    refuse_unknown(PromptEncoder(make_tokenizer(tmp_path), 90), [("th-TH", "นม สด")])  # bytes
