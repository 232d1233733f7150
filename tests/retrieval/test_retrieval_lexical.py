"""The analyser, BM25 against rank_bm25 and against its own rebuild, and pseudo pairs (A20, A21)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rank_bm25 import BM25Okapi

from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.analyser import tokens, truncate_title
from csrm_tasks.retrieval import commits
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.pseudo import distinct_hits, pseudo_pairs
from csrm_tasks.retrieval.quality import recall_at, relevant_products
from tests.retrieval_fixtures import pairs, products, queries


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nongshim 農心安城湯麵125g", "nongshim 農心 心安 安城 城湯 湯麵 125g"),
        ("한국 국화차 30개입", "한국 국화 화차 30개입"),
        ("コーヒー豆 200 g", "コー ーヒ ヒー ー豆 200g"),
        ("５００ＭＬ 500 ml 50", "500ml 500ml 50"),
        ("10,000mAh 2.5L iPhone15 3M", "10,000mah 2.5l iphone15 3m"),
        ("125gx6 6入 A4紙", "125g x6 6入 a4 紙"),
        ("茶", "茶"),
        ("crème-brûlée Молоко", "crème brûlée молоко"),
        ("5 boxes", "5 boxes"),
        ("?! … --", ""),
        ("", ""),
    ],
)
def test_tokens_follow_the_script(text: str, expected: str) -> None:
    assert tokens(text) == expected.split()


def test_cut_keeps_writing_and_whole_units() -> None:
    title = "OTTOGI 不倒翁麵, 104 g, 6入"
    expected = ["", "OTTOGI", "OTTOGI 不", "OTTOGI 不倒", "OTTOGI 不倒翁", "OTTOGI 不倒翁麵"]
    assert [truncate_title(title, n) for n in range(6)] == expected
    assert truncate_title(title, 6) == "OTTOGI 不倒翁麵, 104 g"
    assert truncate_title(title, 7) == truncate_title(title, 99) == title


def _catalogue(seed: int, size: int) -> list[tuple[str, str]]:
    """Titles of 3 to 12 words out of a skewed vocabulary, in four scripts."""
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(150)] + [chr(0x4E00 + i) * 2 for i in range(100)]
    words += [chr(0xAC00 + 7 * i) + chr(0xAC01 + 11 * i) for i in range(100)]
    p = 1 / np.arange(5, 5 + len(words))
    sizes = rng.integers(3, 13, size)
    drawn = [" ".join(rng.choice(words, n, p=p / p.sum())) for n in sizes]
    return [(f"p{i:04d}", title) for i, title in enumerate(drawn)]


def _judged_recall(ranked: list[list[str]], relevant: list[set[str]]) -> float:
    return float(np.mean([len(set(r) & s) / len(s) for r, s in zip(ranked, relevant, strict=True)]))


def test_recall_is_not_below_rank_bm25(tmp_path: Path) -> None:
    """Queries are words of one title; relevant are all titles that have every one of them."""
    rng = np.random.default_rng(1)
    documents = _catalogue(0, 800)
    corpus = [tokens(title) for _, title in documents]
    reference = BM25Okapi(corpus)
    index = Bm25Index.build(tmp_path / "bm25", documents)
    chosen = rng.choice(len(documents), 60, replace=False)
    texts = [" ".join(rng.choice(documents[c][1].split(), 3)) for c in chosen]
    bags = [(name, set(doc)) for (name, _), doc in zip(documents, corpus, strict=True)]
    relevant = [{name for name, bag in bags if bag.issuperset(tokens(t))} for t in texts]
    ours = [[i for i, _ in hits] for hits in index.search(texts, 20)]
    theirs = [
        [documents[i][0] for i in np.argsort(-reference.get_scores(tokens(t)), kind="stable")[:20]]
        for t in texts
    ]
    assert _judged_recall(theirs, relevant) > 0.5
    assert _judged_recall(ours, relevant) >= _judged_recall(theirs, relevant)


def test_scores_are_bm25_as_the_docstring_says(tmp_path: Path) -> None:
    documents = _catalogue(2, 200)
    corpus = [tokens(title) for _, title in documents]
    query = documents[3][1]
    expected = []
    for (name, _), doc in zip(documents, corpus, strict=True):
        score = sum(_okapi(corpus, doc, term) for term in tokens(query))
        if score:
            expected.append((name, pytest.approx(score, rel=1e-12)))
    expected.sort(key=lambda hit: -hit[1].expected)
    found = Bm25Index.build(tmp_path / "i", documents).search([query], 15)[0]
    assert [s for _, s in found] == [s for _, s in expected[:15]]
    assert dict(found).items() <= dict(expected).items()


def _okapi(corpus: list[list[str]], doc: list[str], term: str) -> float:
    mean = np.mean([len(d) for d in corpus])
    df, tf = sum(term in d for d in corpus), doc.count(term)
    idf = np.log(1 + (len(corpus) - df + 0.5) / (df + 0.5))
    return float(idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(doc) / mean)))


def test_ties_are_broken_by_id_whatever_the_order_of_addition(tmp_path: Path) -> None:
    documents = [(f"p{i:03d}", "same title") for i in range(60)] + [("best", "same same title")]
    forward = Bm25Index.build(tmp_path / "a", documents)
    backward = Bm25Index.build(tmp_path / "b", reversed(documents[:40]))
    backward.add(reversed(documents[40:]))
    assert forward.search(["same"], 5) == backward.search(["same"], 5)
    assert [i for i, _ in forward.search(["same"], 4)[0]] == ["best", "p000", "p001", "p002"]


def test_additions_equal_a_rebuild_and_persist(tmp_path: Path) -> None:
    documents = _catalogue(3, 400)
    texts = [title for _, title in documents[::17]]
    grown = Bm25Index.build(tmp_path / "grown", documents[:300])
    grown.add(documents[300:])
    whole = Bm25Index.build(tmp_path / "whole", documents)
    assert grown.search(texts, 10) == whole.search(texts, 10)
    assert Bm25Index(tmp_path / "grown").search(texts, 10) == whole.search(texts, 10)


def test_deleted_and_replaced_documents_are_not_found(tmp_path: Path) -> None:
    index = Bm25Index.build(tmp_path / "i", [("a", "red shoe"), ("b", "red hat"), ("c", "sofa")])
    index.delete(["a", "never there"])
    index.add([("b", "green hat")])
    reopened = Bm25Index(tmp_path / "i")
    assert len(reopened) == 2
    assert reopened.search(["red shoe"], 5) == [[]]
    assert [i for i, _ in reopened.search(["hat"], 5)[0]] == ["b"]


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_upserts_and_deletes_equal_a_rebuild(tmp_path: Path, seed: int) -> None:
    """Ids, scores and their order are the same, to the last bit, at any point of the history."""
    rng = np.random.default_rng(seed)
    texts = [title for _, title in _catalogue(seed, 2000)]
    queries = [" ".join(rng.choice(t.split(), 2)) for t in texts[:40]]
    live: dict[str, str] = {}
    index = Bm25Index.build(tmp_path / "lived", [])
    done = 0
    while done < 10_000:
        size = int(rng.choice([1, 10, 100, 1000]))
        names = [f"p{n}" for n in rng.integers(0, 1500, size)]
        if rng.random() < 0.6:
            new = {name: str(rng.choice(texts)) for name in names}
            index.add(new.items())
            live |= new
        else:
            index.delete(names)
            live = {k: v for k, v in live.items() if k not in set(names)}
        if done // 2500 != (done + size) // 2500:
            rebuilt = Bm25Index.build(tmp_path / "rebuilt", live.items())
            assert len(index) == len(rebuilt) == len(live)
            assert index.search(queries, 20) == rebuilt.search(queries, 20)
            assert Bm25Index(tmp_path / "lived").search(queries, 20) == index.search(queries, 20)
        done += size
    assert len(list((tmp_path / "lived").glob("segment-*"))) <= commits.SEGMENTS


def test_sync_analyses_what_changed_and_equals_a_rebuild(tmp_path: Path) -> None:
    before, texts = dict(_catalogue(1, 300)), [title for _, title in _catalogue(1, 300)]
    after = {k: v for k, v in before.items() if k > "p0040"} | {"p0100": "new words", "q": "w1 w2"}
    index = Bm25Index.build(tmp_path / "i", before.items())
    assert index.sync(after.items()) == 2
    rebuilt = Bm25Index.build(tmp_path / "rebuilt", after.items())
    assert index.search(texts, 10) == rebuilt.search(texts, 10)
    assert index.sync(after.items()) == 0


def test_another_analyser_means_analysing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "identity", lambda: "older code")
    documents = _catalogue(1, 50)
    Bm25Index.build(tmp_path / "i", documents)
    monkeypatch.undo()
    index = Bm25Index(tmp_path / "i")
    for use in (lambda: index.search(["w1"], 5), lambda: index.add([]), lambda: index.delete([])):
        with pytest.raises(ArtifactError, match="another version of the analyser; run build_bm25"):
            use()
    assert index.sync(documents) == 50
    assert index.sync(documents) == 0
    rebuilt = Bm25Index.build(tmp_path / "rebuilt", documents)
    assert index.search(["w1 w2"], 5) == rebuilt.search(["w1 w2"], 5)


def test_a_killed_commit_is_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Bm25Index.build(tmp_path / "i", [("a", "red shoe"), ("b", "red hat")])
    before = index.search(["red"], 5)

    def die(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        index.add([("a", "green shoe"), ("c", "red sofa")])
    monkeypatch.undo()
    reader = Bm25Index(tmp_path / "i")
    assert reader.search(["red"], 5) == before
    index.add([("c", "red sofa")])
    whole = [("a", "red shoe"), ("b", "red hat"), ("c", "red sofa")]
    rebuilt = Bm25Index.build(tmp_path / "rebuilt", whole)
    assert Bm25Index(tmp_path / "i").search(["red"], 5) == rebuilt.search(["red"], 5)
    assert reader.search(["red"], 5) == before  # what it has mapped stays as it was
    left = {p.name for p in (tmp_path / "i").iterdir()}
    assert len([name for name in left if name.startswith("segment-")]) == 1


def test_two_writers_take_turns(tmp_path: Path) -> None:
    Bm25Index.build(tmp_path / "i", [])
    one, other = Bm25Index(tmp_path / "i"), Bm25Index(tmp_path / "i")
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(writer.add, [(f"{name}{n}", f"red number{n}")])
            for n in range(10)
            for name, writer in (("one", one), ("other", other))
        ]
        for job in jobs:
            job.result()
    assert len(Bm25Index(tmp_path / "i")) == 20


def test_postings_are_mapped_and_a_missing_file_is_named(tmp_path: Path) -> None:
    Bm25Index.build(tmp_path / "i", _catalogue(0, 50))
    (part,), _ = commits.read(tmp_path / "i")
    assert isinstance(part.segment.docs.base, np.memmap)
    (tmp_path / "i" / part.name / "docs.npy").unlink()
    with pytest.raises(ArtifactError, match=r"docs\.npy is missing; run build_bm25"):
        Bm25Index(tmp_path / "i")


def test_of_two_documents_of_one_id_the_last_stays(tmp_path: Path) -> None:
    index = Bm25Index.build(tmp_path / "i", [("a", "red shoe"), ("a", "green shoe")])
    assert len(index) == 1
    assert index.search(["red"], 3) == [[]]
    assert [i for i, _ in index.search(["green"], 3)[0]] == ["a"]


def test_a_product_without_a_title_is_held_and_never_found(tmp_path: Path) -> None:
    index = Bm25Index.build(tmp_path / "i", [("a", ""), ("b", "?!"), ("c", "red shoe")])
    assert len(index) == 3
    assert [i for i, _ in index.search(["red shoe"], 5)[0]] == ["c"]


def test_queries_without_a_token_find_nothing_and_a_missing_index_says_so(tmp_path: Path) -> None:
    index = Bm25Index.build(tmp_path / "i", [("a", "red shoe")])
    assert index.search(["", "!?", "красный"], 3) == [[], [], []]
    assert Bm25Index.build(tmp_path / "empty", []).search(["red"], 3) == [[]]
    with pytest.raises(ArtifactError, match="run build_bm25"):
        Bm25Index(tmp_path / "nowhere")


def test_pseudo_pairs_stay_in_their_locale_and_drop_copies(tmp_path: Path) -> None:
    goods = products()
    copy = goods.filter(pl.col("product_id") == "zh00").with_columns(product_id=pl.lit("zh00copy"))
    goods = pl.concat([goods, copy])
    indexes = {
        str(locale): Bm25Index.build(
            tmp_path / str(locale), group.select("product_id", "title").iter_rows()
        )
        for (locale,), group in goods.group_by(["locale"])
    }
    found = pseudo_pairs(queries(), goods, indexes, 6)
    joined = found.join(goods, on="product_id", suffix="_of_product")
    assert (joined["locale"] == joined["locale_of_product"]).all()
    assert not joined.select("query_id", "title").is_duplicated().any()
    assert "zh00copy" not in found["product_id"]  # ranks behind zh00, its equal
    assert found.group_by("query_id").len()["len"].max() == 6
    ranks = found.group_by("query_id", maintain_order=True).agg("rank")["rank"].to_list()
    assert all(r == list(range(len(r))) for r in ranks)
    by_query = dict(found.group_by("query_id").agg("product_id").iter_rows())
    exact = relevant_products(pairs().filter(pl.col("grade") == 2))
    assert recall_at(by_query, exact) == 1.0


def test_copies_that_crowd_the_top_do_not_starve_a_query(tmp_path: Path) -> None:
    crowd = [(f"a{i:02d}", "red red shoe") for i in range(30)]
    others = [(f"b{i}", f"red shoe number{i}") for i in range(5)]
    index = Bm25Index.build(tmp_path / "i", crowd + others)
    found = distinct_hits(index, ["red", "nothing"], dict(crowd + others), 4)
    assert [i for i, _ in found[0]] == ["a00", "b0", "b1", "b2"]
    assert found[1] == []
