"""The generated world: which products a shop of each locale sells, and how popular they are.

One number sizes a world: products of both locales together. Types are drawn with a mild skew, a
brand only sells in its groups, and a product has a value for one or both attributes of its group.
Every nickname has several products of its brand and type, half of which carry it in the title
where the nickname is of the kind that titles show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.blobs import text_digest
from csrm_tasks.demo.market import compose
from csrm_tasks.demo.market.compose import CHOICES, Spec, pick
from csrm_tasks.demo.market.lexicon import LANG_OF, Lexicon, Nickname

IN_TITLE = 0.5  # share of a nickname's products whose title has it
SOURCE, TARGET = "ko-KR", "zh-TW"
MORE_SOURCES, JUDGED_IN = ("en-US", "de-DE"), ("id-ID",)  # of a market of many languages


@dataclass(frozen=True, slots=True)
class Product:
    """One row of a catalogue, with what it truly is."""

    product_id: str
    spec: Spec
    title: str
    brand: str
    category: str
    description: str


@dataclass(frozen=True)
class Catalogue:
    """The products of one locale, and the arrays by which they are found."""

    locale: str
    products: tuple[Product, ...]
    popularity: NDArray[np.float64]  # (N,), mean about 1, heavy-tailed
    types: NDArray[np.int64] = field(init=False)  # (N,)
    brands: NDArray[np.int64] = field(init=False)  # (N,)
    values: NDArray[np.int64] = field(init=False)  # (N, 2), -1 where there is none

    def __post_init__(self) -> None:
        specs = [p.spec for p in self.products]
        object.__setattr__(self, "types", np.array([s.type for s in specs], dtype=np.int64))
        object.__setattr__(self, "brands", np.array([s.brand for s in specs], dtype=np.int64))
        two = [(*s.values, -1, -1)[:2] for s in specs]
        object.__setattr__(self, "values", np.array(two, dtype=np.int64))


@dataclass(frozen=True)
class World:
    """A lexicon and the catalogues made from it."""

    lexicon: Lexicon
    source: Catalogue
    target: Catalogue
    seed: int
    more_sources: Mapping[str, Catalogue] = field(default_factory=dict)  # by locale
    judged_in: Mapping[str, Catalogue] = field(default_factory=dict)  # no labels but gold

    @property
    def others(self) -> dict[str, Catalogue]:
        """The catalogues beside the two that every market has."""
        return {**self.more_sources, **self.judged_in}

    def catalogue(self, locale: str) -> Catalogue:
        """Return the catalogue of ``locale``."""
        if locale in self.others:
            return self.others[locale]
        return self.source if locale == SOURCE else self.target

    @property
    def size(self) -> float:
        """How many times the default demo market this is, for counts other than products."""
        return float(np.sqrt((len(self.source.products) + len(self.target.products)) / 5000))


def make_world(lexicon: Lexicon, products: int, seed: int) -> World:
    """Return the world of ``products`` products, the same for the same arguments."""
    source = make_catalogue(lexicon, SOURCE, products - products // 2, seed)
    target = make_catalogue(lexicon, TARGET, products // 2, seed)
    return World(lexicon, source, target, seed)


def make_multi_world(lexicon: Lexicon, products: int, seed: int) -> World:
    """Return a world with more languages, each with as many products as the target has."""

    def made(locales: Sequence[str]) -> dict[str, Catalogue]:
        return {x: make_catalogue(lexicon, x, products // 2, seed) for x in locales}

    world = make_world(lexicon, products, seed)
    return replace(world, more_sources=made(MORE_SOURCES), judged_in=made(JUDGED_IN))


def stream(seed: int, *names: str) -> np.random.Generator:
    """Return a generator of its own for one part of the world, so that parts do not shift."""
    return np.random.default_rng([seed, int(text_digest(*names), 16)])


def make_catalogue(lexicon: Lexicon, locale: str, n: int, seed: int) -> Catalogue:
    """Return ``n`` products of ``locale``: nicknamed ones first, the rest drawn by type."""
    rng = stream(seed, "products", locale)
    known = _nicknamed(lexicon, locale, n)
    weights = rng.permutation(1.0 / np.arange(1, len(lexicon.types) + 1) ** 0.3)
    drawn = rng.choice(len(lexicon.types), size=n, p=weights / weights.sum())
    choices = rng.random((n, CHOICES))
    extra = rng.random((n, 4))
    sellers = lexicon.brands_of()
    products = []
    for i, (u, e) in enumerate(zip(choices.tolist(), extra.tolist(), strict=True)):
        nickname = known[i] if i < len(known) else None
        type_ = nickname.type if nickname else int(drawn[i])
        brand = nickname.brand if nickname else pick(sellers[lexicon.types[type_].group], e[0])
        spec = Spec(type_, brand, draw_values(lexicon, type_, e[1:]))
        shown = nickname.text if nickname and nickname.in_titles and i % 2 == 0 else ""
        products.append(make_product(lexicon, locale, f"{locale[3:]}{i:07d}", spec, u, shown))
    return Catalogue(locale, tuple(products), rng.lognormal(-0.5, 1.0, n))


def _nicknamed(lexicon: Lexicon, locale: str, n: int) -> list[Nickname]:
    """Each nickname of the locale several times in a row (an even number: half show it)."""
    times = 2 * max(1, min(4, round(n / len(lexicon.types) / 6)))
    mine = [k for k in lexicon.nicknames if k.lang == LANG_OF[locale]]
    return [k for k in mine for _ in range(times)][:n]


def draw_values(lexicon: Lexicon, type_: int, u: Sequence[float]) -> tuple[int, ...]:
    """Return a value of one attribute (60 %) or of each of two; ``u`` is three uniform numbers."""
    attributes = lexicon.groups[lexicon.types[type_].group].attributes
    if not attributes:
        return ()
    start = 0 if u[0] < 0.7 else len(attributes) - 1
    first = pick(attributes[start], u[1])
    if u[0] % 0.1 < 0.06 or len(attributes) == 1:
        return (first,)
    return (first, pick(attributes[start - 1], u[2]))


def make_product(
    lexicon: Lexicon, locale: str, product_id: str, spec: Spec, u: Sequence[float], nickname: str
) -> Product:
    """Write one product; ``u`` is a row of ``compose.CHOICES`` numbers in [0, 1)."""
    lang = LANG_OF[locale]
    return Product(
        product_id=product_id,
        spec=spec,
        title=compose.title(lexicon, spec, lang, u, nickname),
        brand=compose.brand_field(lexicon, spec.brand, lang, u[13]),
        category=lexicon.groups[lexicon.types[spec.type].group].path.of(lang),
        description=compose.description(lexicon, spec, lang, u),
    )
