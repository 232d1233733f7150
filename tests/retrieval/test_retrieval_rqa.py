"""RQA: fusion, diversity, cutting, thresholds and accuracy (A24, A26)."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from csrm_tasks.errors import ArtifactError
from csrm_tasks.retrieval.augment import LocaleRqa, rqa_table, thresholds
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.index import ProductIndex
from csrm_tasks.retrieval.quality import (
    JUDGED,
    choose_threshold,
    judged_titles,
    recall_at,
    rqa_accuracy,
)
from csrm_tasks.retrieval.rqa import Dense, RqaRetriever, Title, fuse, keep
from tests.retrieval_fixtures import pairs, products, queries, tiny_encoder

NAN = float("nan")


def _judged(rows: list[tuple[str, str, bool]]) -> pl.DataFrame:
    return pl.DataFrame(rows, JUDGED, orient="row")


def _titles() -> dict[str, str]:
    goods = products().filter(pl.col("locale") == "zh-TW")
    return dict(goods.select("product_id", "title").iter_rows())


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Dense:
    titles = _titles()
    base = tiny_encoder(tmp_path_factory.mktemp("base"), list(titles.values()))
    model = BiEncoder.from_base(str(base), 16, 24, seed=0).eval()
    vectors = model.encode_titles(list(titles.values()))
    index = ProductIndex.build(
        "zh-TW", list(titles), list(titles.values()), vectors, "digest",
        sample=vectors, exact_below=99, seed=0,
    )  # fmt: skip
    return Dense(model, index)


def test_fusion_sums_reciprocal_ranks() -> None:
    fused = fuse([["a", "b", "c"], ["c", "d"]])
    assert [name for name, _ in fused] == ["c", "a", "b", "d"]
    assert dict(fused) == pytest.approx(
        {"c": 1 / 63 + 1 / 61, "a": 1 / 61, "b": 1 / 62, "d": 1 / 62}
    )
    assert fuse([["c", "d"], ["a", "b", "c"]]) == fused


def test_bm25_alone_takes_the_best_distinct_titles(tmp_path: Path) -> None:
    titles = {
        "a": "red shoe leather 1 2 3 4 5 6 7 8 9",
        "b": "red shoe leather 1 2 3 4 5 6 7 8 9 10",  # nearly a
        "c": "red shoe canvas",
        "d": "red hat",
        "e": "red",
    }
    bm25 = Bm25Index.build(tmp_path / "i", [*titles.items(), ("gone", "red shoe red shoe")])
    retriever = RqaRetriever(titles, bm25, None, 4)
    (found,) = retriever.retrieve(["Red  SHOE"])
    assert [t.product_id for t in found] == ["c", "a", "e", "d"]
    assert [t.title for t in found if t.product_id == "a"] == ["red shoe leather 1"]
    assert "gone" not in {t.product_id for t in found}
    assert not {"a", "b"} <= {t.product_id for t in found}
    scores = [t.score for t in found]
    assert scores == sorted(scores, reverse=True)
    assert retriever.retrieve(["", "?!", "nothing"]) == [[], [], []]


def test_both_rankings_count_and_the_text_depends_on_the_query_alone(
    dense: Dense, tmp_path: Path
) -> None:
    titles = _titles()
    bm25 = Bm25Index.build(tmp_path / "i", titles.items())
    retriever = RqaRetriever(titles, bm25, dense, 24)
    asked = queries().filter(pl.col("locale") == "zh-TW")["norm"].to_list()
    together = retriever.retrieve(asked)
    assert [[t[:2] for t in r] for r in together] == [
        [t[:2] for t in retriever.retrieve([q])[0]] for q in asked
    ]
    assert all(len(found) == 10 for found in together)
    for query, found in zip(asked[:5], together, strict=False):
        vector = dense.model.encode_queries([query])[0]
        near = dense.nearest(vector[None], 50)[0]
        lexical = [p for p, _ in bm25.search([query], 50)[0]]
        best = fuse([lexical, near])[0]
        assert found[0].product_id == best[0]
        row = dense.index.ids.index(best[0])
        assert found[0].cosine == pytest.approx(float(dense.index.vectors[row] @ vector), abs=1e-5)
    assert retriever.retrieve(["", "。。"]) == [[], []]  # though an encoder embeds anything


def test_a_product_gone_from_the_snapshot_is_never_returned(dense: Dense, tmp_path: Path) -> None:
    titles = _titles()
    bm25 = Bm25Index.build(tmp_path / "i", titles.items())
    left = dict(list(titles.items())[:4])
    retriever = RqaRetriever(left, bm25, dense, 24)
    found = [t.product_id for r in retriever.retrieve(["牛奶", "acme 背包"]) for t in r]
    assert found
    assert set(found) <= set(left)


def test_an_index_of_another_encoder_is_refused(dense: Dense) -> None:
    dense.check("digest")
    with pytest.raises(ArtifactError, match="run build_index with this EBR"):
        dense.check("other")


def test_accuracy_counts_judged_titles_only() -> None:
    found = {
        "q": [Title("a", "t1", 1, 0.5), Title("b", "t2", 1, 0.4)],
        "r": [Title("c", "t1", 1, 0)],
    }
    judged = _judged([("q", "t1", True), ("r", "t1", False), ("r", "t9", True)])
    got = rqa_accuracy(found, judged)
    assert (got.value, got.judged, got.retrieved) == (0.5, 2, 3)
    nothing = rqa_accuracy(found, _judged([]))
    assert (nothing.value, nothing.judged, nothing.retrieved) == (None, 0, 3)


def test_graded_pairs_judge_titles() -> None:
    goods = products()
    judged = judged_titles(pairs(), goods, 1)  # the brand alone: kinds merge
    full = judged_titles(pairs(), goods, 24)
    assert len(full) == len(pairs())
    assert full["correct"].sum() == (pairs()["grade"] >= 1).sum()
    assert len(judged) < len(full)
    one = pairs().head(1)
    same = pl.concat([one, one.with_columns(grade=pl.lit(0, pl.Int8), pair_id=pl.lit("x"))])
    assert judged_titles(same, goods, 24)["correct"].to_list() == [True]  # half is enough


def _dev(n: int) -> tuple[dict[str, list[Title]], pl.DataFrame]:
    """Queries of two titles each: cosine 0.9 - i/1000 is right, 0.5 + i/1000 mostly wrong."""
    found = {
        f"q{i}": [Title("a", "good", 1, 0.9 - i / 1000), Title("b", "bad", 0.5, 0.5 + i / 1000)]
        for i in range(n)
    }
    rows = [(f"q{i}", t, t == "good" or i % 5 == 0) for i in range(n) for t in ("good", "bad")]
    return found, _judged(rows)


def _share(found: dict[str, list[Title]], judged: pl.DataFrame, at: float) -> tuple[float, float]:
    """Accuracy and share of queries that keep a title."""
    kept = {q: keep(ts, at, 3) for q, ts in found.items()}
    value = rqa_accuracy(kept, judged).value
    return value or 0.0, sum(map(bool, kept.values())) / len(kept)


def test_the_threshold_drops_what_is_wrong_and_keeps_most_queries() -> None:
    found, judged = _dev(60)
    chosen = choose_threshold(found, judged, 3)
    assert chosen is not None
    assert _share(found, judged, -1.0) == (0.6, 1.0)
    accuracy, covered = _share(found, judged, chosen)
    assert accuracy == 1.0
    assert 0.8 <= covered < 0.85  # the highest of equally good ones
    unjudged = {f"other{i}": [Title("z", "t", 1, 0.1)] for i in range(99)}
    assert choose_threshold(found | unjudged, judged, 3) == chosen  # dev's queries decide


def test_the_threshold_is_low_where_high_cosines_are_wrong() -> None:
    found, judged = _dev(60)
    swapped = judged.with_columns(correct=pl.col("title") == "bad")
    chosen = choose_threshold(found, swapped, 3)
    assert chosen is not None
    every = sorted(t.cosine for ts in found.values() for t in ts)
    best = max(_share(found, swapped, at)[0] for at in every)
    error = (best * (1 - best) / 120) ** 0.5
    assert _share(found, swapped, chosen)[0] >= best - error
    assert chosen < 0.56


def test_a_dropped_title_makes_room_for_the_next() -> None:
    candidates = [
        Title(str(i), "t", 1 - i / 10, c) for i, c in enumerate((0.9, 0.1, 0.8, NAN, 0.7))
    ]
    assert [t.product_id for t in keep(candidates, 0.5, 3)] == ["0", "2", "3"]
    assert [t.product_id for t in keep(candidates, -1.0, 3)] == ["0", "1", "2"]


def test_a_title_with_every_word_of_the_query_passes_any_threshold(
    dense: Dense, tmp_path: Path
) -> None:
    """An encoder knows nothing of a word that it has not learnt; who spells it does."""
    titles = _titles() | {"new": "acme 安城 湯麵"}
    bm25 = Bm25Index.build(tmp_path / "i", titles.items())
    (found,) = RqaRetriever(titles, bm25, dense, 24).retrieve(["安城"])
    assert [t.product_id for t in keep(found, 1.1, 3)] == ["new"]
    spelt = {t.product_id: t.whole for t in found}
    assert spelt.pop("new")
    assert not any(spelt.values())
    known, judged = _dev(60)
    whole = {q: [t._replace(whole=t.title == "bad") for t in ts] for q, ts in known.items()}
    chosen = choose_threshold(whole, judged, 3)  # they have no say in it
    assert chosen is not None
    assert chosen > 0.6


def test_no_threshold_without_evidence() -> None:
    found, judged = _dev(60)
    assert choose_threshold(found, judged.head(20), 3) is None
    unknown = {q: [t._replace(cosine=NAN) for t in ts] for q, ts in found.items()}
    assert choose_threshold(unknown, judged, 3) is None
    assert keep(unknown["q0"], 0.99, 3) == unknown["q0"]


def test_a_new_market_borrows_the_threshold() -> None:
    found, judged = _dev(60)
    own = LocaleRqa("ko-KR", found, {"dev": judged}, pl.DataFrame(), {})
    new = LocaleRqa("zh-TW", found, {}, pl.DataFrame(), {})
    few = LocaleRqa("zh-TW", found, {"dev": judged.head(9), "train": judged}, pl.DataFrame(), {})
    chosen = thresholds([own, new], 3)
    assert chosen["zh-TW"] == chosen["ko-KR"] == choose_threshold(found, judged, 3)
    assert thresholds([own, few], 3) == chosen
    assert thresholds([new], 3) == {"zh-TW": -1.0}


def test_table_keeps_queries_without_titles() -> None:
    table = rqa_table({"r": [], "q": [Title("a", "t", 0.5, NAN)]})
    assert table.to_dicts() == [
        {"query_id": "q", "titles": ["t"], "product_ids": ["a"], "scores": [0.5]},
        {"query_id": "r", "titles": [], "product_ids": [], "scores": []},
    ]


def test_recall() -> None:
    assert recall_at({"q": ["a", "b"]}, {"q": ["b", "c"], "r": ["d"]}) == 0.25
    assert recall_at({}, {}) is None
