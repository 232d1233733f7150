"""Columns of a file to columns of a contract: candidates, one-to-one assignment, confidence.

Candidates by name (:mod:`names`) and by values; the best one-to-one assignment of them all
(Hungarian method); then evidence across columns; then a confidence with its reasons, as Matchmaker
(Seedat and van der Schaar 2024) orders it, without its language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contract.contracts import CONTRACTS, FLAGS, GRADES, Column
from csrm_tasks.ingest.proposal.names import GRADE_OF, KNOWN, by_name, normal
from csrm_tasks.ingest.proposal.sample import Sample
from csrm_tasks.ingest.reading.values import list_of
from csrm_tasks.ingest.validation.times import parse_times

Scores = npt.NDArray[np.float64]  # columns of the contract × columns of the file
Flags = npt.NDArray[np.bool_]
SURE = 0.8  # confidence from which on a column is written as proposed; below: for a person to say
NAME, VALUES = 0.7, 0.3  # shares of the two in a score
LEAST = 0.25  # score below which nothing is proposed
MOST_GRADES = 12
NEAR = 0.1  # another column within this score makes both unsure
CONTENT_IDS = {
    "catalogue": "product_id",
    "labels": "label_id",
    "query_categories": "label_id",
    "translations": "translation_id",
}


@dataclass(frozen=True)
class Found:
    """A column of the file for one of the contract, with a confidence from 0 to 1."""

    column: str
    name: str
    confidence: float
    reasons: tuple[str, ...]

    @property
    def sure(self) -> bool:
        """Whether it stands as proposed; else a person is asked to say."""
        return self.confidence >= SURE


def match(sample: Sample, kind: str) -> list[Found]:
    """Return the assignment, in the order of the contract's columns."""
    columns = CONTRACTS[kind].columns
    names = sorted(sample.rows.columns)
    named = np.array([[by_name(kind, c.name, n) for n in names] for c in columns])
    fits = np.array([[_fits(kind, c, sample.rows[n]) for n in names] for c in columns])
    scores = np.where(fits > 0, NAME * named + VALUES * fits, 0.0)
    scores[(named == 0) & ~_telling(columns)[:, None]] = 0.0
    chosen = _assigned(scores)
    across = _across(sample, kind, chosen)
    if across:
        for (row, at), factor in across.items():
            scores[row, at] *= factor
        chosen = _assigned(scores)
    evidence = _Evidence(named, fits, scores, names)
    return [
        evidence.found(columns[row].name, row, at, (row, at) in across)
        for row, at in sorted(chosen.items())
        if scores[row, at] >= LEAST
    ]


def _telling(columns: tuple[Column, ...]) -> Flags:
    """Say which columns their values alone may tell: required ones, of which a person is asked."""
    return np.array([c.required for c in columns])


def _assigned(scores: Scores) -> dict[int, int]:
    from scipy.optimize import linear_sum_assignment

    rows, places = linear_sum_assignment(-scores)
    return {int(r): int(p) for r, p in zip(rows, places, strict=True)}


@dataclass(frozen=True)
class _Evidence:
    named: Scores
    fits: Scores
    scores: Scores
    names: list[str]

    def found(self, column: str, row: int, at: int, doubted: bool) -> Found:
        """Turn scores into a confidence: only a known name that its values bear out is sure."""
        known, fit = float(self.named[row, at]), float(self.fits[row, at])
        reasons = [{1.0: "known name", 0.6: "known words in its name"}.get(known, "values only")]
        reasons.append("values fit" if fit >= 0.8 else f"values fit by {fit:.1f}")
        confidence = {1.0: 0.85, 0.6: 0.6}.get(known, 0.3) + 0.1 * fit
        confidence = confidence if fit >= 0.5 else min(confidence, 0.5)
        rivals = [
            self.names[other]
            for other in range(len(self.names))
            if other != at and self.scores[row, other] > self.scores[row, at] - NEAR
        ]
        if rivals:
            confidence = min(confidence, 0.5)
            reasons.append(f"so could {sorted(rivals)[0]!r}")
        better = float(self.scores[:, at].max()) - float(self.scores[row, at])
        if better > 1e-9:
            confidence = min(confidence, 0.5)
            reasons.append("it fits another column better")
        if doubted:
            confidence = min(confidence, 0.5)
            reasons.append("each product has one value: said of the product?")
        return Found(column, self.names[at], round(confidence, 2), tuple(reasons))


def _across(sample: Sample, kind: str, chosen: Mapping[int, int]) -> dict[tuple[int, int], float]:
    """Return what other columns say: in labels a column that follows the product is no query."""
    columns = [c.name for c in CONTRACTS[kind].columns]
    if kind != "labels" or "query" not in columns:
        return {}
    query, product = columns.index("query"), columns.index("product_id")
    if query not in chosen or product not in chosen or product == query:
        return {}
    names, rows = sorted(sample.rows.columns), sample.rows
    key = names[chosen[product]]
    if rows[key].n_unique() > 0.8 * rows.height or rows[key].n_unique() < 2:
        return {}
    found = {}
    for at, name in enumerate(names):
        if name == key:
            continue
        most = rows.group_by(key).agg(pl.col(name).n_unique())[name].max()
        if most == 1 and rows[name].n_unique() > 1:
            found[query, at] = 0.6
    return found


def _fits(kind: str, column: Column, cells: pl.Series) -> float:
    """Return how far values are such as the column may hold; 0 rules it out."""
    values = cells.drop_nulls()
    if values.is_empty():
        return 0.0 if column.required else 0.5
    return _share(kind, column, values)


def _share(kind: str, column: Column, values: pl.Series) -> float:
    if column.name == "grade":
        return _like_grades(values)
    if column.vocabulary is not None:
        words = set(FLAGS) if column.name == "deleted" else set(column.vocabulary)
        return _mean(values.str.to_lowercase().is_in(words))
    if column.holds == "time":
        return _mean(parse_times(values).is_not_null())
    if column.holds == "integer":
        return _mean(values.str.contains(r"^\d{1,6}(\.0)?$"))
    if column.holds == "list":
        return float(np.mean([list_of(v) is not None for v in values.to_list()]))
    if column.holds == "identifier":
        return _like_identifiers(values, CONTENT_IDS.get(kind) == column.name)
    short = _mean(values.str.len_chars() <= column.max_chars)
    letters = _mean(values.str.contains(r"\p{L}"))
    free = column.name in ("bucket", "release", "guideline_version", "application")
    return short if free else short * letters


def _mean(flags: pl.Series) -> float:
    return float(flags.to_numpy().mean())


def _like_identifiers(values: pl.Series, unique: bool) -> float:
    bare = _mean(~values.str.contains(r"\s") & (values.str.len_chars() <= 64))
    if not unique:
        return bare
    return bare if values.n_unique() == len(values) else 0.0


def _like_grades(values: pl.Series) -> float:
    distinct = values.unique().to_list()
    if len(distinct) > MOST_GRADES:
        return 0.0
    known = [v for v in distinct if normal(v) in GRADE_OF or _number(v) is not None]
    return len(known) / len(distinct)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 100 else None


def kind_of(sample: Sample) -> str:
    """Return the kind of delivery a file is; raises :class:`DataError` where several could be."""
    names = sample.rows.columns
    points = {}
    for kind in KNOWN:
        required = [c.name for c in CONTRACTS[kind].columns if c.required]
        # Identifiers and times are in most kinds: what tells them apart is the rest.
        best = [max((by_name(kind, c, n) for n in names), default=0.0) for c in required]
        points[kind] = sum(best) / len(required)
    if any(by_name("labels", "product_id", n) == 1.0 for n in names):
        points["query_categories"] *= 0.5  # its answers are about no product
    first, second = sorted(points, key=lambda k: (-points[k], k))[:2]
    if points[first] < 0.5 or points[first] - points[second] < 0.1:
        raise DataError(
            f"{sample.path}: its columns do not tell what it is ({first} or {second}?); say "
            f"--kind {'|'.join(KNOWN)}"
        )
    return first


def grades_of(values: pl.Series) -> tuple[dict[str, str], list[str]]:
    """Return word → meaning for a market's own scale, and words of unknown meaning.

    Both are empty where the contract's spellings are used. Numbers are taken to grow with
    relevance: a scale's upper quarter is exact, from two fifths on substitute.
    """
    words = sorted({_whole(v) for v in values.drop_nulls().to_list()})
    numbers = {w: n for w in words if (n := _number(w)) is not None}
    if len(numbers) == len(words):
        low, high = min(numbers.values()), max(numbers.values())
        if set(numbers.values()) == {0, 1, 2}:
            return {}, []
        if low == high:
            return {}, words
        return {w: _level((n - low) / (high - low)) for w, n in numbers.items()}, []
    told = {w: GRADE_OF[normal(w)] for w in words if normal(w) in GRADE_OF}
    if {w.lower() for w in words} <= GRADES.keys():
        return {}, []
    return told, [w for w in words if w not in told]


def _whole(text: str) -> str:
    return text[:-2] if text.endswith(".0") else text


def _level(share: float) -> str:
    return "exact" if share >= 0.75 else "substitute" if share >= 0.4 else "irrelevant"
