"""Which of a market's locales a row of a public data set goes to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import polars as pl

from csrm_tasks.errors import ConfigError
from csrm_tasks.text import language_of

ISO_639_1 = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da "
    "de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy "
    "hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg "
    "li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or "
    "os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta "
    "te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
KNOWN = frozenset(ISO_639_1.split())
NOT_ENGLISH = ("ko", "ja", "zh", "other")  # scripts, of text.language_of


def locale_of(locales: Sequence[str]) -> dict[str, str]:
    """Return language → locale of a market; of two locales of one language the first takes it."""
    found: dict[str, str] = {}
    for locale in locales:
        found.setdefault(locale.partition("-")[0], locale)
    return found


def check_languages(layout: str, spoken: Collection[str], locales: Mapping[str, str]) -> None:
    """Raise :class:`ConfigError` where a layout has nothing for any locale of the market."""
    if not set(spoken) & set(locales):
        raise ConfigError(
            f"{layout} has rows in {', '.join(sorted(spoken))}, and the market's locales are "
            f"{', '.join(locales.values())}: give --source or --target one of these languages"
        )


def is_plainly_not_english(query: str) -> bool:
    """Return whether a text is in a script that English is not written in.

    Other languages in Latin letters cannot be told without a model, and nothing is guessed.
    """
    if query.isascii():
        return False
    return pl.select(language_of(pl.lit(query))).item() in NOT_ENGLISH
