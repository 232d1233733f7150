"""The product index: exact against argsort, IVF within its recall bound, files that belong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from csrm_tasks.errors import ArtifactError
from csrm_tasks.retrieval.index import ProductIndex, Vectors, exact_search


def _vectors(seed: int, size: int, dim: int = 16) -> Vectors:
    """Unit vectors around a few centres, as a catalogue's are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dim))
    raw = centres[rng.integers(0, 40, size)] + 0.4 * rng.normal(size=(size, dim))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def _build(vectors: Vectors, exact_below: int, sample: Vectors | None = None) -> ProductIndex:
    ids = [f"p{i}" for i in range(len(vectors))]
    return ProductIndex.build(
        "zh-TW", ids, vectors, "digest", sample=vectors if sample is None else sample,
        exact_below=exact_below, seed=0,
    )  # fmt: skip


def test_exact_search_is_a_stable_sort() -> None:
    vectors = np.round(6 * _vectors(0, 300))  # whole numbers: exact sums, many of them equal
    queries = np.round(6 * _vectors(1, 1100))
    rows, scores = exact_search(vectors, queries, 12)
    products = queries @ vectors.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :12]
    assert (rows == expected).all()
    assert (scores == np.take_along_axis(products, expected, axis=1)).all()


def test_small_catalogues_and_large_k() -> None:
    index = _build(_vectors(0, 5), exact_below=10)
    rows, _ = index.search(_vectors(1, 3), 100)
    assert [sorted(r) for r in rows.tolist()] == [[0, 1, 2, 3, 4]] * 3
    assert index.info.kind == "exact"
    empty = _build(np.zeros((0, 16), np.float32), exact_below=10)
    assert empty.search(_vectors(1, 3), 5)[0].shape == (3, 0)


def test_ivf_holds_its_recall_and_survives_the_disk(tmp_path: Path) -> None:
    vectors, queries = _vectors(0, 6000), _vectors(1, 100)
    index = _build(vectors, exact_below=1000, sample=queries)
    assert index.info.kind == "ivf_sq8"
    assert 0 < index.info.probes < index.info.lists  # the bound is not met by probing everything
    truth, _ = exact_search(vectors, queries, 100)
    index.save(tmp_path)
    loaded = ProductIndex.load(tmp_path)
    rows, scores = loaded.search(queries, 100)
    recall = np.mean([len(set(t) & set(r)) / 100 for t, r in zip(truth, rows, strict=True)])
    assert recall == pytest.approx(index.info.recall_at_100)
    assert recall >= 0.97
    assert loaded.ids == index.ids
    assert loaded.info == index.info
    first = np.einsum("qd,qd->q", queries, vectors[rows[:, 0]])
    assert np.abs(first - scores[:, 0]).max() < 0.02  # eight bits a number


def test_exact_index_survives_the_disk(tmp_path: Path) -> None:
    index = _build(_vectors(0, 50), exact_below=1000)
    index.save(tmp_path)
    loaded = ProductIndex.load(tmp_path)
    assert (loaded.search(_vectors(1, 4), 7)[0] == index.search(_vectors(1, 4), 7)[0]).all()
    assert not (tmp_path / "ivf.faiss").exists()


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="occurs twice"):
        ProductIndex.build(
            "zh-TW", ["a", "a"], _vectors(0, 2), "d", sample=_vectors(0, 2), exact_below=9, seed=0
        )
    with pytest.raises(ArtifactError, match="run build_index"):
        ProductIndex.load(tmp_path)
    _build(_vectors(0, 20), exact_below=1000).save(tmp_path)
    info = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(info | {"dim": 8}))
    with pytest.raises(ArtifactError, match=r"do not match index\.json"):
        ProductIndex.load(tmp_path)
