"""Texts as the towers read them, tokenised once (numpy and tokenizers only)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from csrm_tasks.ragged import Ragged, Rows, length_chunks
from csrm_tasks.text import as_read, prefix_tokens
from csrm_tasks.towers.serving.texts import text_version


class TextReader:
    """How one tower reads texts: its prefix, its tokenizer, its length; callable by threads."""

    def __init__(self, definition: str, limit: int, pad_id: int, prefix: str = "") -> None:
        """Build it from the text of a ``tokenizer.json``.

        Texts are cut to ``limit`` tokens, special tokens included; those of ``prefix`` come on top
        (:func:`csrm_tasks.text.prefix_tokens`). The setting lives in the tokenizer object, which is
        why the two towers of a server never share one.
        """
        self._tokenizer = Tokenizer.from_str(definition)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = prefix_tokens(lambda text: len(self._tokenizer.encode(text).ids), prefix)
        self.tokens = limit + added  # of the longest text with its prefix
        self._tokenizer.enable_truncation(max_length=self.tokens)
        self._pad_id, self._prefix = pad_id, prefix

    def __call__(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise ``texts``."""
        read = [as_read(text, self._prefix) for text in texts]
        return TokenTable([e.ids for e in _encode(self._tokenizer, read)], self._pad_id)


@dataclass(frozen=True)
class TowerTokenizer:
    """How both towers read texts: the text of ``tokenizer.json``, lengths and prefixes."""

    definition: str
    query_tokens: int  # of the text and the special tokens; a prefix comes on top
    title_tokens: int
    pad_id: int
    query_prefix: str = ""
    title_prefix: str = ""

    @classmethod
    def of(cls, definition: str, about: Mapping[str, Any]) -> TowerTokenizer:
        """Return what :meth:`describe` has described; exports of old have no prefixes."""
        known = {name: about[name] for name in _described() if name in about}
        return cls(definition, **known)

    def describe(self) -> dict[str, Any]:
        """Return what ``towers.json`` and ``serving.json`` say of it."""
        version = text_version(self.query_prefix, self.title_prefix)
        return {"text_version": version} | {name: getattr(self, name) for name in _described()}

    def query_reader(self) -> TextReader:
        """Return how queries are read."""
        return TextReader(self.definition, self.query_tokens, self.pad_id, self.query_prefix)

    def title_reader(self) -> TextReader:
        """Return how products are read."""
        return TextReader(self.definition, self.title_tokens, self.pad_id, self.title_prefix)

    def queries(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise queries."""
        return self.query_reader()(texts)

    def products(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise product titles."""
        return self.title_reader()(texts)


def _described() -> list[str]:
    return [field.name for field in fields(TowerTokenizer) if field.name != "definition"]


class TokenTable(Ragged):
    """Token ids of N texts as a tower reads them."""

    def __init__(self, ids: Sequence[Sequence[int]], pad_id: int) -> None:
        """Keep the token ids of N texts, as a :class:`TextReader` gives them."""
        # A tokenizer without special tokens makes nothing of an empty text; attention over nothing
        # is NaN, so such a text is one padding token that is attended to.
        super().__init__([row or [pad_id] for row in ids], pad_id)

    def batch(self, rows: Rows) -> tuple[Rows, Rows]:
        """Return token ids and attention mask of ``rows``, both (len(rows), longest), int64."""
        return self.padded(rows)

    def joined(self, other: TokenTable, rows: Rows, others: Rows) -> tuple[Rows, Rows]:
        """Return token ids of ``rows``, each before its row of ``other``, and whose they are.

        Both (N, longest); of no text 0 (padding), of this table's 1, of the other's 2.
        """
        parts = (self.batch(rows), other.batch(others))
        left, right = self.lengths[rows][:, None], other.lengths[others][:, None]  # (N, 1)
        columns = np.arange(int((left + right).max(initial=1)))
        texts = np.where(columns < left, 1, np.where(columns < left + right, 2, 0))
        ids = np.full(texts.shape, self.pad_id, np.int64)
        for text, (part, mask) in enumerate(parts, start=1):
            ids[texts == text] = part[mask == 1]
        return ids, texts.astype(np.int64)

    def chunks(self, rows: Rows, max_tokens: int) -> Iterator[Rows]:
        """Yield positions in ``rows`` as :func:`~csrm_tasks.ragged.length_chunks` does."""
        return length_chunks(self.lengths[rows], max_tokens)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    """Tokenise; one text alone on this very thread: to wake another costs more than its tokens."""
    if len(texts) == 1:
        return [tokenizer.encode(texts[0])]
    return tokenizer.encode_batch_fast(texts) if texts else []
