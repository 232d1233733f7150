"""Masking by class: against loops over random worlds; substitutes stay negatives (A56)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.records import PAIRS, PRODUCTS, QUERIES, SCORED
from csrm_tasks.retrieval.batches import draw
from csrm_tasks.retrieval.classes import Counts, TitleClasses, title_classes
from csrm_tasks.retrieval.ebr import EbrTrainer
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.losses import contrastive_loss
from csrm_tasks.retrieval.pairs import TrainingPairs, training_pairs
from csrm_tasks.sections import Ebr, SameClass
from csrm_tasks.text import normalise
from tests import retrieval_fixtures

LOCALES = ("ko-KR", "zh-TW")
PATHS = ("", "a > 1", "a > 1", "b > 1")  # the last level alone is no class
PRODUCT = st.tuples(
    st.sampled_from((*LOCALES, LOCALES[0])),
    st.sampled_from(["x", "X", "y", "z"]),
    st.sampled_from(PATHS),
)
JUDGED = st.tuples(st.integers(0, 2), st.integers(0, 9), st.sampled_from([0, 1, 2, 2, 2]))


def world(
    goods: list[tuple[str, str, str]], judged: list[tuple[int, int, int]], pseudo: list[int]
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, TrainingPairs]:
    """Return products, queries, train pairs and what the EBR learns from; queries are by number."""
    products = [(f"p{i}", loc, title, "", path, "") for i, (loc, title, path) in enumerate(goods)]
    queries = [(f"{loc}{n}", loc, f"Q{n}", f"q{n}", "", "label", 1)
               for n in range(3) for loc in LOCALES]  # fmt: skip
    unique = {(q, p % len(goods)): grade for q, p, grade in judged}
    pairs = [(f"{goods[p][0]}{q}/{p}", f"{goods[p][0]}{q}", f"p{p}", goods[p][0], grade, "train",
              1, 1) for (q, p), grade in unique.items()]  # fmt: skip
    scored = [(f"{goods[i % len(goods)][0]}{n % 3}", f"p{i % len(goods)}", goods[i % len(goods)][0],
               0.5, 0.5, 0.0) for n, i in enumerate(pseudo)]  # fmt: skip
    frames = [pl.DataFrame(rows, dict(schema), orient="row") for rows, schema in (
        (products, PRODUCTS), (queries, QUERIES), (pairs, PAIRS), (scored, SCORED))]  # fmt: skip
    return *frames[:3], training_pairs(frames[1], frames[0], frames[3], None)


def slowly(
    products: pl.DataFrame, queries: pl.DataFrame, train: pl.DataFrame, config: SameClass,
    locale: str, query: str, own: str, other: str,
) -> bool:  # fmt: skip
    """Whether the title ``other`` is no negative of (query, own), by looking at every row."""
    named = {q: norm for q, norm, loc in queries.select("query_id", "norm", "locale").rows()
             if loc == locale}  # fmt: skip
    here = [
        (p, normalise(t), c)
        for p, t, c, loc in products.select("product_id", "title", "category", "locale").rows()
        if loc == locale
    ]
    paths = [{c for _, t, c in here if t == title} for title in (own, other)]
    if paths[0] != paths[1] or len(paths[0]) != 1 or own == other:
        return False
    (path,) = paths[0]
    titles = {p: t for p, t, _ in here}
    inside = {p for p, _, c in here if c == path}
    others = exact = 0
    for norm in set(named.values()):
        grades = [g for q, p, g, loc in train.select("query_id", "product_id", "grade", "locale")
                  .rows() if loc == locale and named[q] == norm and p in inside]  # fmt: skip
        if 2 in grades:
            grades.remove(2)
            others, exact = others + len(grades), exact + grades.count(2)
    if not path or others < config.pairs or exact < config.exact * others:
        return False
    return not any(
        loc == locale and named[q] == query and titles[p] == other and g != 2
        for q, p, g, loc in train.select("query_id", "product_id", "grade", "locale").rows()
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(PRODUCT, min_size=4, max_size=10), st.lists(JUDGED, min_size=8, max_size=30),
    st.lists(st.integers(0, 9), min_size=1, max_size=12), st.sampled_from([0.25, 0.5, 1.0]),
    st.integers(1, 3), st.integers(0, 10**6),
)  # fmt: skip
def test_what_is_masked_is_what_a_look_at_every_row_says(
    goods: list[tuple[str, str, str]], judged: list[tuple[int, int, int]], pseudo: list[int],
    exact: float, least: int, seed: int,
) -> None:  # fmt: skip
    products, queries, train, data = world(goods, judged, pseudo)
    config = SameClass(exact=exact, pairs=least)
    classes, counts = title_classes(data, products, queries, train, config)
    batch = draw(data, 8, 8, np.random.default_rng(seed))
    mask = classes.masked(batch.queries, batch.titles, batch.query_of, batch.title_of)
    titles = [data.titles[row] for row in batch.titles]
    owner = {row: part.locale for part in data.locales for row in part.catalogue.tolist()}
    for b, row in enumerate(mask):
        query = data.queries[batch.queries[batch.query_of[b]]]
        own = titles[batch.title_of[b]]
        locale = owner[int(batch.titles[0])]
        for p, other in enumerate(titles):
            expected = slowly(products, queries, train, config, locale, query, own, other)
            assert bool(row[p]) == expected, (query, own, other)
    assert counts.masked <= counts.known <= counts.classes
    assert counts.titles == int((classes.of >= 0).sum())


def test_a_class_with_substitutes_keeps_all_its_negatives() -> None:
    """The class "a > 1" holds what stands in for the exact ones, "a > 2" only exact ones."""
    goods = [("ko-KR", f"{c}{i}", f"a > {c}") for c in (1, 2) for i in range(5)]
    judged = [(q, i, 2 if i < 2 else 1) for q in range(3) for i in range(5)]
    judged += [(q, 5 + i, 2) for q in range(3) for i in range(4)]
    products, queries, train, data = world(goods, judged, list(range(10)))
    found, counts = title_classes(data, products, queries, train, SameClass(pairs=5))
    assert {data.titles[row] for row in np.flatnonzero(found.of >= 0)} == {
        f"2{i}" for i in range(5)
    }
    assert str(counts) == "classes 2, known 2, masked 1, titles 5"
    more = pl.concat(
        [train, train.head(1).with_columns(product_id=pl.lit("p9"), grade=pl.lit(0, pl.Int8))]
    )
    spared, _ = title_classes(data, products, queries, more, SameClass(pairs=5, exact=0.8))
    rows = {data.titles[row]: row for row in data.locales[0].catalogue.tolist()}
    asked = np.array([data.queries.index("q0")])
    pair = np.array([rows["20"], rows["21"], rows["29".replace("9", "4")]])
    mask = spared.masked(asked, pair, np.array([0]), np.array([0]))
    assert mask.tolist() == [[False, True, False]]  # the last was judged irrelevant for this query
    none, _ = title_classes(data, products, queries, train, SameClass(pairs=10))
    assert (none.of < 0).all()  # too few were judged: nothing is known


def test_the_trainers_loss_leaves_masked_titles_out(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    products, queries = retrieval_fixtures.products(), retrieval_fixtures.queries()
    base = retrieval_fixtures.tiny_encoder(
        tmp_path / "base", [*products["title"], *queries["norm"]]
    )
    data = training_pairs(queries, products, retrieval_fixtures.scored(), None)
    given: dict[str, Any] = {"encoder": "-", "dim": 16, "steps": 4, "batch": 24, "pool": 12}
    config = Ebr(**given)
    classes = TitleClasses(np.arange(len(data.titles)) % 3, np.zeros(0, np.int64))

    def trainer(of: TitleClasses | None) -> EbrTrainer:
        model = BiEncoder.from_base(str(base), 16, 24, seed=0)
        return EbrTrainer(model, data, config, 7, tmp_path / "work", of)

    batch = draw(data, 24, 12, np.random.default_rng(3))
    masked, plain = trainer(classes), trainer(None)
    with torch.no_grad():
        masked.model.eval(), plain.model.eval()
        cosine, positive = plain.cosines(batch)
        allowed = batch.allowed.copy()
        for b in range(len(allowed)):
            for p in range(allowed.shape[1]):
                if batch.titles[p] % 3 == batch.titles[batch.title_of[b]] % 3:
                    allowed[b, p] = False
        weight = torch.from_numpy(batch.weight)
        expected = contrastive_loss(cosine, positive, torch.from_numpy(allowed), weight, 0.05)
        found, whole = masked.batch_losses(batch)[0], plain.batch_losses(batch)[0]
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(found) < float(whole)


def test_counts_are_said() -> None:
    assert str(Counts(4, 3, 2, 9)) == "classes 4, known 3, masked 2, titles 9"
