"""One meaning of "the same text": what queries are grouped, hashed and matched by.

Normalisation is NFKC (which also folds full-width Latin and half-width kana), case folding,
removal of invisible characters, and runs of white space as one space. What NFKC makes of two kinds
of shops' texts is mended: in "치킨ㆍ피자" Korean writes a letter (U+318D) for a middle dot, which
it is here, and 1½ is "1 1/2", not eleven halves. It is idempotent, so that an identifier made from
a normalised query equals the one made from the query as typed.

Before that, every text is composed (Unicode NFC) where it comes in, identifiers too: macOS writes
decomposed Hangul and kana, which are other characters for a tokenizer, a limit and a comparison.
What was stored by earlier code is composed where it is read.

A text's language is told by its script. That is exact for Korean and for kana, and it cannot tell
English from French or Chinese from Japanese written in kanji alone; it needs no model, gives the
same answer for ever, and what drift watches (Korean among Chinese queries) is a matter of script.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import polars as pl

from csrm_tasks.blobs import text_digest

LEVEL_SEPARATOR = " > "  # between the levels of a category path, whatever a market writes

# What Unicode calls default ignorable: zero-width characters, direction marks and isolates, soft
# hyphen, byte order mark, Hangul fillers, variation selectors. Typed by nobody, copied by many, and
# two queries that differ only by them are one query.
_IGNORABLE = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
INVISIBLE = dict.fromkeys(c for first, last in _IGNORABLE for c in range(first, last + 1))

# The Korean vowel ㆍ behind no consonant: it is no vowel then, but what stands between two words.
_DOT = re.compile("(?<![\u1100-\u115e])\u119e")
_MIXED_NUMBER = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e\u2189])")

# Texts that earlier code normalised otherwise: their stored identifiers are made anew when read.
REDEFINED = (
    r"[\x{34F}\x{61C}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{2061}-\x{206F}\x{3164}"
    r"\x{FE00}-\x{FE0F}\x{FFA0}\x{FFF0}-\x{FFF8}\x{1BCA0}-\x{1BCA3}\x{1D173}-\x{1D17A}"
    r"\x{E0000}-\x{E0FFF}\x{318D}\x{119E}\x{BC}-\x{BE}\x{2150}-\x{215F}\x{2189}\x{2044}]"
)

# Where NFC may change a text: marks, conjoining Hangul, and characters that stand for others. More
# than needed, for a look at the text is much cheaper than composing it.
COMPOSABLE = (
    r"[\p{M}\x{0340}-\x{0387}\x{0958}-\x{0FFF}\x{1100}-\x{11FF}\x{1F00}-\x{2001}\x{2126}-\x{232A}"
    r"\x{2ADC}\x{F900}-\x{FB4F}\x{10000}-\x{1FFFF}\x{2F800}-\x{2FA1F}]"
)

LANGUAGES = ("ko", "ja", "zh", "latin", "other", "none")


def compose(text: str) -> str:
    """Return ``text`` in Unicode NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def composed_list(texts: Sequence[str]) -> Sequence[str]:
    """Return texts in Unicode NFC: the same list where all are ASCII, as identifiers mostly are."""
    return texts if "".join(texts).isascii() else [compose(text) for text in texts]


def composed(texts: pl.Series) -> pl.Series:
    """Return a column of strings in Unicode NFC; hardly any needs more than a look at it."""
    if is_ascii(texts):
        return texts
    return texts.str.normalize("NFC") if texts.str.contains(COMPOSABLE).any() else texts


def composed_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with every column of strings, or of lists of them, in Unicode NFC."""
    each = pl.element().str.normalize("NFC")
    lists = (c for c in frame if c.dtype == pl.List(pl.String))
    odd = (c.list.eval(each) for c in lists if not is_ascii(c.explode()))
    texts = pl.selectors.string()
    ascii_only = frame.select(texts.str.len_bytes().sum() == texts.str.len_chars().sum())
    others = (composed(frame[c.name]) for c in ascii_only if not c.all())
    return frame.with_columns(*others, *odd)


def is_ascii(texts: pl.Series) -> bool:
    """Return whether a column of strings is ASCII; nulls are not seen."""
    return bool(texts.str.len_bytes().sum() == texts.str.len_chars().sum())


def spellings(texts: pl.Series) -> pl.Series:
    """Return distinct texts composed and, where another, decomposed: as earlier code stored them.

    ``texts`` are composed.
    """
    distinct = texts.unique()
    if is_ascii(distinct):
        return distinct
    return pl.concat([distinct, distinct.str.normalize("NFD")]).unique()


def normalise(text: str) -> str:
    """Return the canonical form of ``text``; a canonical form is its own."""
    if text.isascii():
        return " ".join(text.lower().split())
    apart = _MIXED_NUMBER.sub(" ", text.translate(INVISIBLE))
    folded = unicodedata.normalize("NFKC", apart).casefold()
    # Case folding may leave a sequence that NFKC composes (ǰ), and NFKC may make a space (U+00A8).
    folded = unicodedata.normalize("NFKC", folded)
    return " ".join(_DOT.sub("·", folded).replace("\u2044", "/").split())


def as_read(text: str, prefix: str = "") -> str:
    """Return ``text`` as an encoder reads it: in canonical form, after the prefix of its part.

    A prefix ("query: ") stands as the market file writes it. Training, mining, embedding and
    serving all come by here.
    """
    return prefix + normalise(text)


def prefix_tokens(count: Callable[[str], int], prefix: str) -> int:
    """Return how many tokens ``prefix`` adds to a text, where ``count`` counts those of a text.

    Lengths in a market file are of the text itself, special tokens included: a prefix comes on top,
    so that it never takes the place of a text's end.
    """
    return max(count(prefix + "a") - count("a"), 0) if prefix else 0


def query_id(locale: str, query: str) -> str:
    """Return the identifier of a query: the digest of its locale and its normalised text."""
    return text_digest(locale, normalise(query))


def pair_id(query_id: str, product_id: str) -> str:
    """Return the identifier of a query-product pair."""
    return text_digest(query_id, product_id)


def normalised(texts: pl.Series) -> pl.Series:
    """Normalise a column of strings; every distinct value is worked on once."""
    return _map_distinct(
        texts, [normalise(t) for t in texts.drop_nulls().unique(maintain_order=True)]
    )


def query_ids(locale: str, norms: pl.Series) -> pl.Series:
    """Return query identifiers of a column of *normalised* queries of one locale."""
    distinct = norms.drop_nulls().unique(maintain_order=True)
    return _map_distinct(norms, [text_digest(locale, n) for n in distinct])


def pair_ids(queries: pl.Series, products: pl.Series) -> pl.Series:
    """Return pair identifiers of two aligned columns."""
    made = (pair_id(q, p) for q, p in zip(queries, products, strict=True))
    return pl.Series("pair_id", list(made), dtype=pl.String)


def language_of(text: pl.Expr) -> pl.Expr:
    """Return the language tag of a column of texts, one of :data:`LANGUAGES`; null stays null.

    Han, kana or Hangul decide wherever they occur, for brands and models are written in Latin
    everywhere ("iphone 15 手機殼" is zh). Between them: ko when Hangul is at least half, else ja
    for any kana, else zh. The kana の alone is no Japanese: Taiwanese brands are fond of it.
    Without them: latin when a Latin letter occurs, other for other letters, none for no letter.
    """
    # ㆍ is a separator here, and what nobody sees is of no language.
    text = text.str.normalize("NFC").str.replace_all(r"[\x{318D}\x{119E}\p{DI}]", "")
    hangul = text.str.count_matches(r"\p{Hangul}")
    kana = text.str.count_matches(r"[\p{Hiragana}\p{Katakana}--の]")
    han = text.str.count_matches(r"\p{Han}")
    return (
        pl.when(text.is_null()).then(text)
        .when((hangul > 0) & (hangul >= kana + han)).then(pl.lit("ko"))
        .when(kana > 0).then(pl.lit("ja"))
        .when(han > 0).then(pl.lit("zh"))
        .when(text.str.contains(r"\p{Latin}")).then(pl.lit("latin"))
        .when(text.str.contains(r"\p{Alphabetic}")).then(pl.lit("other"))
        .otherwise(pl.lit("none"))
    )  # fmt: skip


def _map_distinct(values: pl.Series, mapped: Iterable[str]) -> pl.Series:
    distinct = values.drop_nulls().unique(maintain_order=True)
    if distinct.is_empty():
        return values
    made = pl.Series(list(mapped), dtype=pl.String)
    return values.replace_strict(distinct, made, return_dtype=pl.String)
