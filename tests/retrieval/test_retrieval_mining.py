"""Hard negatives: what is mined, what is skipped and why, and where they go (A22)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from csrm_tasks.retrieval.batches import draw
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.mining import mine
from csrm_tasks.retrieval.pairs import TrainingPairs, training_pairs
from csrm_tasks.sections import Mining
from csrm_tasks.text import normalise
from tests.retrieval_fixtures import KINDS, products, queries, scored


def _data() -> TrainingPairs:
    """Of every query only the pairs that a good ranker would put first were scored."""
    return training_pairs(queries(), products(), scored().filter(pl.col("p1") > 0.5), None)


def _indexes(folder: Path, goods: pl.DataFrame) -> dict[str, Bm25Index]:
    return {
        locale: Bm25Index.build(
            folder / locale,
            goods.filter(pl.col("locale") == locale).select("product_id", "title").rows(),
        )
        for locale in KINDS
    }


def test_what_is_mined_is_ranked_in_the_window_and_nobodys_pair(tmp_path: Path) -> None:
    data, indexes = _data(), _indexes(tmp_path, products())
    config = Mining(first=1, last=9, per_query=3)
    got, counts = mine(data, products(), indexes, config)
    assert got.mined is not None
    assert got.mined.shape == (len(data.queries), 3)
    titles = {p: normalise(t) for p, t in products().select("product_id", "title").iter_rows()}
    for part in data.locales:
        pairs = set(zip(part.query.tolist(), part.title.tolist(), strict=True))
        for query in np.unique(part.query).tolist():
            (hits,) = indexes[part.locale].search([data.queries[query]], 9)
            window = [titles[p] for p, _ in hits[1:]]
            found = [row for row in got.mined[query].tolist() if row >= 0]
            assert set(found) <= set(part.catalogue.tolist())
            assert not pairs & {(query, row) for row in found}
            places = [window.index(data.titles[row]) for row in found]
            assert places == sorted(places)  # the hardest first
    assert counts.queries == 80
    assert counts.mined == int((got.mined >= 0).sum()) > 0
    assert counts.short == int((got.mined[:, -1] < 0).sum())
    assert counts.pairs > 0
    assert mine(data, products(), indexes, config)[0].mined.tobytes() == got.mined.tobytes()  # type: ignore[union-attr]


def test_copies_of_a_pair_and_lost_products_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    title = "Acme 커피 진한 원두 블렌드"
    rows = [
        ("own", "ko-KR", title, "", "", ""),
        ("copy", "ko-KR", f"{title} 특가", "", "", ""),  # five of six words
        ("hard", "ko-KR", "Acme 커피 머신", "", "", ""),
        ("again", "ko-KR", "커피 Acme 머신", "", "", ""),  # the same words
        ("gone", "ko-KR", "Acme 커피 필터", "", "", ""),
    ]
    goods = pl.DataFrame(rows, products().schema, orient="row")
    asked = queries().filter(pl.col("norm") == "acme 커피")
    one = scored().head(1).with_columns(
        query_id=pl.lit(asked["query_id"][0]), product_id=pl.lit("own"), locale=pl.lit("ko-KR")
    )  # fmt: skip
    indexes = _indexes(tmp_path, goods)
    left = goods.filter(pl.col("product_id") != "gone")
    with caplog.at_level("INFO", "csrm"):
        got, counts = mine(
            training_pairs(asked, left, one, None), left, indexes,
            Mining(first=0, last=9, per_query=3),
        )  # fmt: skip
    assert got.mined is not None
    ((first, *rest),) = got.mined.tolist()
    assert set(got.titles[first].split()) == {"acme", "커피", "머신"}
    assert rest == [-1, -1]
    said = "queries 1, short 1, mined 1, gone 1, pairs 1, copies 2"
    assert str(counts) == said
    assert f"hard negatives: {said}" in caplog.text


def test_mined_titles_share_the_pool_with_random_ones(tmp_path: Path) -> None:
    config = Mining(first=0, last=20, per_query=2)
    data, _ = mine(_data(), products(), _indexes(tmp_path, products()), config)
    assert data.mined is not None
    for seed in range(8):
        batch = draw(data, 4, 8, np.random.default_rng(seed))
        own = set(data.mined[batch.queries].ravel().tolist()) - {-1}
        most = len(set(batch.title_of.tolist())) + 8
        assert len(own & set(batch.titles.tolist())) >= min(4, len(own))
        assert len(batch.titles) <= most  # a step costs no more than without


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValidationError, match="first 9 must be below last 9"):
        Mining(first=9, last=9)
