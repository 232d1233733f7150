"""The product index: exact against argsort, IVF within its recall bound, files that belong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from csrm_tasks.errors import ArtifactError
from csrm_tasks.retrieval import exact, ivf
from csrm_tasks.retrieval.catalogue import difference
from csrm_tasks.retrieval.exact import Vectors, exact_search
from csrm_tasks.retrieval.index import ProductIndex


def _vectors(seed: int, size: int, dim: int = 16) -> Vectors:
    """Unit vectors around a few centres, as a catalogue's are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dim))
    raw = centres[rng.integers(0, 40, size)] + 0.4 * rng.normal(size=(size, dim))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def _build(vectors: Vectors, exact_below: int, sample: Vectors | None = None) -> ProductIndex:
    ids = [f"p{i:05d}" for i in range(len(vectors))]
    return ProductIndex.build(
        "zh-TW", ids, ids, vectors, "digest", sample=vectors if sample is None else sample,
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


def test_exact_search_by_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = np.round(6 * _vectors(0, 300)), np.round(6 * _vectors(1, 50))
    whole = exact_search(vectors, queries, 12)
    monkeypatch.setattr(exact, "QUERIES", 7)
    monkeypatch.setattr(exact, "PRODUCTS", 9)  # fewer than k
    for found, expected in zip(exact_search(vectors, queries, 12), whole, strict=True):
        assert (found == expected).all()


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


def test_an_index_of_a_mapped_file_is_that_of_memory_and_holds_little_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = _vectors(0, 6000), _vectors(1, 100)
    np.save(tmp_path / "v.npy", vectors)
    whole = _build(vectors, exact_below=1000, sample=queries)
    monkeypatch.setattr(exact, "RESIDENT", 0)
    monkeypatch.setattr(ivf, "BLOCK", 100)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    found = _build(mapped, exact_below=1000, sample=queries)
    assert found.info == whole.info
    for ours, theirs in zip(found.search(queries, 50), whole.search(queries, 50), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert _resident(tmp_path / "v.npy") < vectors.nbytes / 4


def _resident(path: Path) -> int:
    """Return how many bytes of a mapped file this process holds in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    own = [next(x for x in lines if x.startswith("Rss:")) for line in lines if str(path) in line]
    return sum(int(line.split()[1]) * 1024 for line in own)


def test_what_was_written_into_a_private_map_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "RESIDENT", 0)
    np.save(tmp_path / "v.npy", _vectors(0, 300))
    private = np.load(tmp_path / "v.npy", mmap_mode="c")
    private[7] = 1.0
    exact.let_go(private)
    assert (private[7] == 1.0).all()


def test_exact_index_survives_the_disk(tmp_path: Path) -> None:
    index = _build(_vectors(0, 50), exact_below=1000)
    index.save(tmp_path)
    loaded = ProductIndex.load(tmp_path)
    assert (loaded.search(_vectors(1, 4), 7)[0] == index.search(_vectors(1, 4), 7)[0]).all()
    assert not (tmp_path / "ivf.faiss").exists()


class History:
    """Random upserts and deletes, and what is left of them."""

    def __init__(self, start: ProductIndex, seed: int) -> None:
        self.index, self.rng = start, np.random.default_rng(seed)
        self.live = {p: (p, v) for p, v in zip(start.ids, start.vectors, strict=True)}
        near = start.vectors[self.rng.integers(0, len(start.ids), 9000)]  # of the same shape
        near = near + 0.05 * self.rng.normal(size=near.shape)
        norms = np.linalg.norm(near, axis=1, keepdims=True)
        self.pool: Vectors = (near / norms).astype(np.float32)
        self.sample, self.exact_below = _vectors(1, 30), 1 if start.info.lists else 10**6

    def step(self, size: int) -> None:
        """Upsert and delete ``size`` products together."""
        names = [f"p{n:05d}" for n in self.rng.choice(4500, size, replace=False)]
        deleted, put = names[: size // 3], names[size // 3 :]
        rows = self.rng.choice(len(self.pool), len(put))
        texts = [f"text {r}" for r in rows]
        self.index = self.index.changed(
            deleted, put, texts, self.pool[rows],
            sample=self.sample, exact_below=self.exact_below, seed=0,
        )  # fmt: skip
        for name in deleted:
            self.live.pop(name, None)
        self.live |= dict(zip(put, zip(texts, self.pool[rows], strict=True), strict=True))

    def run(self, changes: int) -> None:
        """Go on until so many products were touched."""
        while changes > 0:
            size = int(self.rng.choice([1, 30, 300, 1500]))
            self.step(size)
            changes -= size

    def rebuilt(self) -> ProductIndex:
        """The same products from nothing."""
        names = sorted(self.live, reverse=True)
        texts, vectors = zip(*(self.live[n] for n in names), strict=True)
        return ProductIndex.build(
            "zh-TW", names, texts, np.stack(vectors), "digest",
            sample=self.sample, exact_below=self.exact_below, seed=0,
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_an_exact_index_after_ten_thousand_changes_is_a_rebuilt_one(
    seed: int, tmp_path: Path
) -> None:
    history = History(_build(_vectors(0, 3000), exact_below=10**6), seed)
    history.run(10_000)
    rebuilt = history.rebuilt()
    assert history.index.info == rebuilt.info  # the snapshot's name, too
    for name, index in (("changed", history.index), ("rebuilt", rebuilt)):
        index.save(tmp_path / name)
    for file in ("embeddings.npy", "product_ids.parquet", "index.json"):
        changed, anew = (tmp_path / name / file for name in ("changed", "rebuilt"))
        assert changed.read_bytes() == anew.read_bytes()


@pytest.mark.parametrize("seed", range(2))
def test_ivf_after_ten_thousand_changes_is_one_filled_at_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same lists filled with what is left hold the same codes: equal rows, equal scores."""
    monkeypatch.setattr(ivf, "DRIFT_BOUND", 1.0)
    history = History(_build(_vectors(0, 3000), exact_below=1, sample=_vectors(1, 30)), seed)
    history.run(10_000)
    index = history.index
    assert index.ids == sorted(history.live)
    assert index.info.snapshot == history.rebuilt().info.snapshot
    assert (index.vectors == np.stack([history.live[p][1] for p in index.ids])).all()
    rows, scores = index.search(_vectors(9, 50), 50)
    filled = index._ivf
    filled.reset()
    ivf.add(filled, index.vectors, np.arange(len(index.ids)))
    assert filled.ntotal == len(index.ids)
    again, same = index.search(_vectors(9, 50), 50)
    assert (scores == same).all()
    inside = scores > scores[:, -1:]  # which of equals comes last may differ
    assert (rows == again)[inside].all()
    assert index.info.recall_at_100 >= 0.97


def test_lists_that_drifted_are_learnt_anew() -> None:
    index = _build(_vectors(0, 4000), exact_below=1, sample=_vectors(1, 30))
    assert index.info.drift == 0.0
    corner = np.eye(16, dtype=np.float32)[0] + 0.01 * _vectors(3, 3000)
    corner /= np.linalg.norm(corner, axis=1, keepdims=True)
    how = {"sample": _vectors(1, 30), "exact_below": 1, "seed": 0}
    few = index.changed([], ["q"], ["t"], corner[:1], **how)
    assert 0 < few.info.drift < ivf.DRIFT_BOUND
    names = [f"q{i}" for i in range(3000)]
    many = few.changed([], names, names, corner, **how)
    assert many.info.drift == 0.0
    assert many.info.lists != few.info.lists
    assert many.info.recall_at_100 >= 0.97


def test_drift_is_the_mass_that_moved() -> None:
    assert ivf.drift(np.array([2, 2]), np.array([30, 10])) == 0.25
    assert ivf.drift(np.array([5, 0]), np.array([0, 9])) == 1.0


def test_a_loaded_index_is_mapped_and_one_to_change_is_not(tmp_path: Path) -> None:
    index = _build(_vectors(0, 3000), exact_below=1, sample=_vectors(1, 30))
    index.save(tmp_path)
    mapped, open_ = ProductIndex.load(tmp_path), ProductIndex.load(tmp_path, writable=True)
    assert isinstance(mapped.vectors, np.memmap)
    queries = _vectors(4, 20)
    before = [a.tolist() for a in index.search(queries, 9)]
    assert [a.tolist() for a in mapped.search(queries, 9)] == before
    how = {"sample": queries, "exact_below": 1, "seed": 0}
    changed = open_.changed(["p00003"], ["new"], ["t"], queries[:1], **how)
    assert changed.ids[int(changed.search(queries[:1], 1)[0][0, 0])] == "new"
    assert [a.tolist() for a in mapped.search(queries, 9)] == before  # its files were not touched


def test_a_query_of_another_width_is_refused() -> None:
    for exact_below in (1, 10**6):
        index = _build(_vectors(0, 3000), exact_below, sample=_vectors(1, 30))
        with pytest.raises(ArtifactError, match="a query has 8 numbers and the zh-TW index 16"):
            index.search(_vectors(0, 2, dim=8), 5)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="occurs twice"):
        ProductIndex.build(
            "zh-TW", ["a", "a"], ["t", "t"], _vectors(0, 2), "d",
            sample=_vectors(0, 2), exact_below=9, seed=0,
        )  # fmt: skip
    with pytest.raises(ArtifactError, match="run build_index"):
        ProductIndex.load(tmp_path)
    _build(_vectors(0, 20), exact_below=1000).save(tmp_path)
    info = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(info | {"dim": 8}))
    with pytest.raises(ArtifactError, match=r"do not match index\.json"):
        ProductIndex.load(tmp_path)
    info.pop("drift")
    (tmp_path / "index.json").write_text(json.dumps(info))
    with pytest.raises(ArtifactError, match="another version"):
        ProductIndex.load(tmp_path)


def test_titles_that_a_new_normalisation_reads_otherwise_are_embedded_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goods = pl.DataFrame({"product_id": ["a", "b", "c"], "title": ["mug", "CAFÉ  cup", "é"]})
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "csrm_tasks.retrieval.index.normalise", str.casefold
        )  # it left double spaces alone
        built = ProductIndex.build(
            "zh-TW", goods["product_id"].to_list(), goods["title"].to_list(), _vectors(0, 3), "d",
            sample=_vectors(0, 1), exact_below=9, seed=0,
        )  # fmt: skip
        assert difference(built, goods)[0].is_empty()
    new, gone = difference(built, goods)
    assert (new["product_id"].to_list(), gone) == (["b"], [])
    respelt = goods.with_columns(title=pl.col("title").replace("mug", "Mug "))
    assert difference(built, respelt)[0]["product_id"].to_list() == ["b"]  # read as before
