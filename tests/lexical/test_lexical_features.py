"""Lexical features: against a slow reference on sets of strings, and what each one means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.lexical.analyser import pieces
from csrm_tasks.lexical.brands import BrandForms
from csrm_tasks.lexical.features import NAMES, QueryTerms, features, pair_features
from csrm_tasks.lexical.terms import (
    MOST,
    SEPARATOR,
    Lexicon,
    ProductTerms,
    quantity,
    term_hash,
)
from csrm_tasks.text import normalise

FORMS = {"hanbit": "HANBIT", "韓光燦": "HANBIT", "敦潭": "DONDAM", "lg": "LG", "무지": "MUJI"}
TITLES = [
    "[免運] 韓光燦 安城家庭號湯麵 500g", "HANBIT 辣味 湯麵 2公斤", "敦潭 泡菜拌麵 300g 2包",
    "LG 冰箱 300L", "LG冰箱", "무지 반팔 티셔츠 흰색 M", "Red tea pot 1,5 l", "紅色 茶壺", "茶壺",
    "",
]  # fmt: skip
TEXTS = [SEPARATOR.join(x) for x in zip(TITLES, ["食品 > 麵類", "家電", ""] * 4, strict=False)]
LEXICON = Lexicon.fit([*TEXTS, *TITLES], FORMS)

Kinds = dict[str, list[str]]


def parts_of(norm: str, forms: BrandForms = LEXICON.brands) -> Kinds:
    """Return the terms of a text as strings, by kind; slow and obvious."""
    found: Kinds = {"token": [], "gram": [], "amount": [], "unit": []}
    found["brand"] = [brand for _, _, brand in forms.find(norm)]
    for kind, _, tokens in pieces(norm):
        found["token"] += tokens
        if kind in ("han", "hangul"):
            found["gram"] += sorted({c for t in tokens for c in t})
        else:
            word = f"^{tokens[0]}$"
            found["gram"] += [word[i : i + 3] for i in range(len(word) - 2)]
        if kind in ("unit", "number"):
            value, unit = quantity(tokens[0])
            found["amount"].append(f"{value:.9g} {unit}")
            found["unit"].append(unit)
    return found


def weight(kind: str, term: str) -> float:
    """Return the weight of one term."""
    code = {"token": 0, "brand": 4}[kind]
    return float(LEXICON.weights.of(np.array([term_hash(code, term)], np.uint32))[0])


def covered(terms: set[tuple[str, str]], there: Kinds, alike: bool = False) -> float:
    """Return the share of (kind, term) that is there, by weight or each alike."""
    weights = {t: 1.0 if alike else weight(*t) for t in terms}
    if not weights:
        return 0.0
    return sum(w for (kind, t), w in weights.items() if t in there[kind]) / sum(weights.values())


def reference(query: str, text: str) -> dict[str, float]:
    """Return the features of one pair."""
    norm = normalise(query)
    blank, words = norm, {}
    for start, end, brand in LEXICON.brands.find(norm):
        blank = blank[:start] + " " * (end - start) + blank[end:]
        words[start, 0] = {("brand", brand)}
    for _, place, tokens in pieces(blank):
        start = norm.rfind(" ", 0, place) + 1
        words.setdefault((start, 1), set()).update(("token", t) for t in tokens)
    asked = parts_of(blank)
    asked["brand"] = [b for _, _, b in LEXICON.brands.find(norm)]
    title, _, rest = text.partition(SEPARATOR)
    in_title, in_rest = parts_of(normalise(title)), parts_of(normalise(rest))
    in_text = {k: in_title[k] + in_rest[k] for k in in_title}
    terms = {(k, t) for k in ("token", "brand") for t in asked[k]}
    grams = {("gram", t) for t in asked["gram"]}
    shares = [covered(words[k], in_text) for k in sorted(words)]
    titled = [covered(words[k], in_title) for k in sorted(words)]
    made = dict.fromkeys(NAMES, 0.0)
    made["terms_in_title"], made["terms_in_text"] = (covered(terms, x) for x in (in_title, in_text))
    made["letters_in_title"] = covered(grams, in_title, alike=True)
    made["letters_in_text"] = covered(grams, in_text, alike=True)
    if words:
        made["words_in_title"] = float(np.mean([s > 1 - 1e-4 for s in titled]))
        made["words_in_text"] = float(np.mean([s > 1 - 1e-4 for s in shares]))
        made["weakest_word"], made["last_word"] = min(shares), shares[-1]
        made["whole_query"] = float(all(s > 1 - 1e-4 for s in shares))
    if asked["brand"]:
        brands = {("brand", b) for b in asked["brand"]}
        made["brand_equal"] = covered(brands, in_text, alike=True)
        made["brand_other"] = float(bool(in_text["brand"]) and made["brand_equal"] == 0)
    amounts = set(zip(asked["amount"], asked["unit"], strict=True))
    if amounts:
        missing = [(a, u) for a, u in amounts if a not in in_text["amount"]]
        made["quantity_equal"] = 1 - len(missing) / len(amounts)
        made["quantity_other"] = sum(u in in_text["unit"] for _, u in missing) / len(amounts)
    kinds = ("token", "gram", "amount", "unit", "brand")
    sizes = [
        len({(k, t) for k in kinds for t in x[k]}) + bool(x["brand"]) for x in (in_text, asked)
    ]
    made["length"] = math.log((sizes[0] + 1) / (sizes[1] + 1))
    return made


PIECES = st.sampled_from(
    [*FORMS, "湯麵", "麵", "茶壺", "紅色", "500g", "0.5 kg", "500", "300ml", "반팔티", "티셔츠",
     "tea", "pot", "iphone15", "１公斤", "1½", "!", "|", "の", "ｶﾞ", "lgd", "免運"]
)  # fmt: skip
GLUE = st.sampled_from(["", " ", "  ", SEPARATOR])
BUILT = st.lists(st.tuples(PIECES, GLUE), max_size=8).map(lambda x: "".join(a + b for a, b in x))
WRITTEN = st.one_of(BUILT, st.text(max_size=24))


@settings(max_examples=400, deadline=None)
@given(WRITTEN, st.lists(WRITTEN, max_size=4))
def test_features_equal_a_slow_reference(query: str, texts: list[str]) -> None:
    products = ProductTerms.of(texts, LEXICON.brands)
    made = features(QueryTerms.of(query, LEXICON), products, np.arange(len(texts)))
    wanted = [list(reference(query, text).values()) for text in texts]
    np.testing.assert_allclose(made, np.reshape(wanted, (-1, len(NAMES))), atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(BUILT, min_size=1, max_size=5), st.lists(BUILT, min_size=1, max_size=5), st.data())
def test_pairs_are_the_same_one_by_one(
    queries: list[str], texts: list[str], data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, 12))
    query, product = (
        np.array(data.draw(st.lists(st.integers(0, len(x) - 1), min_size=n, max_size=n)), np.int64)
        for x in (queries, texts)
    )
    made = pair_features(queries, texts, query, product, LEXICON)
    for i in range(n):
        alone = features(
            QueryTerms.of(queries[query[i]], LEXICON),
            ProductTerms.of([texts[product[i]]], LEXICON.brands),
            np.zeros(1, np.int64),
        )
        np.testing.assert_allclose(made[i], alone[0], atol=1e-6)


def feature(name: str, query: str, text: str) -> float:
    """Return one feature of one pair."""
    zero = np.zeros(1, np.int64)
    return float(pair_features([query], [text], zero, zero, LEXICON)[0, NAMES.index(name)])


@pytest.mark.parametrize(
    ("query", "text", "equal", "other"),
    [
        ("hanbit 湯麵", "韓光燦 湯麵", 1, 0),
        ("hanbit 湯麵", "敦潭 湯麵", 0, 1),
        ("hanbit 湯麵", "湯麵", 0, 0),
        ("湯麵", "敦潭 湯麵", 0, 0),
        ("hanbitter", "韓光燦 湯麵", 0, 0),
        ("lg冰箱", "LG 冰箱", 1, 0),
    ],
)
def test_a_brand_is_equal_other_or_none(query: str, text: str, equal: int, other: int) -> None:
    assert feature("brand_equal", query, text) == equal
    assert feature("brand_other", query, text) == other


@pytest.mark.parametrize(
    ("query", "text", "equal", "other"),
    [
        ("茶 500 ml", "茶 500ml", 1, 0),
        ("茶 0.5公升", "茶 500ml", 1, 0),
        ("米 1kg", "米 1公斤", 1, 0),
        ("米 1,000 g", "米 1公斤", 1, 0),
        ("茶 500ml", "茶 300ml", 0, 1),
        ("茶 500ml", "茶 500g", 0, 0),
        ("茶 500ml", "茶", 0, 0),
        ("茶", "茶 300ml", 0, 0),
    ],
)
def test_a_quantity_is_equal_contradicted_or_not_said(
    query: str, text: str, equal: int, other: int
) -> None:
    assert feature("quantity_equal", query, text) == equal
    assert feature("quantity_other", query, text) == other


def test_a_long_product_keeps_the_terms_of_its_title() -> None:
    title = " ".join(f"w{i}" for i in range(500))
    values = ProductTerms.of([title + SEPARATOR + "tea"], LEXICON.brands).values
    assert len(values) == MOST
    assert (values & 1).all()
    word = "".join(
        f"{i:03d}x" for i in range(100)
    )  # 300 n-grams, which wait until all words are kept
    values = ProductTerms.of([f"{word} pot" + SEPARATOR + "tea"], LEXICON.brands).values
    assert len(values) == MOST
    assert {term_hash(0, "pot") * 2 + 1, term_hash(0, "tea") * 2} <= set(values.tolist())


def test_a_rare_term_weighs_more_and_an_unknown_one_most() -> None:
    known = [weight("token", word) for word in ("茶壺", "湯麵", "xyzzy")]
    lexicon = Lexicon.fit([f"a{i} the" for i in range(50)] + ["pot a", "pot b"], {})
    the, pot, other = lexicon.weights.of(
        np.array([term_hash(0, w) for w in ("the", "pot", "qq")], np.uint32)
    )
    assert the < pot < other
    assert max(known) == known[-1] == pytest.approx(LEXICON.weights.rarest)
