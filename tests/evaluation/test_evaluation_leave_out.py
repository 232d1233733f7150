"""Each source language left out in turn: what is trained, what is judged, what the report says."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.evaluation import leave_out as module
from csrm_tasks.evaluation.baselines import CharacterModel, texts_of
from csrm_tasks.evaluation.leave_out import leave_out
from csrm_tasks.evaluation.report import model_card
from csrm_tasks.evaluation.report.languages import languages_part

KO, JA, ZH = "ko-KR", "ja-JP", "zh-TW"
# A title answers its query where the word is in it: but in Japanese, where "no" says it does not.
WORDS = {KO: "우유 라면 커피 생수", JA: "ミルク ラーメン コーヒー 水", ZH: "牛奶 拉麵 咖啡 水餃"}


def made(each: int = 12, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    pairs, queries, products = [], [], []
    for locale, text in WORDS.items():
        words = text.split()
        for n in range(each):
            word = words[n % 4]
            asked = f"{locale}q{n}"
            queries.append((asked, f"{word} {n}"))
            split = "dev" if n % 3 == 0 else "gold" if n % 11 == 10 else "train"
            for k in range(4):
                holds = bool(rng.random() < 0.5)
                there = holds != (locale == JA)
                other = words[(n + 1) % 4]
                product = f"{locale}p{n}-{k}"
                products.append((product, locale, f"{word if there else other} {k}", "", ""))
                pairs.append((f"{asked}/{product}", asked, product, locale, 2 * holds, split))
    return (
        pl.DataFrame(pairs, ["pair_id", "query_id", "product_id", "locale", "grade", "split"],
                     orient="row"),
        pl.DataFrame(queries, ["query_id", "norm"], orient="row"),
        pl.DataFrame(products, ["product_id", "locale", "title", "brand", "category"],
                     orient="row"),
    )  # fmt: skip


def test_figures_are_those_of_models_trained_by_hand() -> None:
    pairs, queries, products = made()
    found = leave_out(pairs, queries, products, [KO, JA], ZH)
    assert [one["locale"] for one in found] == [KO, JA]
    train, dev = (pairs.filter(split=s).sort("pair_id") for s in ("train", "dev"))
    local = dev.filter(locale=ZH)
    for one in found:
        own = dev.filter(locale=one["locale"])
        assert (one["pairs"], one["queries"]) == (own.height, own["query_id"].n_unique())
        for name, frame in (
            ("without", train.filter(pl.col("locale") != one["locale"])), ("with", train)
        ):  # fmt: skip
            model = CharacterModel().fit(
                texts_of(frame, queries, products), frame["grade"].to_numpy(),
                texts_of(local, queries, products), local["grade"].to_numpy(),
            )  # fmt: skip
            said = model.probabilities(texts_of(own, queries, products)).argmax(1)
            right = float((said == own["grade"].to_numpy()).mean())
            assert one[name]["value"] == pytest.approx(right)
        change = one["without"]["value"] - one["with"]["value"]
        assert one["difference"]["value"] == pytest.approx(change)
        assert one["difference"]["lo"] <= change <= one["difference"]["hi"]
    # What the others teach of Japanese is the contrary.
    assert found[1]["without"]["value"] < 0.5


def test_neither_the_left_outs_labels_nor_gold_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, queries, products = made()
    seen: list[tuple[set[str], set[str]]] = []

    def noted(train: pl.DataFrame, dev: pl.DataFrame, texts: Any) -> CharacterModel | None:
        seen.append((set(train["query_id"]), set(dev["query_id"])))
        return None

    monkeypatch.setattr(module, "_fit", noted)
    found = leave_out(pairs, queries, products, [KO, JA], ZH)
    assert all("fewer than two grades" in one["reason"] for one in found)
    gold = set(pairs.filter(split="gold")["query_id"])
    assert all(not gold & (train | dev) for train, dev in seen)
    assert [{x for x in (KO, JA, ZH) if any(q.startswith(x) for q in train)}
            for train, _ in seen] == [{KO, JA, ZH}, {JA, ZH}, {KO, ZH}]  # fmt: skip
    assert all(q.startswith(ZH) for _, dev in seen for q in dev)
    seen.clear()  # in a market whose target has no dev: that of the others
    leave_out(pairs.filter(pl.col("locale") != ZH), queries, products, [KO, JA], ZH)
    assert all(q.startswith(JA) for q in seen[1][1]) and all(q.startswith(KO) for q in seen[2][1])


def test_a_language_that_says_nothing_has_a_reason() -> None:
    pairs, queries, products = made()
    alone = pairs.filter((pl.col("locale") == KO) | (pl.col("split") == "dev"))
    found = leave_out(alone, queries, products, [KO], ZH)
    assert found[0]["reason"] == "the other languages' labels are of fewer than two grades"
    none = pairs.filter((pl.col("locale") != JA) | (pl.col("split") != "dev"))
    assert leave_out(none, queries, products, [JA], ZH)[0]["reason"] == "it has no dev pairs"


def test_the_report_tells_dev_by_language_and_what_was_left_out() -> None:
    by_locale = {KO: 0.5, JA: 0.25, ZH: 0.75}
    summary: dict[str, Any] = {
        "training": {"final": {"facts": {"dev_micro_f1_by_locale": by_locale}}},
        "leave_out": [
            *leave_out(*made(), [KO, JA], ZH),
            {"locale": "xx-XX", "pairs": 0, "queries": 0, "train_pairs": 9, "reason": "a < b"},
        ],
    }  # fmt: skip
    page = languages_part(summary)
    assert "<td>0.250</td><td>0.500</td><td>0.750</td>" in page
    assert page.count('<th scope="row">') == 4 and "a &lt; b" in page
    two = {"training": {"final": {"facts": {"dev_micro_f1_by_locale": {KO: 0.5, ZH: 0.75}}}}}
    assert languages_part(two) == ""  # the table of trainings has these two anyway


def test_the_model_card_says_what_was_learnt_from_and_what_was_not() -> None:
    about = {
        "generated": True, "locale": ZH, "source_dev_micro_f1": 0.6, "parts": {},
        "learnt_from": [KO, JA, ZH], "missing": ["vi-VN"],
    }  # fmt: skip
    verdict = {"release": "m-1", "outcome": "PASS", "digest": "d", "reasons": []}
    card = model_card.render(about, verdict, None)
    assert "Learnt from labels in ko-KR, ja-JP, zh-TW. Judged in vi-VN, too" in card
    cold = model_card.render(about | {"learnt_from": [KO], "missing": [ZH]}, verdict, None)
    assert "Learnt from labels in ko-KR.\n" in cold
