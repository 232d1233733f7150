"""Real names with languages held out: what is learnt, what is asked, and figures by language."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.cli.main import main
from csrm_tasks.demo.market.names import CATEGORIES
from csrm_tasks.demo.public import categories
from csrm_tasks.demo.public.names import COLUMNS, HELD_OUT, Names, category_answers, read_names
from csrm_tasks.demo.public.names_study import Recipe, market_of
from csrm_tasks.retrieval.batches import draw

WORDS = ("tola", "mire", "saku", "pelo", "rano", "vexi", "dumi", "kofa")


def taxonomy(folder: Path, parents: int = 6, leaves: int = 8) -> Path:
    """Made-up categories: a name in one language is the English one with that language's ending."""
    rows = []
    for p in range(parents):
        for c in range(-1, leaves):
            word = WORDS[p % 8] if c < 0 else f"{WORDS[c]} {WORDS[p % 8]}{p}"
            path = f"Group {p}" if c < 0 else f"Group {p} > {word}"
            named = {col: f"{word}{i or ''}" for i, col in enumerate(COLUMNS.values())}
            named["name_th"] = word if c == 3 else named["name_th"]  # as in English
            named["name_fr"] = "alike" if c == 5 else named["name_fr"]  # of several categories
            rows.append({"id": f"x-{p}" if c < 0 else f"x-{p}-{c}", "path_en": path, **named})
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(folder / CATEGORIES)
    return folder


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    return read_names(taxonomy(tmp_path_factory.mktemp("data")), HELD_OUT, 0)


def test_neither_a_category_nor_a_text_nor_a_language_of_the_test_is_learnt_of(
    names: Names,
) -> None:
    train, dev, test = (names.of(split) for split in ("train", "dev", "test"))
    assert min(f.height for f in (train, dev, test)) > 10
    assert not set(train["locale"]) & set(HELD_OUT) and not set(dev["locale"]) & set(HELD_OUT)
    assert set(test["locale"]) == set(COLUMNS)
    everything = names.queries
    for one, other in (("train", "test"), ("dev", "test"), ("train", "dev")):
        a, b = (everything.filter(split=s) for s in (one, other))
        assert not set(a["norm"]) & set(b["norm"])
        assert not set(a["category"]) & set(b["category"])
    # What a test query names is all of what that text names in its language.
    assert everything.group_by("norm").agg(pl.col("split").n_unique())["split"].max() == 1


def test_the_same_file_and_seed_is_the_same_split_and_another_seed_another(tmp_path: Path) -> None:
    data = taxonomy(tmp_path)
    first, again, other = (read_names(data, HELD_OUT, seed) for seed in (0, 0, 1))
    assert first.queries.equals(again.queries) and not first.queries.equals(other.queries)
    assert len(read_names(data, HELD_OUT, 0, 9).paths) == 9


def test_every_name_has_a_right_path_and_a_wrong_one_that_it_does_not_name(names: Names) -> None:
    queries = names.of("train")
    answers = category_answers(names, queries, 0)
    named = {
        q: {names.paths[c] for c in cs}
        for q, cs in queries.group_by("query_id").agg("category").iter_rows()
    }
    for query_id, item, grade in answers.select("query_id", "item", "grade").iter_rows():
        assert (item in named[query_id]) == (grade == 1)
    assert set(answers["query_id"]) == set(named)
    wrong = answers.filter(grade=0)
    right = dict(answers.filter(grade=1).select("query_id", "item").iter_rows())
    near = [item.split(" > ")[0] == right[q].split(" > ")[0] for q, item in
            wrong.select("query_id", "item").iter_rows()]  # fmt: skip
    assert 0.3 < np.mean(near) < 0.8  # every other one is a sibling's
    assert answers.equals(category_answers(names, queries, 0))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), pool=st.integers(0, 60))
def test_a_path_is_never_a_negative_of_a_name_that_it_has_in_any_language(
    names: Names, seed: int, size: int, pool: int
) -> None:
    queries = names.of("train")
    data = categories.training_pairs(names, queries)
    of: dict[str, set[int]] = {}
    for norm, category in queries.select("norm", "category").iter_rows():
        of.setdefault(norm, set()).add(category)
    assert data.count == sum(map(len, of.values()))
    batch = draw(data, size, pool, np.random.default_rng(seed))
    for row, (query, title) in enumerate(zip(batch.query_of, batch.title_of, strict=True)):
        own = of[data.queries[batch.queries[query]]]
        assert batch.titles[title] in own
        allowed = {int(t) for t, ok in zip(batch.titles, batch.allowed[row], strict=True) if ok}
        assert allowed == set(batch.titles.tolist()) - own


class Fixed:
    """An encoder whose vectors are given."""

    def __init__(self, queries: np.ndarray, titles: np.ndarray) -> None:
        self.queries, self.titles = queries, titles
        self.asked = 0

    def encode_titles(self, texts: list[str]) -> np.ndarray:
        return self.titles

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        self.asked += len(texts)
        return self.queries[self.asked - len(texts) : self.asked]


def test_figures_are_those_of_a_slow_reading_of_the_rankings(names: Names) -> None:
    rng, test = np.random.default_rng(3), names.of("test")
    n = test.group_by("locale", "query_id").len().height
    model = Fixed(
        rng.normal(size=(n, 4)).astype(np.float32),
        rng.normal(size=(len(names.paths), 4)).astype(np.float32),
    )
    found = categories.search(model, names, test)  # type: ignore[arg-type]
    assert sum(f.queries for f in found.values()) == n
    at = 0
    for locale, figures in found.items():
        own = test.filter(locale=locale)
        expected = []
        for query_id in own["query_id"].unique(maintain_order=True):
            right = set(own.filter(query_id=query_id)["category"])
            ranked = np.argsort(-(model.titles @ model.queries[at]), kind="stable")[:10].tolist()
            at += 1
            places = [i for i, c in enumerate(ranked, 1) if c in right]
            expected.append(
                (float(ranked[0] in right), len(places) / min(10, len(right)),
                 1 / places[0] if places else 0.0)
            )  # fmt: skip
        assert np.allclose(figures.by_query, expected)
        mean = figures.intervals()["mrr_at_10"]
        assert mean.value == pytest.approx(np.mean([e[2] for e in expected]))
        assert mean.lo <= mean.value <= mean.hi


def test_a_market_that_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    data = taxonomy(tmp_path / "data")
    asked = ["study", "names", "--data", str(data)]
    hold_all = [part for locale in COLUMNS for part in ("--hold-out", locale)]
    (tmp_path / "odd").mkdir()
    pl.DataFrame({"id": ["a"], "path_en": ["A"]}).write_parquet(tmp_path / "odd" / CATEGORIES)
    for command, expected in (
        ([*asked, "--hold-out", "xx-XX"], "xx-XX is unknown; there are en-US, de-DE"),
        ([*asked, *hold_all], "fewer than two would be learnt"),
        (["study", "names", "--data", str(tmp_path)], "is absent: the names market needs it"),
        (["study", "names", "--data", str(tmp_path / "odd")], "has no column name_de, name_en"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err.strip()
        assert expected in error and len(error.splitlines()) == 1


def test_the_command_reports_by_language_and_finds_again_what_it_has_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    data = taxonomy(tmp_path / "data")
    asked = ["study", "names", "--data", str(data), "--retriever-steps", "2", "--llm-steps", "2",
             "--asked", "5"]  # fmt: skip
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "learnt: de-DE, en-US, es-ES, ko-KR; held out: zh-TW, ja-JP, fr-FR, th-TH" in out
    for locale in COLUMNS:
        mark = ", held out" if locale in HELD_OUT else ""
        assert out.count(f"| {locale}{mark} |") == 2  # of retrieval, and of query-category
    assert "mrr_at_10, as it comes" in out and "all languages (control)" in out
    assert "| language | pairs | majority | linear | LLM SFT |" in out
    landed = {p.name for p in (tmp_path / "home").glob("landing/names_qc/*/*")}
    assert landed == {"de-DE", "en-US", "es-ES", "ko-KR"}
    assert (tmp_path / "home" / "names.md").read_text(encoding="utf-8") + "\n" == out
    models = set((tmp_path / "home").glob("artifacts/names_qc/train_llm/*"))
    assert models and main(asked) == 0
    assert capsys.readouterr().out == out
    assert set((tmp_path / "home").glob("artifacts/names_qc/train_llm/*")) == models


def test_the_recipes_are_markets(names: Names) -> None:
    real = market_of(names, Recipe("e5-small", "gemma-270m", 3, 4), 5)
    ebr = real.retrieval.ebr
    assert (ebr.encoder, ebr.query_prefix, ebr.steps) == ("base:e5-small", "query: ", 3)
    assert (real.llm.base, real.llm.lora.targets, real.llm.steps) == (
        "base:gemma-270m", "all-linear", 4,
    )  # fmt: skip
    assert real.target_locale == "ko-KR" and not set(real.locales) & set(names.held_out)
