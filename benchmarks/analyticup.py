"""AnalytiCup's files at their true size, drawn by a seed, with the oddities of the layout.

Six languages are learnt from, one is the target, six are only judged in. Queries repeat, as do
titles and category paths; some labels are texts, some are absent in the test files; some titles are
empty or absent; some rows named ``en`` are in another script.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.concepts import SYLLABLES

ROWS = 805_000
SHARES = {"train": 0.62, "dev": 0.13, "test": 0.25}
SOURCES = ("en", "fr", "es", "ko", "pt", "ja")
TARGET, JUDGED_IN = "de", ("it", "pl", "ar", "th", "vi", "id")
LOCALES = {
    "en": "en-US", "fr": "fr-FR", "es": "es-ES", "ko": "ko-KR", "pt": "pt-BR", "ja": "ja-JP",
    "de": "de-DE", "it": "it-IT", "pl": "pl-PL", "ar": "ar-SA", "th": "th-TH", "vi": "vi-VN",
    "id": "id-ID",
}  # fmt: skip
HANGUL, KANA, THAI, ARABIC = "가나다라마바사아자차", "あいうえおかきくけこ", "กขคงจฉชซ", "ابتثجحخد"
SCRIPTS = {"ko": HANGUL, "ja": KANA, "th": THAI, "ar": ARABIC}
LEVELS = ("Home, Kitchen & Dining", "Shoes, Bags", "Tools", "Toys & Games", "Phones, Parts")


def write(folder: Path, rows: int, seed: int = 0) -> int:
    """Write the six files into ``folder``, ``rows`` of them in all; returns how many there are."""
    draw, written = np.random.default_rng(seed), 0
    for split, share in SHARES.items():
        for task in ("QC", "QI"):
            n = round(rows * share / 2)
            with (folder / f"{split}_{task}.txt").open("w", encoding="utf-8") as file:
                for line in _lines(draw, split, task, n, rows):
                    file.write(line)
            written += n
    return written


def _word(i: int, script: str | None) -> str:
    letters = SYLLABLES if script is None else [*script]
    return "".join(letters[i // len(letters) ** k % len(letters)] for k in range(3))


def _lines(draw: np.random.Generator, split: str, task: str, n: int, rows: int) -> Iterator[str]:
    spoken = SOURCES if split == "train" else (*SOURCES, TARGET, *JUDGED_IN)
    weights = np.array([8.0, 4, 4, 2, 2, 1, *[1.5] * 7][: len(spoken)])
    language = draw.choice(len(spoken), n, p=weights / weights.sum()).tolist()
    first = {"train": 0, "dev": 1, "test": 2}[split] * rows  # queries of a split are its own
    queries = (first + draw.integers(0, max(n // 8, 1), n)).tolist()
    items = draw.integers(0, max(rows // (40 if task == "QC" else 3), 1), n).tolist()
    label, odd = (draw.random(n) < 0.7).tolist(), draw.random(n).tolist()
    for i in range(n):
        spoken_in = spoken[language[i]]
        script = SCRIPTS.get(spoken_in)
        if spoken_in == "en" and odd[i] < 0.01:
            script = ARABIC  # ``en`` hides an unknown language
        row: dict[str, object] = {
            "id": i + 1, "task": task, "language": spoken_in,
            "origin_query": " ".join(_word(queries[i] * 7 + k * 911, script) for k in range(3)),
        }  # fmt: skip
        row |= _item(task, items[i], odd[i])
        if split != "test" or odd[i] < 0.8:
            row["label"] = str(int(label[i])) if odd[i] < 0.5 else int(label[i])
        yield json.dumps(row, ensure_ascii=odd[i] < 0.5) + "\n"


def _item(task: str, i: int, odd: float) -> dict[str, str]:
    if task == "QC":
        return {"category_path": f"{LEVELS[i % 5]},{_word(i, None)}, {_word(i * 3, None)},{i}"}
    if odd > 0.995:
        return {} if odd > 0.998 else {"item_title": " "}
    return {"item_title": f"{i} " + " ".join(_word(i * 13 + k * 501, None) for k in range(10))}
