"""What a lexicon is: product types in substitute groups, attribute values, brands, nicknames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from csrm_tasks.demo.market.lexicon.spelling import spelt

Lang = Literal["ko", "zh", "en", "de", "id"]  # the last two are invented (:mod:`.spelling`)
LANG_OF: dict[str, Lang] = {
    "ko-KR": "ko", "zh-TW": "zh", "en-US": "en", "de-DE": "de", "id-ID": "id",
}  # fmt: skip


class Words(NamedTuple):
    """One thing's name in three languages; of a brand, ``en`` is the Latin spelling."""

    ko: str
    zh: str
    en: str

    def of(self, lang: Lang) -> str:
        """Return the name in ``lang``."""
        known = {"ko": self.ko, "zh": self.zh, "en": self.en}
        return known[lang] if lang in known else spelt(self.en, lang)


@dataclass(frozen=True)
class Group:
    """A leaf category; its types substitute for one another."""

    words: Words
    path: Words  # category path, levels joined by " > "
    attributes: tuple[tuple[int, ...], ...]  # for each attribute the values it takes here
    units: tuple[Words, ...]  # pack sizes as titles write them


@dataclass(frozen=True)
class ProductType:
    """What a thing is; a query for it means this and nothing else."""

    key: str
    group: int
    words: Words
    synonyms_ko: tuple[str, ...] = ()
    synonyms_zh: tuple[str, ...] = ()

    def synonyms(self, lang: Lang) -> tuple[str, ...]:
        """Return the other names of the type in ``lang``; only Korean and Chinese have some."""
        known = {"ko": self.synonyms_ko, "zh": self.synonyms_zh}
        return known.get(lang, ())


@dataclass(frozen=True)
class Value:
    """One value of one attribute (red of colour)."""

    attribute: Words
    words: Words


@dataclass(frozen=True)
class Brand:
    """A maker and the groups it sells in; the first group is the one it is known for."""

    words: Words
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Nickname:
    """An opaque name by which shoppers of one language ask for one brand's product of one type."""

    text: str
    lang: Lang
    type: int
    brand: int
    in_titles: bool  # else no title has it and only behaviour tells what it means


@dataclass(frozen=True)
class Lexicon:
    """All words of a market."""

    types: tuple[ProductType, ...]
    groups: tuple[Group, ...]
    values: tuple[Value, ...]
    brands: tuple[Brand, ...]
    nicknames: tuple[Nickname, ...]
    fillers: tuple[Words, ...]  # marketing words that say nothing about the product

    def brands_of(self) -> list[list[int]]:
        """For each group the brands that sell in it."""
        found: list[list[int]] = [[] for _ in self.groups]
        for index, brand in enumerate(self.brands):
            for group in brand.groups:
                found[group].append(index)
        return found


def first_groups(lexicon: Lexicon, n: int) -> Lexicon:
    """Return the lexicon of the first ``n`` groups: their types and brands, and no nicknames."""
    types = tuple(kind for kind in lexicon.types if kind.group < n)
    sold = ((b, tuple(g for g in b.groups if g < n)) for b in lexicon.brands)
    brands = tuple(replace(brand, groups=groups) for brand, groups in sold if groups)
    return replace(lexicon, types=types, groups=lexicon.groups[:n], brands=brands, nicknames=())
