"""Prompts as token ids: every segment is tokenised once and kept; prompts are joined from them.

Training draws the same queries and products again and again, and scoring pairs one query with a
hundred products, so a prompt costs one concatenation of arrays, not a run of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.prompt.prompts import (
    LABEL_SLOT,
    WHOLE_PRODUCT,
    LabelSpace,
    ProductFields,
    ProductForm,
    QueryFields,
    product_segments,
    query_segments,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = npt.NDArray[np.int32]

TOKENIZE_AT_ONCE = 4096


class PromptEncoder:
    """Token ids of prompts, at most ``max_length`` long including the label slot.

    A product that does not fit is cut from its end, so its last field goes first and the label
    slot never does; ``truncated`` counts such prompts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        form: ProductForm = WHOLE_PRODUCT,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.form = form
        self.truncated = 0
        self._segments: dict[str, Ids] = {}
        self._prefixes: dict[tuple[str, QueryFields], Ids] = {}
        self._products: dict[ProductFields, Ids] = {}
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a", add_special_tokens=True)["input_ids"]
        if full[len(full) - len(bare) :] != bare:
            raise ConfigError(
                f"tokenizer {tokenizer.name_or_path!r} appends special tokens to a text; "
                "use the tokenizer of a causal language model"
            )
        self._start = np.asarray(full[: len(full) - len(bare)], np.int32)
        end = tokenizer.eos_token_id
        self.stop = np.asarray([] if end is None else [end], np.int32)  # of a text
        self.slot = self.segment(LABEL_SLOT)

    def tokenize(self, segments: Iterable[str]) -> None:
        """Tokenise what is not known yet, many texts per call (much faster than one by one)."""
        new = sorted({s for s in segments if s not in self._segments})
        for start in range(0, len(new), TOKENIZE_AT_ONCE):
            chunk = new[start : start + TOKENIZE_AT_ONCE]
            encoded = self.tokenizer(chunk, add_special_tokens=False)["input_ids"]
            self._segments.update(
                (text, np.asarray(ids, np.int32)) for text, ids in zip(chunk, encoded, strict=True)
            )

    def prepare(
        self,
        space: LabelSpace,
        queries: Iterable[QueryFields],
        products: Iterable[ProductFields],
    ) -> None:
        """Tokenise every segment of these queries and products at once."""
        self.tokenize(s for q in set(queries) for s in query_segments(space, q))
        self.tokenize(s for p in set(products) for s in product_segments(p, self.form))

    def segment(self, text: str) -> Ids:
        """Return the token ids of one segment, without special tokens."""
        if text not in self._segments:
            self.tokenize([text])
        return self._segments[text]

    def join(self, segments: Iterable[str]) -> Ids:
        """Return start token (if the tokenizer has one) and segments, joined."""
        return np.concatenate([self._start, *(self.segment(s) for s in segments)])

    def prefix(self, space: LabelSpace, query: QueryFields) -> Ids:
        """Return what all prompts of one query start with (A4), uncut."""
        key = (space.name, query)
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = self._prefixes[key] = self.join(query_segments(space, query))
        return prefix

    def product(self, product: ProductFields) -> Ids:
        """Return the product's part, uncut."""
        ids = self._products.get(product)
        if ids is None:
            parts = [self.segment(s) for s in product_segments(product, self.form)]
            ids = self._products[product] = np.concatenate([*parts, np.empty(0, np.int32)])
        return ids

    def length(self, space: LabelSpace, query: QueryFields, product: ProductFields) -> int:
        """Return the number of tokens of :meth:`prompt` without building it."""
        whole = len(self.prefix(space, query)) + len(self.product(product)) + len(self.slot)
        return min(whole, self.max_length)

    def parts(
        self, space: LabelSpace, query: QueryFields, product: ProductFields
    ) -> tuple[Ids, Ids]:
        """Return the query's part and the rest with the label slot last, cut to ``max_length``."""
        prefix, tail = self.prefix(space, query), self.product(product)
        room = self.max_length - len(self.slot)
        if len(prefix) + len(tail) > room:
            self.truncated += 1
            prefix = prefix[:room]
            tail = tail[: room - len(prefix)]
        return prefix, np.concatenate([tail, self.slot])

    def prompt(self, space: LabelSpace, query: QueryFields, product: ProductFields) -> Ids:
        """Return the whole prompt: both :meth:`parts`, joined."""
        return np.concatenate(self.parts(space, query, product))
