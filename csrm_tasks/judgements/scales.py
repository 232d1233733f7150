"""What the ratings of a file mean: said by a person, or by the file itself, never guessed.

A number means nothing by itself: 1 is the least of five stars and the most of yes and no. So
numbers need ``--grades`` or a scale that the file declares in words of ours; words of ours (exact,
substitute, irrelevant, complement, ESCI's letters) say what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.ingest.contract.contracts import GRADES
from csrm_tasks.judgements.formats.book import UNRATEABLE, WORDS, Book, Rated
from csrm_tasks.judgements.formats.fields import word_of

LETTERS = {"e": "exact", "s": "substitute", "c": "complement", "i": "irrelevant"}
MEANINGS = (*LETTERS.values(), UNRATEABLE)
EXAMPLE = "as 0=irrelevant,1=substitute,2=exact"


def parse(given: str) -> dict[str, str]:
    """Return rating → meaning of ``--grades``; raises :class:`ConfigError` naming the part."""
    found: dict[str, str] = {}
    for part in given.split(","):
        rating, _, meaning = (p.strip() for p in part.rpartition("="))
        if not rating or meaning not in MEANINGS:
            one_of = ", ".join(MEANINGS)
            raise ConfigError(f"--grades: {part!r} is no RATING=MEANING ({one_of}); {EXAMPLE}")
        if found.setdefault(word_of(rating), meaning) != meaning:
            raise ConfigError(f"--grades: rating {rating} has two meanings; say one")
    return found


def writing(given: str | None) -> dict[int, str]:
    """Return grade → rating of ``--grades`` for an export; our own numbers where none is given.

    Raises :class:`ConfigError` where a grade has none, or two.
    """
    if given is None:
        return {grade: str(grade) for grade in WORDS}
    found: dict[int, str] = {}
    for rating, meaning in parse(given).items():
        grade = GRADES.get(meaning)
        if not isinstance(grade, int) or meaning == LETTERS["c"] or grade in found:
            raise ConfigError(
                f"--grades: {rating}={meaning}: an export writes each of exact, substitute and "
                "irrelevant as one rating"
            )
        found[grade] = rating
    missing = [word for grade, word in WORDS.items() if grade not in found]
    if missing:
        raise ConfigError(f"--grades: says no rating for {missing[0]}; {EXAMPLE}")
    return found


def meanings(path: Path, book: Book, given: Mapping[str, str] | None) -> dict[str, str]:
    """Return what each rating that occurs in a book means (one of :data:`MEANINGS`).

    Raises :class:`DataError` naming file, entry and rating where nobody has said it.
    """
    first = {one.rating: one for one in reversed(book.rated) if not one.unrateable}
    if "" in first:
        raise DataError(f"{path}: row {first[''].row}: rating is missing; mend or remove the entry")
    scale = given if given is not None else _in_our_words(path, book.scale, first)
    found = {}
    for rating, one in first.items():
        meaning = scale.get(rating) if scale else _word(rating)
        if meaning is None:
            raise _unsaid(path, one, list(first), scale)
        found[rating] = meaning
    return found


def _word(text: str) -> str | None:
    word = text.casefold()
    return word if word in LETTERS.values() else LETTERS.get(word)


def _in_our_words(
    path: Path, declared: Mapping[str, str], used: Mapping[str, Rated]
) -> dict[str, str]:
    """Return the scale that a file declares; raises where its words are not ours."""
    found = {rating: _word(label) for rating, label in declared.items()}
    odd = [rating for rating in used if rating in found and found[rating] is None]
    if odd:
        shown = ", ".join(f"{r}={label or 'no word'}" for r, label in declared.items())
        raise DataError(
            f"{path}: its scale is {shown}, whose words are not ours; say what they mean: "
            f"--grades, {EXAMPLE}"
        )
    return {rating: word for rating, word in found.items() if word is not None}


def _unsaid(path: Path, one: Rated, used: Sequence[str], scale: Mapping[str, str]) -> DataError:
    if scale:
        known = ", ".join(f"{rating}={meaning}" for rating, meaning in scale.items())
        why = f"has no meaning ({known}); say one with --grades, {EXAMPLE}"
    else:
        why = (
            f"is on a scale that the file does not say (ratings: {', '.join(sorted(used)[:9])}); "
            f"say what they mean: --grades, {EXAMPLE}"
        )
    return DataError(f"{path}: row {one.row}: rating {one.rating!r} {why}")
