"""Semantic negatives against loops over small random worlds: what is drawn, and what never is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from csrm_tasks.blobs import text_digest
from csrm_tasks.errors import ConfigError
from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.records import NEGATIVES, PAIRS, PRODUCTS, QUERIES
from csrm_tasks.retrieval.negatives import (
    Counts,
    LocaleNegatives,
    as_table,
    askable,
    kinds,
    refuse_swamped,
    said_of,
)
from csrm_tasks.sections import Negatives
from csrm_tasks.text import normalise, pair_id, query_id

LOCALES = ("ko-KR", "zh-TW")
WORDS = ["tea", "pot", "red", "big", "set", "cup", "mug", "tin"]


def number(*parts: str) -> float:
    return int(text_digest(*parts), 16) / 2**64


def ranking(channel: str, norm: str, ids: Sequence[str], k: int) -> list[str]:
    return sorted(ids, key=lambda p: number(channel, norm, p), reverse=True)[:k]


@dataclass
class FakeNear:
    """Cosines by hash, and a ranking by them."""

    norms: list[str]
    ids: list[str]

    def hits(self, k: int) -> list[list[str]]:
        return [ranking("ebr", norm, self.ids, k) for norm in self.norms]

    def cosine(self, query: int, product: str) -> float:
        return number("ebr", self.norms[query], product)


@dataclass
class World:
    """A snapshot's tables, made from a seed: texts are shared by locales, products are not."""

    queries: pl.DataFrame
    products: pl.DataFrame
    pairs: pl.DataFrame
    clicked: pl.DataFrame

    @classmethod
    def made(cls, seed: int) -> World:
        rng = random.Random(seed)
        texts = [f"{a} {b}" for a in WORDS[:4] for b in WORDS[4:]]
        side = {t: rng.choice(["train", "train", "train", "dev", "gold"]) for t in texts}
        queries, products, pairs, clicked = [], [], [], []
        for locale in LOCALES:
            ids = [f"p{i:02d}" for i in range(rng.randint(8, 40))]  # alike in both locales
            for product in ids:
                title = " ".join(rng.sample(WORDS, rng.randint(2, 5)))
                category = rng.choice(["a", "b", "b > c", ""])
                products.append((product, locale, title, "", category, ""))
            for text in rng.sample(texts, rng.randint(1, 8)):
                own = query_id(locale, text)
                queries.append((own, locale, text, normalise(text), "", "label", 1))
                # a broken snapshot, too: one text on two sides
                split = side[text] if rng.random() < 0.8 else "train"
                for product in rng.sample(ids, rng.randint(1, 5)):
                    keys = (pair_id(own, product), own, product, locale)
                    pairs.append((*keys, rng.choice([0, 1, 2, 2]), split, 1, 1))
                if rng.random() < 0.3:
                    clicked.append((own, rng.choice(ids), locale))
        keys = {name: PAIRS[name] for name in ("query_id", "product_id", "locale")}
        return cls(
            pl.DataFrame(queries, QUERIES, orient="row"),
            pl.DataFrame(products, PRODUCTS, orient="row"),
            pl.DataFrame(pairs, PAIRS, orient="row"),
            pl.DataFrame(clicked, keys, orient="row"),
        )

    def shuffled(self, seed: int) -> World:
        frames = (self.queries, self.products, self.pairs, self.clicked)
        return World(*(f.sample(fraction=1.0, shuffle=True, seed=seed) for f in frames))

    def without(self, query: str) -> World:
        """Return the world without one query and all that is said of it."""
        left = [f.filter(pl.col("query_id") != query)
                for f in (self.queries, self.pairs, self.clicked)]  # fmt: skip
        return World(left[0], self.products, *left[1:])

    def draw(self, config: Negatives, seed: int) -> tuple[pl.DataFrame, Counts]:
        counts = Counts()
        train = self.pairs.filter(split="train")
        said = said_of(self.queries, self.products, train, self.clicked)
        asked = askable(self.queries, self.pairs, counts)
        parts = [pl.DataFrame(schema=NEGATIVES)]
        for locale in LOCALES:
            here = asked.filter(locale=locale)
            ids = self.products.filter(locale=locale)["product_id"].sort().to_list()
            tables = {
                "queries": here, "products": self.products.filter(locale=locale),
                "pairs": train.filter(locale=locale),
            }  # fmt: skip
            near = FakeNear(here["norm"].to_list(), ids)
            drawer = LocaleNegatives(
                tables, said,
                lambda norms, k, ids=ids: [ranking("bm25", n, ids, k) for n in norms],  # type: ignore[misc]
                near, config, seed,
            )  # fmt: skip
            parts.append(as_table(list(drawer.draw(counts)), locale))
        return pl.concat(parts).sort("query_id", "pair_id"), counts


CONFIGS = st.sampled_from([
    Negatives(per_query=4, easy=0.5, ranked=0.25, mined=0.25, first=3, last=8),
    Negatives(per_query=3, easy=0.0, ranked=0.5, mined=0.5, first=0, last=5, channel="bm25"),
    Negatives(per_query=2, easy=1.0, ranked=0.0, mined=0.0, first=0, last=3),
    Negatives(per_query=6, easy=0.0, ranked=0.0, mined=1.0, first=1, last=6),
])  # fmt: skip


def check_kind(world: World, row: dict, config: Negatives) -> None:  # type: ignore[type-arg]
    """By its definition, over the whole catalogue: the kind, channel and rank that are told."""
    own = world.pairs.filter(query_id=row["query_id"], split="train")
    goods = world.products.filter(locale=row["locale"])
    category = dict(goods.select("product_id", "category").iter_rows())
    norm = world.queries.filter(query_id=row["query_id"])["norm"][0]
    ids = sorted(category)
    hits = {c: ranking(c, norm, ids, config.last) for c in ("bm25", "ebr")}
    product, channel = row["product_id"], row["channel"]
    graded = {g: {category[p] for p in own.filter(grade=g)["product_id"]} - {""} for g in (1, 2)}
    if row["kind"] == "easy":
        assert channel == "random" and row["rank"] is None
        assert category[product] not in graded[1] | graded[2] | {""}
        assert product not in hits["bm25"] + hits["ebr"]
    elif row["kind"] == "ranked":
        assert channel == config.channel and config.first <= row["rank"] < config.last
        assert hits[channel][row["rank"]] == product
    else:
        found = {c for c in hits if product in hits[c]}
        found |= {"category"} if category[product] in graded[2] else set()
        assert found == {channel} and 0 <= row["rank"] < config.last
        if channel != "category":
            assert hits[channel][row["rank"]] == product


def jaccard(a: str, b: str) -> float:
    one, other = set(tokens(a)), set(tokens(b))
    return len(one & other) / max(1, len(one | other))


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 10**6), CONFIGS, st.integers(0, 3))
def test_no_held_out_text_no_judged_pair_no_copy_of_what_is_right(
    seed: int, config: Negatives, draw: int
) -> None:
    world = World.made(seed)
    drawn, counts = world.draw(config, draw)
    norm_of = dict(world.queries.select("query_id", "norm").iter_rows())
    judged = world.pairs.with_columns(norm=pl.col("query_id").replace_strict(norm_of))
    goods = world.products.select("product_id", "locale", "title").rows()
    titles = {(product, locale): title for product, locale, title in goods}
    held_out = set(judged.filter(pl.col("split") != "train")["norm"])
    trained = set(judged.filter(split="train")["query_id"])
    grades = judged.select("norm", "product_id", "locale", "grade").rows()
    grades += [(norm_of[q], p, locale, 2) for q, p, locale in world.clicked.rows()]
    assert drawn["pair_id"].n_unique() == len(drawn)
    for row in drawn.iter_rows(named=True):
        norm, title = norm_of[row["query_id"]], titles[row["product_id"], row["locale"]]
        assert row["query_id"] in trained and norm not in held_out
        said = [(p, titles[p, own], g > 0) for n, p, own, g in grades if n == norm]
        for product, other, right in said:
            assert row["product_id"] != product and normalise(title) != normalise(other)
            assert not right or jaccard(title, other) < 0.8
        exact = judged.filter(query_id=row["query_id"], grade=2)["product_id"]
        near = [number("ebr", norm, p) for p in exact]
        assert not near or number("ebr", norm, row["product_id"]) <= 0.95 * max(near)
        check_kind(world, row, config)
    for (_,), own in drawn.group_by("query_id"):
        wanted = Counter(kinds(config, 0.0)) | Counter(kinds(config, 0.999))
        assert all(n <= wanted[kind] for kind, n in own.group_by("kind").len().iter_rows())
    assert counts.queries + counts.held_out == len(trained)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), CONFIGS, st.integers(0, 3), st.integers(0, 10**6))
def test_neither_the_order_of_rows_nor_another_query_matters(
    seed: int, config: Negatives, draw: int, order: int
) -> None:
    world = World.made(seed)
    drawn, counts = world.draw(config, draw)
    again, counted = world.shuffled(order).draw(config, draw)
    assert again.equals(drawn) and counted == counts
    gone = world.queries.sample(1, seed=order)["query_id"][0]
    # of a text that another locale has as well, what is said there is known: leave those alone
    shared = world.queries.join(world.queries.filter(query_id=gone), on="norm", how="semi")
    left = world.without(gone).draw(config, draw)[0]
    others = ~pl.col("query_id").is_in(shared["query_id"].implode())
    assert left.filter(others).equals(drawn.filter(others))


def test_another_seed_draws_others_and_what_runs_out_is_counted() -> None:
    config = Negatives(per_query=4, first=3, last=8)
    worlds = [World.made(seed) for seed in range(8)]
    assert any(not w.draw(config, 1)[0].equals(w.draw(config, 2)[0]) for w in worlds)
    world = worlds[1]
    drawn, counts = world.draw(config, 1)
    full = drawn.group_by("query_id").len().filter(pl.col("len") == 4).height
    assert counts.short == counts.queries - full > 0
    assert "short" in str(counts)


@pytest.mark.parametrize("per_query", [1, 2, 3, 7])
def test_kinds_come_in_the_shares_that_are_set(per_query: int) -> None:
    config = Negatives(per_query=per_query, easy=0.2, ranked=0.5, mined=0.3)
    found = Counter(k for i in range(1000) for k in kinds(config, i / 1000))
    for kind, share in (("easy", 0.2), ("ranked", 0.5), ("mined", 0.3)):
        assert found[kind] == pytest.approx(1000 * per_query * share, abs=5)
    none = Negatives(per_query=per_query, easy=0.9, ranked=0.1, mined=0.0)
    assert "mined" not in {k for i in range(1000) for k in kinds(none, i / 1000)}


def test_negatives_that_would_swamp_a_language_are_refused_in_a_line() -> None:
    world = World.made(1)
    train = world.pairs.filter(split="train")
    drawn, _ = world.draw(Negatives(per_query=8, first=1, last=8), 0)
    most = dict(train.group_by("locale").len().iter_rows())
    full = {locale: n for locale, n in drawn.group_by("locale").len().iter_rows()}
    locale = max(full, key=lambda name: full[name] / most[name])
    limit = most[locale] / full[locale]
    refuse_swamped(drawn, train, min(1.0, limit))
    assert limit < 1.0
    with pytest.raises(ConfigError, match=f"judged train pairs of {locale}.*lower") as caught:
        refuse_swamped(drawn, train, limit * 1.01)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"easy": 0.5, "ranked": 0.5, "mined": 0.5}, "make their sum 1"),
        ({"first": 50, "last": 50}, "no rank is left"),
        ({"weight": 0.0}, "greater than 0"),
        ({"per_query": -1}, "greater than or equal to 0"),
        ({"channel": "category"}, "bm25"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Negatives.model_validate(wrong)
