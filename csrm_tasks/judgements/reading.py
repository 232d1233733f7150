"""Files of a judgement tool as judgements on our scale, each rater's of a pair once.

Who is not named is one rater, called by the format or as the importer says: a row that is there
twice, or in two exports of one tool, is no agreement (A10).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contract.contracts import GRADES
from csrm_tasks.judgements import scales
from csrm_tasks.judgements.formats.book import UNRATEABLE, WORDS, Asked, Book, Judgement, Rated
from csrm_tasks.judgements.formats.registry import FORMATS
from csrm_tasks.text import compose, normalise

Key = tuple[str, str, str]  # normalised query, product, rater
Place = tuple[Path, int]


@dataclass(frozen=True)
class Wanted:
    """How files are to be read."""

    format: str
    asked: Asked = field(default_factory=Asked)
    grades: Mapping[str, str] | None = None  # rating → meaning; None: the files say it
    rater: str | None = None  # who judged, where a file does not say
    complement: str = "irrelevant"  # what ESCI's C means in the market


@dataclass
class Readings:
    """What files say, and what was not taken as a judgement."""

    judgements: list[Judgement] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)  # of each judgement
    scale: dict[str, str] = field(default_factory=dict)  # rating → meaning
    ours: list[str] = field(default_factory=list)  # titles of exports of CSRM among the files
    passed_over: Counter[str] = field(default_factory=Counter)
    repeated: int = 0  # said twice by the same rater


def read_files(paths: Sequence[Path], wanted: Wanted) -> Readings:
    """Read files of one format; raises :class:`DataError` naming file, entry and what to do.

    Judgements of what cannot be judged are there, with grade None. Nothing is read in part.
    """
    found = Readings()
    said: dict[Key, list[tuple[Judgement, Place]]] = {}
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: is no file; give the file that the tool exported")
        book = FORMATS[wanted.format].read(path, wanted.asked)
        if not book.rated:
            passed = ", ".join(f"{n} {what}" for what, n in book.passed_over.items() if n)
            raise DataError(f"{path}: has no judgement{f' ({passed})' if passed else ''}")
        found.passed_over.update(book.passed_over)
        found.ours += [book.ours] if book.ours else []
        _add(path, book, wanted, found, said)
    for ones in said.values():
        for one, place in ones:
            found.judgements.append(one)
            found.places.append(place)
    return found


def _repeats(one: Judgement, other: Judgement) -> bool:
    """Whether two say the same at one time; a time that is not said may be any."""
    same_time = not (one.rated_at and other.rated_at) or one.rated_at == other.rated_at
    return one.grade == other.grade and same_time


def _add(
    path: Path,
    book: Book,
    wanted: Wanted,
    found: Readings,
    said: dict[Key, list[tuple[Judgement, Place]]],
) -> None:
    meaning = scales.meanings(path, book, wanted.grades)
    for rating, word in meaning.items():
        if found.scale.setdefault(rating, word) != word:
            raise DataError(
                f"{path}: rating {rating} means {word} here and {found.scale[rating]} in another "
                "file; import them one by one"
            )
    for rated in book.rated:
        one = _judgement(rated, meaning, wanted)
        key = (normalise(one.query), one.product_id, one.rater)
        earlier = said.setdefault(key, [])
        if any(_repeats(one, e) for e, _ in earlier):
            found.repeated += 1
            continue
        for other, place in earlier:
            if not (one.rated_at and other.rated_at and one.rated_at != other.rated_at):
                raise _differs(one, (path, rated.row), other, place, not rated.rater)
        earlier.append((one, (path, rated.row)))


def _judgement(rated: Rated, meaning: Mapping[str, str], wanted: Wanted) -> Judgement:
    word = UNRATEABLE if rated.unrateable else meaning[rated.rating]
    word = wanted.complement if word == "complement" else word
    grade = None if word == UNRATEABLE else GRADES[word]
    assert grade is None or isinstance(grade, int)
    rater = rated.rater or wanted.rater or wanted.format
    return Judgement(
        compose(rated.query), compose(rated.product_id), grade, compose(rater),
        compose(rated.explanation), rated.rated_at,
    )  # fmt: skip


def _differs(one: Judgement, here: Place, other: Judgement, there: Place, name: bool) -> DataError:
    words = [UNRATEABLE if j.grade is None else WORDS[j.grade] for j in (other, one)]
    cure = "import each book with its own --rater NAME, or correct" if name else "correct"
    return DataError(
        f"query {one.query!r} with document {one.product_id!r}: rater {one.rater!r} says "
        f"{words[0]} in {there[0]} row {there[1]} and {words[1]} in {here[0]} row {here[1]}; "
        f"{cure} one of them"
    )
