"""Write what a merchant writes: titles, brand fields, descriptions.

Every choice is made from a row of uniform numbers in [0, 1), so that a million products need one
call of the random generator, and the same product can be written in another language with the same
choices (parallel titles).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from csrm_tasks.demo.market.lexicon import Lang, Lexicon, ProductType

T = TypeVar("T")
CHOICES = 16  # uniform numbers that one product uses

ENGLISH_NAME = 0.22  # share of titles that repeat the product in English: cross-lingual anchors
SYNONYM = 0.12
GIFT = 0.12  # share of titles that name a gift of another type: reading, not matching, tells
NO_BRAND_FIELD = 0.08
NO_DESCRIPTION = 0.25
HIDDEN_VALUE = 0.10  # one attribute value is in the description only


# What a merchant says around the words of the lexicon.
WITH_GIFT = {
    "ko": "{} 증정", "zh": "贈{}", "en": "with {}", "de": "mit {}", "id": "dengan {}",
}  # fmt: skip
PRAISED = {
    "ko": "{}, {} 추천", "zh": "{}，{}推薦", "en": "{}, recommended {}", "de": "{}, gute {}",
    "id": "{}, pilihan {}",
}  # fmt: skip
DAILY = {
    "ko": "매일 쓰기 좋은 {}", "zh": "每天都需要的{}", "en": "{} for every day",
    "de": "{} jeden tag", "id": "{} setiap hari",
}  # fmt: skip


class Spec(NamedTuple):
    """What a product is, by positions in the lexicon."""

    type: int
    brand: int
    values: tuple[int, ...]


def pick(options: Sequence[T], u: float) -> T:
    """Return the option that the uniform number ``u`` falls on."""
    return options[int(u * len(options))]


def brand_text(lexicon: Lexicon, brand: int, lang: Lang, u: float) -> str:
    """Return the brand in local spelling (45 %), in Latin (35 %), or in both."""
    words = lexicon.brands[brand].words
    if u < 0.45:
        return words.of(lang)
    alone = u < 0.8 or words.of(lang) == words.en
    return words.en if alone else f"{words.en} {words.of(lang)}"


def type_text(lexicon: Lexicon, type_: int, lang: Lang, u: float) -> str:
    """Return the type's name, or now and then a synonym."""
    kind = lexicon.types[type_]
    synonyms = kind.synonyms(lang)
    return pick(synonyms, u / SYNONYM) if synonyms and u < SYNONYM else kind.words.of(lang)


def title(lexicon: Lexicon, spec: Spec, lang: Lang, u: Sequence[float], nickname: str = "") -> str:
    """Return a title made by the choices ``u[:11]``."""
    group = lexicon.groups[lexicon.types[spec.type].group]
    shown = spec.values[1:] if u[10] < HIDDEN_VALUE else spec.values
    values = [lexicon.values[v].words.of(lang) for v in shown]
    name = type_text(lexicon, spec.type, lang, u[0])
    core = _core(nickname, values, name, lang, u[1])
    parts = [brand_text(lexicon, spec.brand, lang, u[2]), core]
    if u[3] < ENGLISH_NAME and lang != "en":
        english = [lexicon.values[v].words.en for v in shown]
        parts.append(" ".join([*english, lexicon.types[spec.type].words.en]))
    if u[4] < 0.7:
        parts.append(pick(group.units, u[5]).of(lang))
    if u[6] < GIFT:
        gift = _other_type(lexicon, spec.type, u[7]).words.of(lang)
        parts.append(WITH_GIFT[lang].format(gift))
    if u[8] < 0.3:
        filler = pick(lexicon.fillers, u[9]).of(lang)
        parts = [f"[{filler}]", *parts] if u[8] < 0.15 else [*parts, filler]
    return " ".join(parts)


def _core(nickname: str, values: list[str], name: str, lang: Lang, u: float) -> str:
    """Nickname, values and type name in one of three orders; Chinese runs them together."""
    if lang != "zh":
        front = [*values, name] if u < 0.7 else [name, *values]
        return " ".join(filter(None, [nickname, *front]))
    if u < 0.5:
        return f"{nickname}{''.join(values)}{name}"
    return " ".join(
        filter(None, [nickname + name, *values] if u < 0.75 else [nickname, *values, name])
    )


def _other_type(lexicon: Lexicon, type_: int, u: float) -> ProductType:
    """A type of another group, for a gift."""
    start = int(u * len(lexicon.types))
    group = lexicon.types[type_].group
    turned = (lexicon.types[(start + i) % len(lexicon.types)] for i in range(len(lexicon.types)))
    return next(kind for kind in turned if kind.group != group)


def brand_field(lexicon: Lexicon, brand: int, lang: Lang, u: float) -> str:
    """Return what the merchant put into the brand field; "" where nothing."""
    if u < NO_BRAND_FIELD:
        return ""
    words = lexicon.brands[brand].words
    return words.en if u < 0.5 else words.of(lang)


def description(lexicon: Lexicon, spec: Spec, lang: Lang, u: Sequence[float]) -> str:
    """Return one sentence, or "" for a quarter of the products; hidden values always show here."""
    if u[11] < NO_DESCRIPTION and u[10] >= HIDDEN_VALUE:
        return ""
    kind = lexicon.types[spec.type]
    group = lexicon.groups[kind.group].words.of(lang)
    brand = lexicon.brands[spec.brand].words.of(lang)
    stated = [lexicon.values[v] for v in spec.values]
    values = [v.words.of(lang) for v in stated]
    name = kind.words.of(lang)
    space, of, comma, colon = ("", "的", "，", "：") if lang == "zh" else (" ", " ", ", ", ": ")
    phrase = space.join([*values, name])
    facts = comma.join(f"{v.attribute.of(lang)}{colon}{v.words.of(lang)}" for v in stated)
    praised, daily = PRAISED[lang].format(phrase, group), DAILY[lang].format(phrase)
    return pick((f"{brand}{of}{phrase}", praised, daily, facts), u[12]) or phrase
