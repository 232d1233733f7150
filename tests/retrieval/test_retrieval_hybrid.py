"""Hybrid search by rows against fusing two full rankings by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.hybrid import HybridSearch
from csrm_tasks.retrieval.index import ProductIndex
from csrm_tasks.retrieval.rqa import Dense
from tests.towers_fixtures import COLOURS, TARGET, TYPES, make_encoder


def test_both_rankings_count_and_a_gone_product_does_not(tmp_path: Path) -> None:
    model = BiEncoder.from_base(str(make_encoder(tmp_path / "base", layers=1)), 16, 32, 0).eval()
    titles = [f"{c} {t}" for c in COLOURS for t in TYPES]
    ids = [f"p{i:02d}" for i in range(len(titles))]
    vectors = model.encode_titles(titles)
    index = ProductIndex.build(TARGET, ids, titles, vectors, "digest", sample=vectors[:5],
                               exact_below=1000, seed=0)  # fmt: skip
    gone = [("gone", "紅色 茶壺")]
    bm25 = Bm25Index.build(tmp_path / "bm25", [*zip(ids, titles, strict=True), *gone])
    queries = ["雨傘", "紅色 茶壺", "???"]
    found = HybridSearch(Dense(model, index), bm25, queries)(np.array([1, 0, 2]), 6)
    assert found.shape == (3, 6)
    for row, query in zip(found, [queries[1], queries[0], queries[2]], strict=True):
        near = np.argsort(-(vectors @ model.encode_queries([query])[0]), kind="stable")[:6]
        lexical = [p for p, _ in bm25.search([query], 6)[0] if p != "gone"]
        score: dict[str, float] = {}
        for ranking in ([ids[i] for i in near], lexical):
            for rank, product in enumerate(ranking, 1):
                score[product] = score.get(product, 0.0) + 1 / (60 + rank)
        want = sorted(score, key=lambda p: (-score[p], p))[:6]
        assert [ids[i] for i in row if i >= 0] == want
