"""Prompt templates of the relevance LLM, versioned: the version is part of a model's identity (A4).

A prompt is instruction, query fields, product fields, label slot, in that order, so that what
depends on the query alone comes first and one prefix serves all products of a query::

    relevance            instruction of the label space
    Q:安城               query
    B:none               matched query brand
    R:農心安城湯麵       retrieved titles (RQA), joined by "|"
    T:不倒翁辣牛肉湯麵   product title
    M:OTTOGI             product brand
    C:食品 > 泡麵        product category
    D:…                  product description
    L:                   label slot; the next token is the label

The tasks of paper 2 name the query's language, and then what is judged (A3)::

    Is the category right for this query? Answer yes or no.
    Q:빨간 주전자        query
    G:Korean             its language
    C:Home > Teapots     the category's path; of query-item T: and a title
    L:

Where a model reads a pivot language (A52), the query's and the title's translation into it stands
behind the original, in the same line after "|"; where there is none, the line is as it was.

Query headers stay when a field is empty ("none"); empty product fields are left out. The fixed
text is short because every token of it is paid for once per pair. A prompt is a list of segments
(one per line above, one per retrieved title), each tokenised by itself and joined as token ids
(:mod:`csrm_tasks.llm.prompt.encoding`): a segment is tokenised once, however many pairs it occurs
in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from csrm_tasks.text import LEVEL_SEPARATOR, compose

if TYPE_CHECKING:
    from csrm_tasks.sections import Llm

PROMPT_VERSION = "1"

NONE = "none"
LABEL_SLOT = "\nL:"
TARGET_SLOT = "\nO:"
TITLE_SEPARATOR = "|"


@dataclass(frozen=True)
class LabelSpace:
    """One classification task read out from the same model (A3)."""

    name: str
    tokens: tuple[str, ...]  # label k is the token tokens[k]
    instruction: str
    names_language: bool = False  # of the query, in place of its brand and retrieved titles


RELEVANCE = LabelSpace("relevance", ("0", "1", "2"), "relevance")
CVR = LabelSpace("cvr", ("no", "yes"), "conversion")
LABEL_SPACES = {space.name: space for space in (RELEVANCE, CVR)}
QC = LabelSpace("qc", CVR.tokens, "Is the category right for this query? Answer yes or no.", True)
QI = LabelSpace("qi", CVR.tokens, "Is the product right for this query? Answer yes or no.", True)
TASK_SPACES = {space.name: space for space in (QC, QI)}  # of judged tasks besides relevance

LANGUAGES = {  # as paper 2's instruction names them; others by their code
    "ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fr": "French",
    "hi": "Hindi", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "ms": "Malay", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian",
    "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip

# Every fixed piece of text, for a tokenizer that wants them whole.
TEMPLATE_PIECES = (
    "relevance", "conversion", "translate",
    "\nQ:", "\nB:", "\nR:", "\nT:", "\nM:", "\nC:", "\nD:", "\nS:", LABEL_SLOT, TARGET_SLOT,
    TITLE_SEPARATOR, NONE, *RELEVANCE.tokens, *CVR.tokens,
)  # fmt: skip


@dataclass(frozen=True)
class QueryFields:
    """What depends on the query alone (paper 1, Table 1)."""

    query: str
    brand: str = ""  # matched by the query-brand dictionary
    titles: tuple[str, ...] = ()  # RQA, already cut to length (A24)
    pivot: str = ""  # the query in the pivot language (A52)
    language: str = ""  # by name, for the tasks that say it


@dataclass(frozen=True)
class ProductFields:
    """What depends on the product alone (paper 1, Table 1)."""

    title: str
    brand: str = ""
    category: str = ""
    description: str = ""
    pivot: str = ""  # the title in the pivot language (A52)
    path: str = ""  # of a category that is judged itself: read whole, whatever a product's form


PRODUCT_FIELDS = ("brand", "category", "description")  # besides the title


@dataclass(frozen=True)
class ProductForm:
    """Which parts of a product a prompt holds: part of what a model is (A4)."""

    fields: tuple[str, ...] = PRODUCT_FIELDS  # besides the title
    category_levels: int | None = None  # of the path, from its end; None: all


WHOLE_PRODUCT = ProductForm()


def product_form(config: Llm) -> ProductForm:
    """Return which parts of a product the prompts of a market hold."""
    return ProductForm(config.product_fields, config.category_levels)


def language_name(locale: str) -> str:
    """Return the language of a locale such as ko-KR by its English name, else its code."""
    code = locale.partition("-")[0]
    return LANGUAGES.get(code, code)


def _clean(text: str) -> str:
    """Compose, and collapse white space: a field must not forge a header or the label slot."""
    return " ".join(compose(text).split())


def query_text(query: str) -> str:
    """Return the segment of a query's words."""
    return f"\nQ:{_clean(query)}"


def query_segments(space: LabelSpace, query: QueryFields) -> tuple[str, ...]:
    """Return the segments of the prefix that all products of one query share."""
    if space.names_language:
        return space.instruction, query_text(query.query), f"\nG:{_clean(query.language) or NONE}"
    titles = [_clean(t) for t in query.titles] or [NONE]
    return (
        space.instruction,
        query_text(query.query),
        *_behind(query.pivot),
        f"\nB:{_clean(query.brand) or NONE}",
        f"\nR:{titles[0]}",
        *(TITLE_SEPARATOR + t for t in titles[1:]),
    )


def product_segments(product: ProductFields, form: ProductForm = WHOLE_PRODUCT) -> tuple[str, ...]:
    """Return the segments of the product, the most important first."""
    fields = (
        ("\nC:", "path", product.path),
        ("\nT:", "title", product.title),
        ("\nM:", "brand", product.brand),
        ("\nC:", "category", _last_levels(product.category, form.category_levels)),
        ("\nD:", "description", product.description),
    )
    read = ("path", "title", *form.fields)
    path, title, *others = (
        (header + _clean(text) if name in read and text.strip() else "")
        for header, name, text in fields
    )
    return tuple(s for s in (path, title, *_behind(product.pivot), *others) if s)


def _behind(translation: str) -> tuple[str, ...]:
    """Return the segment of a translation that stands behind its original; () for none (A52)."""
    return (TITLE_SEPARATOR + _clean(translation),) if translation.strip() else ()


def _last_levels(category: str, levels: int | None) -> str:
    path = category.split(LEVEL_SEPARATOR)
    return LEVEL_SEPARATOR.join(path if levels is None else path[-levels:])


def relevance_prompt(space: LabelSpace, query: QueryFields, product: ProductFields) -> str:
    """Return the whole prompt as text; the label token comes next."""
    return "".join((*query_segments(space, query), *product_segments(product), LABEL_SLOT))


def translation_segments(
    kind: str, source_locale: str, target_locale: str, text: str
) -> tuple[str, ...]:
    """Return the prompt of one translation (A7); the target text and end of text come next.

    ``kind`` is category, brand, title or query.
    """
    direction = f"{source_locale}>{target_locale}"
    return f"translate {kind} {direction}", f"\nS:{_clean(text)}", TARGET_SLOT
