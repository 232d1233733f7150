"""What every format is read into, and written from.

A rating keeps the file's own spelling until :mod:`csrm_tasks.judgements.scales` says what it means:
a reader never guesses a scale. What left CSRM says so (:attr:`Page.title`) wherever its format has
a place for a few words: gold must not come back to be learnt from, nor a consensus as a vote.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from csrm_tasks.artifacts import json_digest
from csrm_tasks.records import Grade
from csrm_tasks.text import normalise

OURS = re.compile(r"csrm-(consensus|gold|soft|audits)[: ][^;\"]*")  # see Page.title
UNRATEABLE = "unrateable"
WORDS = {int(g): g.name.lower() for g in Grade}
QUESTION, WHY = "grade", "explanation"  # what our exports call both in an annotation tool
TEXTS = ("title", "brand", "category")  # of a product, shown to raters there
DECLARED = re.compile(r"grades((?: \S+=[a-z]+)+)")  # how our own files say their scale


@dataclass(frozen=True)
class Asked:
    """What a file does not say itself."""

    question: str | None = None  # of an annotation tool, which of its questions is the grade
    queries: Path | None = None  # of qrels: query identifier, tab, query


@dataclass(frozen=True)
class Rated:
    """One rater's judgement as a file has it."""

    row: int  # which of the file's judgements, from 1
    query: str
    product_id: str
    rating: str  # on the file's own scale; "" where it is not judged yet
    rater: str = ""
    explanation: str = ""
    unrateable: bool = False
    rated_at: str = ""


@dataclass(frozen=True)
class Book:
    """What one file says."""

    rated: Sequence[Rated]
    scale: Mapping[str, str] = field(default_factory=dict)  # rating → what the file says it means
    ours: str = ""  # title of the export of CSRM that it is, else ""
    passed_over: Mapping[str, int] = field(
        default_factory=Counter
    )  # what is no judgement → how many


@dataclass(frozen=True)
class Judgement:
    """One judgement on our scale; ``grade`` is None where the rater says it cannot be judged."""

    query: str
    product_id: str
    grade: int | None
    rater: str = ""  # "" nobody in particular
    explanation: str = ""
    rated_at: str = ""
    probabilities: tuple[float, float, float] | None = None  # of a model: a soft grade

    @property
    def expected(self) -> float:
        """Expected grade of a soft one, from 0 to 2."""
        assert self.probabilities is not None
        return round(self.probabilities[1] + 2 * self.probabilities[2], 4)

    @property
    def surest(self) -> tuple[str, float]:
        """The word of a soft one's most probable grade, the least of equals, and how probable."""
        assert self.probabilities is not None
        best = max(range(3), key=self.probabilities.__getitem__)
        return WORDS[best], round(self.probabilities[best], 4)


@dataclass(frozen=True)
class Page:
    """What is to be written; judgements are in the order of the file."""

    what: str  # consensus | gold | soft | audits
    whose: str  # market and locale
    judgements: Sequence[Judgement]
    ratings: Mapping[int, str]  # grade → how it is written
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # product → its texts
    index: str = "products"

    @property
    def title(self) -> str:
        """What it is, by which :func:`ours` finds it again."""
        return f"csrm-{self.what} {self.whose}"

    @property
    def declaration(self) -> str:
        """The scale in words, for a field that holds any text."""
        return "grades " + " ".join(f"{r}={WORDS[g]}" for g, r in sorted(self.ratings.items()))

    def shown(self, product_id: str) -> dict[str, str]:
        """Return :data:`TEXTS` of a product, "" where there is none."""
        texts = self.texts.get(product_id, {})
        return {name: texts.get(name, "") for name in TEXTS}

    def by_query(self) -> dict[str, list[Judgement]]:
        """Return the judgements of each query, in order."""
        found: dict[str, list[Judgement]] = {}
        for one in self.judgements:
            found.setdefault(one.query, []).append(one)
        return found

    def rating(self, one: Judgement) -> str:
        """Return a judgement as the page's scale writes it."""
        assert one.grade is not None
        return self.ratings[one.grade]


def declared(*texts: object) -> dict[str, str]:
    """Return the scale that one of our own files declares in a text, else nothing."""
    for text in texts:
        found = DECLARED.search(text) if isinstance(text, str) else None
        if found is not None:
            return dict(part.split("=", 1) for part in found[1].split())  # type: ignore[misc]
    return {}


def ours(*texts: object) -> str:
    """Return the title of an export of CSRM that one of the texts holds, with blanks, else ""."""
    found = (OURS.search(text) for text in texts if isinstance(text, str))
    return next((one[0].replace(":", " ").strip() for one in found if one), "")


def grades_digest(judgements: Sequence[Judgement]) -> str:
    """Return the digest of which pair has which grades, in whichever format and order they come.

    Raters and reasons are not in it: some formats have no place for them.
    """
    rows = sorted(
        (normalise(one.query), one.product_id, one.grade)
        for one in judgements
        if one.grade is not None
    )
    return json_digest(rows)
