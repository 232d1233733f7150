"""A generated market with planted wrong labels, as a snapshot, and its truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.splits import uniform
from csrm_tasks.records import (
    CONVERSIONS,
    PAIRS,
    PRODUCTS,
    QUERIES,
    TRANSLATIONS,
    VOTES,
    write_table,
)
from csrm_tasks.text import pair_id, query_id

LOCALES = ("ko-KR", "zh-TW")
SYLLABLES = tuple("가나다라마바사아자차카타파하고노도로모보소오조초")


def noisy_snapshot(
    folder: Path,
    *,
    queries: int = 300,
    each: int = 12,
    noise: float = 0.08,
    unclear: float = 0.3,
    odd: float = 0.0,
    seed: int = 3,
) -> dict[str, int]:
    """Write a snapshot in which a share ``noise`` of single raters is wrong; return the truth.

    A query of two words is exactly met by a title with both, half by one with the first; each has
    ``each`` products. A share ``unclear`` of the titles is misspelt, so that no model is sure; a
    share ``odd`` reads like another grade than is true, so that every model is sure and wrong. One
    in three query texts is asked in both locales. Dev has two raters who agree (and are right);
    gold is there too, with every label wrong: who reads it is found out.
    """
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(SYLLABLES, 3)) for _ in range(60)]
    rows: dict[str, list[tuple[object, ...]]] = {"queries": [], "products": [], "pairs": []}
    truth: dict[str, int] = {}
    for n in range(queries):
        norm = " ".join(rng.choice(words, 2, replace=False))
        u = uniform(seed, norm)
        split = "dev" if u < 0.25 else "gold" if u < 0.35 else "train"
        for locale in LOCALES if n % 3 == 0 else LOCALES[n % 2 :][:1]:
            asked = query_id(locale, norm)
            rows["queries"].append((asked, locale, norm, norm, "", "label", 1))
            for k in range(each):
                grade, product = k % 3, f"p{n}-{k}"
                read = (grade + int(rng.integers(1, 3))) % 3 if rng.random() < odd else grade
                title = _title(norm, read, words, rng)
                if rng.random() < unclear:
                    title = _misspelt(title, rng)
                rows["products"].append((product, locale, title, "", "", ""))
                pair = pair_id(asked, product)
                truth[pair] = grade
                wrong = split == "gold" or (split == "train" and rng.random() < noise)
                given = (grade + int(rng.integers(1, 3))) % 3 if wrong else grade
                raters = 1 if split == "train" else 2
                rows["pairs"].append((pair, asked, product, locale, given, split, raters, raters))
    schemas = {"queries": QUERIES, "products": PRODUCTS, "pairs": PAIRS, "votes": VOTES,
               "conversions": CONVERSIONS, "translations": TRANSLATIONS}  # fmt: skip
    for name, schema in schemas.items():
        frame = pl.DataFrame(rows.get(name, []), dict(schema), orient="row")
        write_table(frame, schema, folder / f"{name}.parquet")
    return truth


def _title(norm: str, grade: int, words: list[str], rng: np.random.Generator) -> str:
    first, second = norm.split()
    others = [w for w in words if w not in (first, second)]
    a, b, c = (str(w) for w in rng.choice(others, 3, replace=False))
    named = {2: [first, second, a], 1: [first, a, b], 0: [a, b, c]}[grade]
    return " ".join(rng.permutation(named))


def _misspelt(title: str, rng: np.random.Generator) -> str:
    """Change one letter of each word."""
    letters = [list(word) for word in title.split()]
    for word in letters:
        word[rng.integers(len(word))] = str(rng.choice(SYLLABLES))
    return " ".join("".join(word) for word in letters)


def fold_of(norm: str, folds: int) -> int:
    """Return a text's fold, the slow way."""
    return int(text_digest("*", norm), 16) % folds
