"""Which brand a query names: 1,000,000 distinct queries against 50,000 brands, on one core.

Ours takes the whole column at once (``csrm_tasks.dataset.brands``). The peers take one query after
the other by the same rules: ``pyahocorasick`` finds the occurrences, or every part of the query is
looked up in a dict. All must name the same brands.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import ahocorasick
import polars as pl

from benchmarks.harness import Timing, alternate, closing_line, ratio, table, timing_rows
from csrm_tasks.dataset.brands import build_brands
from csrm_tasks.text import normalise

SYLLABLES = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
UNITS = ("ml", "g", "kg", "gb", "入", "包")
SAMPLE = 20_000  # queries of the slowest peer


def han(rng: random.Random) -> str:
    """Return a run of two to four common characters."""
    return "".join(chr(0x4E00 + rng.randrange(2500)) for _ in range(rng.choice((2, 2, 3, 4))))


def hangul(rng: random.Random) -> str:
    """Return a run of two to four syllables."""
    return "".join(chr(0xAC00 + rng.randrange(2000)) for _ in range(rng.choice((2, 3, 4))))


def latin(rng: random.Random) -> str:
    """Return a word of one to four syllables."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((1, 2, 2, 3, 3, 4))))
    return word + rng.choice(("", "", "n", "x", "s"))


def brand(rng: random.Random) -> str:
    """Return a name: Latin, Han, Hangul, or two Latin words."""
    kind = rng.random()
    if kind < 0.45:
        return latin(rng)
    if kind < 0.75:
        return han(rng)
    return hangul(rng) if kind < 0.9 else f"{latin(rng)} {latin(rng)}"


def query(rng: random.Random, brands: list[str]) -> str:
    """Return one to three words, six of ten behind a brand, some run together."""
    words = []
    for _ in range(rng.choice((1, 2, 2, 3, 3))):
        kind = rng.random()
        number = f"{rng.randrange(1, 999)}{rng.choice(UNITS)}"
        words.append(
            han(rng) if kind < 0.4 else latin(rng) if kind < 0.6
            else hangul(rng) if kind < 0.8 else number
        )  # fmt: skip
    if rng.random() < 0.6:
        words.insert(0, rng.choice(brands))
    return (" " if rng.random() < 0.85 else "").join(words)


def distinct(make: Iterator[str], count: int) -> list[str]:
    """Return the first ``count`` different texts."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[normalise(next(make))] = None
    return list(found)


def runs_together(char: str) -> bool:
    """Return whether words in the character's script are not spaced."""
    return "\u2e80" <= char <= "\u312f" or "\u31a0" <= char <= "\u9fff" or char >= "\U00020000"


def alone(text: str, start: int, end: int) -> bool:
    """Return whether text[start:end] is not part of a longer word."""

    def boundary(inside: int, outside: int) -> bool:
        if not 0 <= outside < len(text) or not text[outside].isalnum():
            return True
        return end - start > 1 and (runs_together(text[inside]) or runs_together(text[outside]))

    return boundary(start, start - 1) and boundary(end - 1, end)


def by_automaton(automaton: ahocorasick.Automaton, norms: list[str]) -> list[str]:
    """Match one by one what pyahocorasick finds."""
    matched = []
    for norm in norms:
        longest, name = 0, ""
        for last, (length, found) in automaton.iter(norm):
            if length > longest and alone(norm, last + 1 - length, last + 1):
                longest, name = length, found
        matched.append(name)
    return matched


def by_lookup(forms: dict[str, str], norms: list[str]) -> list[str]:
    """Look every part of every query up, longest first."""
    matched = []
    for norm in norms:
        n = len(norm)
        parts = (
            norm[i : i + size]
            for size in range(n, 0, -1)
            for i in range(n - size + 1)
            if norm[i : i + size] in forms and alone(norm, i, i + size)
        )
        matched.append(forms.get(next(parts, ""), ""))
    return matched


def main(quick: bool) -> None:
    """Print the table and the figures queries_per_s and ratio_pyahocorasick."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = random.Random(0)
    names = distinct(iter(lambda: brand(rng), None), 5_000 if quick else 50_000)
    norms = distinct(iter(lambda: query(rng, names), None), SAMPLE if quick else 1_000_000)
    column = pl.Series(norms)
    ours = build_brands(names, [])
    forms = {name: name for name in names}
    automaton = ahocorasick.Automaton()
    for name in names:
        automaton.add_word(name, (len(name), name))
    automaton.make_automaton()

    matched = ours.match(column).to_list()
    assert matched == by_automaton(automaton, norms), "pyahocorasick names other brands"
    assert matched[:SAMPLE] == by_lookup(forms, norms[:SAMPLE]), "the dict names other brands"

    timings = alternate(
        {
            "csrm (polars, whole column)": lambda: ours.match(column),
            "pyahocorasick, one by one": lambda: by_automaton(automaton, norms),
        },
        1 if quick else 5,
    )
    first, second = timings.values()
    part = alternate(
        {f"dict, one by one ({SAMPLE:,})": lambda: by_lookup(forms, norms[:SAMPLE])},
        1 if quick else 5,
    )
    rows = timing_rows(timings, len(norms), "queries/s") + timing_rows(part, SAMPLE, "queries/s")
    print(table(rows))
    share = sum(map(bool, matched)) / len(norms)
    print(f"\n{len(norms):,} queries, one core; {share:.0%} name a brand\n")
    figures = {
        "queries_per_s": len(norms) / first.median,
        "ratio_pyahocorasick": ratio(second, first),
        "ratio_dict": rate(first, len(norms)) / rate(next(iter(part.values())), SAMPLE),
    }
    print(closing_line("brand_match", figures, ("polars", "pyahocorasick")))


def rate(timing: Timing, queries: int) -> float:
    """Return queries per second."""
    return queries / timing.median
