"""What the base LLM is trained on, as token rows: each row has several answers to give.

A row is one query and some listings, each followed by the label slot and its answer. Lessons go
from two bare words to whole listings; a lesson is over when it is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csrm_tasks.demo.bases.questions import READING, WORDS, Page, QuestionSource, uniforms
from csrm_tasks.demo.bases.text import Library
from csrm_tasks.demo.market.compose import pick
from csrm_tasks.llm.prompt.encoding import Ids, PromptEncoder
from csrm_tasks.llm.prompt.prompts import ProductFields, QueryFields, product_segments

SHARES = {"words": 0.4, "category": 0.4, "maker": 0.2}


@dataclass(frozen=True)
class Row:
    """Token ids, the positions of the label slots in it, and the answers' token ids."""

    ids: Ids
    slots: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lesson:
    """A source of pages and the training accuracy at which it is learnt."""

    name: str
    learnt: float
    page: Callable[[], Page]


def page_row(encoder: PromptEncoder, page: Page) -> Row:
    """Return the row of a page: prefix, then listing, slot and answer again and again."""
    tokens = [int(i) for i in encoder.tokenizer.convert_tokens_to_ids(list(page.space.tokens))]
    parts, slots = [encoder.prefix(page.space, page.query)], []
    length = len(parts[0])
    for product, answer in zip(page.products, page.answers, strict=True):
        given = encoder.product(product)
        length += len(given) + len(encoder.slot) + 1
        slots.append(length - 2)
        parts += [given, encoder.slot, np.asarray([tokens[answer]], np.int32)]
    answers = np.asarray([tokens[a] for a in page.answers], np.int64)
    return Row(np.concatenate(parts), np.asarray(slots, np.int64), answers)


def listing_row(encoder: PromptEncoder, library: Library, u: float) -> Ids:
    """Return one listing, end of text last, for plain language modelling."""
    listing = pick(library.listings, u)
    fields = (listing.title, listing.brand, listing.category, listing.description)
    parts = [encoder.segment(s) for s in product_segments(ProductFields(*fields))]
    end = np.asarray([encoder.tokenizer.eos_token_id], np.int32)
    return np.concatenate([*parts, end])


def lessons(libraries: Sequence[Library], seed: int) -> list[Lesson]:
    """Return the lessons in order: bare words, more of them, titles, whole listings."""
    words = [_bare_words(library) for library in libraries]
    draws = [uniforms(seed + i) for i in range(4)]
    plain = [
        QuestionSource(library, seed + 10 + i, plain=True) for i, library in enumerate(libraries)
    ]
    whole = [QuestionSource(library, seed + 20 + i) for i, library in enumerate(libraries)]
    return [
        Lesson("word", 0.95, lambda: _list_page(words, draws[0], 1, 1)),
        Lesson("words", 0.90, lambda: _list_page(words, draws[1], 2, 3)),
        Lesson("titles", 0.80, lambda: _drawn_page(plain, draws[2])),
        Lesson("listings", 2.0, lambda: _drawn_page(whole, draws[3])),
    ]


def _drawn_page(readers: Sequence[QuestionSource], u: Iterator[float]) -> Page:
    reader, choice = pick(readers, next(u)), next(u)
    bounds = np.cumsum([SHARES[space.name] for space in READING])
    return reader.page(READING[min(int((choice > bounds).sum()), len(READING) - 1)], 4)


def _bare_words(library: Library) -> list[str]:
    """Names of types, values and brands."""
    lexicon = library.lexicon
    tables = (lexicon.types, lexicon.values, lexicon.brands)
    return sorted({row.words.of(library.lang) for table in tables for row in table})


def _list_page(words: Sequence[Sequence[str]], u: Iterator[float], asked: int, shown: int) -> Page:
    """Draw up to ``asked`` words, and eight lists of up to ``shown`` or ``asked`` words."""
    known = pick(words, next(u))
    query = list(dict.fromkeys(pick(known, next(u)) for _ in range(1 + int(next(u) * asked))))
    lists, answers = [], []
    for _ in range(8):
        answer = pick((0, 2) if len(query) == 1 else (0, 1, 2), next(u))
        held = {0: 0, 1: 1 + int(next(u) * (len(query) - 1)), 2: len(query)}[answer]
        there = sorted(query, key=lambda _: next(u))[:held]
        others = (pick(known, next(u)) for _ in range(1 + int(next(u) * shown)))
        more = [w for w in others if w not in query][: max(0 if there else 1, shown - held)]
        if there or more:
            lists.append(ProductFields(" ".join(sorted(there + more, key=lambda _: next(u)))))
            answers.append(int(answer))
    return Page(WORDS, QueryFields(" ".join(query)), tuple(lists), tuple(answers))
