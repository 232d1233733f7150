"""The bilingual lexicon of the demo market: tables (TSV beside this file) and their reader.

A :class:`Lexicon` is everything that a generated market's words come from. The demo market's is
read from the TSV files; the ``names`` market builds one from real category names
(:mod:`csrm_tasks.demo.market.names`). Everything refers to everything by position (int), so that a
world of a million products is arrays of small integers.
"""

from __future__ import annotations

from csrm_tasks.demo.market.lexicon.model import (
    LANG_OF,
    Brand,
    Group,
    Lang,
    Lexicon,
    Nickname,
    ProductType,
    Value,
    Words,
    first_groups,
)
from csrm_tasks.demo.market.lexicon.tables import load_lexicon

__all__ = [
    "LANG_OF",
    "Brand",
    "Group",
    "Lang",
    "Lexicon",
    "Nickname",
    "ProductType",
    "Value",
    "Words",
    "first_groups",
    "load_lexicon",
]
