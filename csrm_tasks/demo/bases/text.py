"""What the base models read: listings of a world of their own, one language at a time.

The lexicon is the demo market's (a base model knows the words of its languages); the listings are
not: they are drawn with seeds of their own. No translation pair, no relevance label, no shopper.
"""

from __future__ import annotations

from collections.abc import Iterator

from csrm_tasks.demo.market.lexicon import LANG_OF, Lang, Lexicon
from csrm_tasks.demo.market.world import SOURCE, TARGET, Catalogue, Product, make_catalogue
from csrm_tasks.text import LEVEL_SEPARATOR

LOCALES = (SOURCE, TARGET)
TRAIN_SEED, HELD_OUT_SEED = 77_001, 77_002  # no market uses these


class Library:
    """Listings of one language, found by type, category and brand."""

    def __init__(self, lexicon: Lexicon, catalogue: Catalogue) -> None:
        self.lexicon, self.lang = lexicon, LANG_OF[catalogue.locale]
        self.listings = catalogue.products
        self.by_type: dict[int, list[Product]] = {}
        self.by_group: dict[int, list[Product]] = {}
        self.by_top: dict[str, list[Product]] = {}
        self.by_brand: dict[int, list[Product]] = {}
        for p in self.listings:
            self.by_type.setdefault(p.spec.type, []).append(p)
            self.by_group.setdefault(self.group(p), []).append(p)
            self.by_top.setdefault(self.top(p), []).append(p)
            self.by_brand.setdefault(p.spec.brand, []).append(p)

    def group(self, listing: Product) -> int:
        """Position of the listing's leaf category."""
        return self.lexicon.types[listing.spec.type].group

    @staticmethod
    def top(listing: Product) -> str:
        """The listing's top category."""
        return listing.category.partition(LEVEL_SEPARATOR)[0]


def make_library(lexicon: Lexicon, locale: str, listings: int, seed: int) -> Library:
    """Write ``listings`` listings of one locale."""
    return Library(lexicon, make_catalogue(lexicon, locale, listings, seed))


def lexicon_words(lexicon: Lexicon, lang: Lang) -> Iterator[str]:
    """Yield the words of one language, and the English and Latin words met in its listings."""
    for words in (
        *(kind.words for kind in lexicon.types),
        *(value.words for value in lexicon.values),
        *(brand.words for brand in lexicon.brands),
    ):
        yield words.of(lang)
        yield words.en
    for kind in lexicon.types:
        yield from kind.synonyms(lang)
    for group in lexicon.groups:
        yield from group.path.of(lang).split(LEVEL_SEPARATOR)
        for unit in group.units:
            yield from unit.of(lang).split()
    yield from (filler.of(lang) for filler in lexicon.fillers)
    yield from (nickname.text for nickname in lexicon.nicknames if nickname.lang == lang)
