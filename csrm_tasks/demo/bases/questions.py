"""Reading questions about listings: the part of pre-training that teaches a tiny model to match.

A question has the shape of the product prompt and is answered with one token by the listings
themselves, so that training on judged pairs finds a model that can already read that shape::

    words        Q: one to three words    are all (2), some (1) or none (0) of them in the listing?
    category     Q: what a listing is     does this listing belong to the same category?
    maker        Q: a brand               is this listing of the brand, in either spelling?

One query asks about several listings, one after the other, each with its own answer: several
answers for one query's tokens. Some queries carry titles in which a word of the query occurs, or
titles that mislead; some have an invented word as query, so that the titles alone tell what is
meant; some have a slip of the finger. Nothing here knows of relevance: no question asks what a
shopper would accept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from csrm_tasks.demo.bases.text import Library
from csrm_tasks.demo.market.compose import pick
from csrm_tasks.demo.market.typos import misspell
from csrm_tasks.demo.market.world import Product
from csrm_tasks.llm.prompt.prompts import LabelSpace, ProductFields, QueryFields

AMOUNT, ANSWER = ("0", "1", "2"), ("no", "yes")
WORDS = LabelSpace("words", AMOUNT, "words")
CATEGORY = LabelSpace("category", ANSWER, "category")
MAKER = LabelSpace("maker", ANSWER, "maker")
READING = (WORDS, CATEGORY, MAKER)

SLIP = 0.08  # share of queries with a slip of the finger
INVENTED = 0.15  # share of queries that are an invented word with telling titles
TITLES, MISLEADING = 0.5, 0.1  # share of queries with titles; of them all, with titles of anything
LATIN = 0.4  # share of brands asked for in Latin spelling

T = TypeVar("T")


@dataclass(frozen=True)
class Name:
    """A word for one property of a listing."""

    field: str  # brand | value | type
    at: int  # position in the lexicon
    text: str


@dataclass(frozen=True)
class Page:
    """One query, some listings, and for each the position of its answer in ``space.tokens``."""

    space: LabelSpace
    query: QueryFields
    products: tuple[ProductFields, ...]
    answers: tuple[int, ...]


class QuestionSource:
    """Draws questions about one library, every draw from one seeded stream.

    ``plain`` ones show the title only, without retrieved titles or slips: learnt first.
    """

    def __init__(self, library: Library, seed: int, plain: bool = False) -> None:
        self.library, self.plain = library, plain
        kinds = library.lexicon.types
        self._letters = sorted({c for kind in kinds for c in kind.words.of(library.lang)})
        self._uniforms = uniforms(seed)
        self._makers: dict[str, Callable[[int], Page]] = {
            WORDS.name: self._words,
            CATEGORY.name: self._category,
            MAKER.name: self._maker,
        }

    def page(self, space: LabelSpace, n: int) -> Page:
        """Draw one query of ``space`` and ``n`` listings."""
        return self._makers[space.name](n)

    def _u(self) -> float:
        return next(self._uniforms)

    def _pick(self, options: Sequence[T]) -> T:
        return pick(options, self._u())

    def _words(self, n: int) -> Page:
        asked = self._pick(self.library.listings)
        names = self._names(asked)
        wanted = sorted(names, key=lambda _: self._u())[: 1 + int(self._u() * 3)]
        if self._u() < 0.7:
            wanted.sort(key=names.index)  # as people write: brand, values, type
        shown: list[tuple[ProductFields, int]] = []
        while len(shown) < n:
            listing = asked if self._u() < 0.4 else self._other(asked)
            product = self._shown(listing, category=0.5)
            answer = _amount(wanted, listing, product)
            if answer is not None:
                shown.append((product, answer))
        brand = next((w.text for w in wanted if w.field == "brand"), "")
        evidence = self.library.by_type[asked.spec.type]
        text = self._slip(self._joined([w.text for w in wanted]))
        return _page(WORDS, QueryFields(text, brand, self._titles(evidence)), shown)

    def _category(self, n: int) -> Page:
        library = self.library
        asked = self._pick(library.listings)
        group = library.group(asked)
        *others, kind = self._names(asked)
        text = kind.text
        if self._u() < 0.4:
            text = self._joined([self._pick(others).text, text])
        query = self._meant(text, library.by_type[asked.spec.type])
        shown = []
        for _ in range(n):
            u = self._u()
            pool = library.by_group[group] if u < 0.5 else library.by_top[library.top(asked)]
            listing = self._pick(library.listings if u > 0.75 else pool)
            answer = int(library.group(listing) == group)
            shown.append((self._shown(listing, category=0.4), answer))
        return _page(CATEGORY, query, shown)

    def _maker(self, n: int) -> Page:
        library, lang = self.library, self.library.lang
        asked = self._pick(library.listings)
        brand = asked.spec.brand
        words = library.lexicon.brands[brand].words
        text = self._names(asked)[0].text
        if self._u() < 0.4:
            kind = library.lexicon.types[asked.spec.type]
            text = f"{text} {kind.words.of(lang)}"
        query = self._meant(text, library.by_brand[brand], words.of(lang))
        shown = []
        for _ in range(n):
            same = self._u() < 0.5
            listing = self._pick(library.by_brand[brand]) if same else self._other(asked)
            answer = int(listing.spec.brand == brand)
            shown.append((self._shown(listing, category=0.3), answer))
        return _page(MAKER, query, shown)

    def _names(self, listing: Product) -> list[Name]:
        """Return words for what a listing is: brand first, type last (by any of its names)."""
        lexicon, lang, spec = self.library.lexicon, self.library.lang, listing.spec
        brand, kind = lexicon.brands[spec.brand].words, lexicon.types[spec.type]
        spelt = brand.en.lower() if self._u() < LATIN else brand.of(lang)
        called = kind.words.of(lang) if self._u() < 0.7 else (*kind.synonyms(lang), "")[0]
        return [
            Name("brand", spec.brand, spelt),
            *(Name("value", v, lexicon.values[v].words.of(lang)) for v in spec.values),
            Name("type", spec.type, called or kind.words.of(lang)),
        ]

    def _other(self, listing: Product) -> Product:
        """Draw a listing that is easily taken for ``listing``: of its type, category or brand."""
        u, library = self._u(), self.library
        if u < 0.15:
            return self._pick(library.by_type[listing.spec.type])
        if u < 0.45:
            return self._pick(library.by_group[library.group(listing)])
        return self._pick(library.by_brand[listing.spec.brand] if u < 0.65 else library.listings)

    def _joined(self, words: Sequence[str]) -> str:
        space = self.library.lang == "ko" or self._u() < 0.4
        return (" " if space else "").join(words)

    def _slip(self, text: str) -> str:
        if self.plain or self._u() > SLIP:
            return text
        return misspell(text, self.library.lang, self._u(), self._u())

    def _shown(self, listing: Product, category: float) -> ProductFields:
        """Show the title and some other fields; the category in a share ``category``."""
        if self.plain:
            return ProductFields(listing.title)
        return ProductFields(
            listing.title,
            listing.brand if self._u() < 0.7 else "",
            listing.category if self._u() < category else "",
            listing.description if self._u() < 0.5 else "",
        )

    def _titles(self, listings: Sequence[Product]) -> tuple[str, ...]:
        """Titles of up to three of ``listings``, or of any when the retriever is to mislead."""
        u = self._u()
        if self.plain or u > TITLES:
            return ()
        source = self.library.listings if u < MISLEADING else listings
        return tuple(self._pick(source).title for _ in range(1 + int(self._u() * 3)))

    def _meant(self, text: str, evidence: Sequence[Product], brand: str = "") -> QueryFields:
        """Ask by ``text``, or by an invented word whose meaning only retrieved titles tell."""
        if self.plain or self._u() > INVENTED:
            return QueryFields(self._slip(text), brand, self._titles(evidence))
        word = "".join(self._pick(self._letters) for _ in range(2 + int(self._u() * 2)))
        titles = tuple(self._pick(evidence).title for _ in range(2 + int(self._u() * 2)))
        return QueryFields(word, "", titles)


def _amount(wanted: Sequence[Name], listing: Product, shown: ProductFields) -> int | None:
    """Return 2, 1 or 0: all, some or none of ``wanted`` are there.

    None where it depends on how one reads: a word's other spelling or synonym is there, or the
    word is only part of another.
    """
    text = " ".join((shown.title, shown.brand, shown.description)).lower()
    spec = listing.spec
    own = {("brand", spec.brand), ("type", spec.type), *(("value", v) for v in spec.values)}
    there = [(w.field, w.at) in own for w in wanted]
    if any(is_there != (w.text in text) for w, is_there in zip(wanted, there, strict=True)):
        return None
    return 2 if all(there) else int(any(there))


def _page(space: LabelSpace, query: QueryFields, shown: list[tuple[ProductFields, int]]) -> Page:
    products, answers = zip(*shown, strict=True)
    return Page(space, query, products, answers)


def uniforms(seed: int) -> Iterator[float]:
    """Yield uniform numbers in [0, 1)."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.random(8192).tolist()
