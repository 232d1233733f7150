"""What a translation must keep: its numbers, its brand, and the way back (A37)."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import polars as pl

from csrm_tasks.dataset.brands import BrandDictionary, build_brands
from csrm_tasks.text import normalise

# One name for a unit, however a language writes it. A unit that is not here is a word.
UNITS: Mapping[str, tuple[str, ...]] = {
    "ml": ("ml", "毫升", "밀리리터", "ミリリットル"),
    "l": ("l", "公升", "升", "리터", "リットル", "liter", "litre"),
    "mg": ("mg", "毫克", "밀리그램", "ミリグラム"),
    "g": ("g", "gr", "公克", "克", "그램", "グラム"),
    "kg": ("kg", "公斤", "千克", "킬로그램", "킬로", "キログラム", "キロ"),
    "mm": ("mm", "公釐", "毫米", "밀리미터", "ミリ"),
    "cm": ("cm", "公分", "厘米", "센티미터", "센티", "センチ"),
    "m": ("m", "公尺", "미터", "メートル"),
    "inch": ("inch", "inches", "吋", "英寸", "인치", "インチ"),
    "mah": ("mah", "毫安時", "毫安时"),
    "w": ("w", "瓦", "와트", "ワット"),
    "v": ("v", "伏特", "볼트", "ボルト"),
    "gb": ("gb",),
    "tb": ("tb",),
    "%": ("%", "퍼센트", "パーセント"),
}
_UNIT = {form: unit for unit, forms in UNITS.items() for form in forms}


def _any(forms: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))


# A Latin unit ends where its word does: "5g" is one in "5g手機", and none in "5gallon".
_LATIN, _OTHER = (_any(f for f in _UNIT if f.isascii() is ascii_) for ascii_ in (True, False))
NUMBER = re.compile(rf"(\d+(?:[.,]\d+)*)(?:\s?({_LATIN})(?![a-z])|({_OTHER}))?")
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def numbers(text: str) -> list[str]:
    """Return the numbers of a text with their units, sorted: ``["12", "500ml"]``.

    Full-width forms and other scripts' digits are read as their values, 1,000 as 1000, 2.50 as 2.5.
    """
    plain = "".join(str(int(c)) if c.isdecimal() else c for c in normalise(text))
    found = NUMBER.findall(plain)
    return sorted(_value(number) + _UNIT.get(latin or other, "") for number, latin, other in found)


def _value(number: str) -> str:
    if THOUSANDS.fullmatch(number):
        number = number.replace(",", "")
    number = number.replace(",", ".")
    if number.count(".") > 1 or (number.startswith("0") and number.isdecimal()):
        return number  # a version, a code
    return format(Decimal(number).normalize(), "f")


def likeness(one: str, other: str) -> float:
    """Return the Dice overlap of two texts' letters and pairs of letters, 0 to 1.

    White space does not count: Korean and Chinese shoppers set it as they like.
    """
    a, b = _grams(one), _grams(other)
    whole = a.total() + b.total()
    return 2 * (a & b).total() / whole if whole else 0.0


def _grams(text: str) -> Counter[str]:
    letters = "".join(normalise(text).split())
    pairs = (letters[i : i + 2] for i in range(len(letters) - 1))
    return Counter([*letters, *pairs])


class Brands:
    """The brands of the languages, and which are the same one."""

    def __init__(self, products: pl.DataFrame, translations: pl.DataFrame) -> None:
        """``products``: PRODUCTS, ``translations``: TRANSLATIONS, of which brands are read."""
        self._products = products
        named = translations.filter(pl.col("kind") == "brand")
        pairs = list(zip(named["source_text"], named["target_text"], strict=True))
        self._names = {name for pair in pairs for name in pair}
        self._partners: dict[str, set[str]] = defaultdict(set)  # by normalised form
        for one, other in pairs:
            self._partners[normalise(one)].add(other)
            self._partners[normalise(other)].add(one)
        self._dictionaries: dict[str, BrandDictionary] = {}

    def named(self, locale: str, texts: Sequence[str]) -> list[str]:
        """Return the brand that each text names by the dictionary of ``locale``, or ""."""
        if locale not in self._dictionaries:
            here = self._products.filter((pl.col("locale") == locale) & (pl.col("brand") != ""))
            self._dictionaries[locale] = build_brands({*here["brand"], *self._names}, ())
        return _matched(self._dictionaries[locale], texts)

    def keeps(self, brand: str, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether it names ``brand``, in whichever language's form."""
        if not brand or not texts:
            return [True] * len(texts)
        forms = {brand, *self._partners.get(normalise(brand), ())}
        return [found != "" for found in _matched(build_brands(forms, ()), texts)]


def _matched(dictionary: BrandDictionary, texts: Iterable[str]) -> list[str]:
    norms = pl.Series("norm", [normalise(t) for t in texts], dtype=pl.String)
    return dictionary.match(norms).to_list()
