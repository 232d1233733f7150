"""One character in several forms, 濕, 溼 and 湿: the same to a search, whoever typed which (A20).

Classes are what OpenCC's tables of Taiwan, Hong Kong and Japan turn into one another, character by
character. Simplified Chinese is none of them: it writes 面 for 面 and 麵 alike, and would make one
word of two. Models read a text as it was typed, and queries that differ by such a form stay two.
"""

from __future__ import annotations

from functools import cache

from csrm_tasks.lexical.links import least_linked

TABLES = ("tw2t", "hk2t", "jp2t", "t2tw", "t2hk", "t2jp")
HAN = (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000))  # where the tables have their characters


@cache
def variants() -> dict[int, str]:
    """Return for ``str.translate`` the one form that stands for each character's class.

    It is the form of the lowest code point; characters without another form are left out.
    """
    from opencc import OpenCC

    characters = [chr(c) for c in HAN]
    links = (
        (one, other)
        for table in TABLES
        for one, other in zip(
            characters, OpenCC(table).convert("\n".join(characters)).split("\n"), strict=True
        )
        if len(other) == 1
    )
    return {ord(c): least for c, least in least_linked(links).items() if least != c}
