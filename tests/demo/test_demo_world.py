"""World: the same seed makes the same market, and the true grade follows its rule."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from csrm_tasks.demo.market.compose import Spec
from csrm_tasks.demo.market.grades import true_grade
from csrm_tasks.demo.market.lexicon import load_lexicon
from csrm_tasks.demo.market.queries import SHARES, Query, make_queries
from csrm_tasks.demo.market.typos import misspell
from csrm_tasks.demo.market.world import SOURCE, TARGET, World, make_world
from csrm_tasks.text import normalise


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(load_lexicon(), products=3000, seed=3)


def type_at(world: World, key: str) -> int:
    return [t.key for t in world.lexicon.types].index(key)


def test_same_seed_same_world_other_seed_other_world(world: World) -> None:
    again = make_world(load_lexicon(), products=3000, seed=3)
    other = make_world(load_lexicon(), products=3000, seed=4)
    assert again.target.products == world.target.products
    assert np.array_equal(again.source.popularity, world.source.popularity)
    assert other.target.products != world.target.products


def test_size_and_ids(world: World) -> None:
    ids = [p.product_id for c in (world.source, world.target) for p in c.products]
    assert len(ids) == len(set(ids)) == 3000


def test_products_carry_what_they_are(world: World) -> None:
    """Values show in title or description; the category is the type's; brands stay in groups."""
    lexicon = world.lexicon
    for product in world.target.products:
        spec, text = product.spec, product.title + product.description
        group = lexicon.types[spec.type].group
        assert all(lexicon.values[v].words.zh in text for v in spec.values)
        assert product.category == lexicon.groups[group].path.zh
        assert group in lexicon.brands[spec.brand].groups


def test_nicknames_show_in_some_titles_or_in_none(world: World) -> None:
    for nickname in (k for k in world.lexicon.nicknames if k.lang == "zh"):
        meant = [
            p
            for p in world.target.products
            if (p.spec.type, p.spec.brand) == (nickname.type, nickname.brand)
        ]
        shown = sum(nickname.text in p.title for p in meant)
        assert 0 < shown < len(meant) if nickname.in_titles else shown == 0 < len(meant)


@pytest.mark.parametrize("locale", [SOURCE, TARGET])
def test_queries_are_distinct_and_of_every_kind(world: World, locale: str) -> None:
    made = make_queries(world, locale, 900)
    kinds = Counter(q.kind for q in made.queries)
    assert len({normalise(q.text) for q in made.queries}) == len(made.queries) >= 890
    assert set(kinds) == set(SHARES) and min(kinds.values()) >= 40
    assert made.popularity.sum() == pytest.approx(1.0)
    top = np.sort(made.popularity)[::-1]
    assert top[:90].sum() > 0.35  # a head of a tenth gets over a third of the searches


def test_true_grade_rule(world: World) -> None:
    lexicon = world.lexicon
    milk, candy, yogurt = (type_at(world, k) for k in ("milk", "milk_caramel", "yogurt"))
    asked = Query("x", "attribute", milk, brand=5, values=(7,))
    cases = {
        Spec(milk, 5, (7, 9)): 2,
        Spec(milk, 5, (9,)): 1,
        Spec(milk, 6, (7,)): 1,
        Spec(yogurt, 5, (7,)): 1,
        Spec(candy, 5, (7,)): 0,
    }
    assert {s: int(true_grade(lexicon, asked, s)) for s in cases} == cases


def test_true_grade_of_a_brand_query(world: World) -> None:
    lexicon = world.lexicon
    home = lexicon.brands[0].groups[0]
    inside = next(i for i, t in enumerate(lexicon.types) if t.group == home)
    outside = next(i for i, t in enumerate(lexicon.types) if t.group != home)
    asked = Query("x", "brandonly", None, brand=0)
    specs = [Spec(outside, 0, ()), Spec(inside, 1, ()), Spec(outside, 1, ())]
    assert [int(true_grade(lexicon, asked, s)) for s in specs] == [2, 1, 0]


@pytest.mark.parametrize(("lang", "text"), [("ko", "국물라면"), ("zh", "三合一咖啡")])
def test_a_slip_changes_one_place(lang: str, text: str) -> None:
    for u in np.linspace(0, 0.99, 12):
        for v in np.linspace(0, 0.99, 7):
            slip = misspell(text, "ko" if lang == "ko" else "zh", float(u), float(v))
            changed = sum(a != b for a, b in zip(slip, text, strict=False))
            assert slip != text and (changed <= 2 or len(slip) == len(text) - 1)


def test_a_catalogue_is_in_one_language(world: World) -> None:
    text = [
        "".join(f"{p.title}{p.category}{p.description}" for p in c.products)
        for c in (world.source, world.target)
    ]
    assert not any("一" <= c <= "鿿" for c in text[0])
    assert not any("가" <= c <= "힣" for c in text[1])
