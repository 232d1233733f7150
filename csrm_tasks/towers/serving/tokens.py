"""Texts as the towers read them, tokenised once (numpy and tokenizers only)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from csrm_tasks.ragged import Ragged, Rows, length_chunks
from csrm_tasks.towers.serving.texts import tower_text


def tower_tokenizer(definition: str, limit: int) -> Tokenizer:
    """Build a tokenizer of its own for one tower from the text of a ``tokenizer.json``.

    Texts are cut to ``limit`` tokens, special tokens included. The setting lives in the tokenizer
    object, which is why the two towers of a server never share one.
    """
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=limit)
    return tokenizer


class TokenTable(Ragged):
    """Token ids of N texts as a tower reads them."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], pad_id: int) -> None:
        """Tokenise ``texts`` with a tokenizer made by :func:`tower_tokenizer`."""
        # A tokenizer without special tokens makes nothing of an empty text; attention over nothing
        # is NaN, so such a text is one padding token that is attended to.
        encoded = _encode(tokenizer, [tower_text(t) for t in texts])
        super().__init__([e.ids or [pad_id] for e in encoded], pad_id)

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
