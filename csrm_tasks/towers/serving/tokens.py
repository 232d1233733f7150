"""Texts tokenised once, kept ragged, and padded batch by batch (numpy and tokenizers only)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from csrm_tasks.towers.serving.texts import tower_text

Rows = npt.NDArray[np.int64]


def tower_tokenizer(definition: str, limit: int) -> Tokenizer:
    """Build a tokenizer of its own for one tower from the text of a ``tokenizer.json``.

    Texts are cut to ``limit`` tokens, special tokens included. The setting lives in the tokenizer
    object, which is why the two towers of a server never share one.
    """
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=limit)
    return tokenizer


class TokenTable:
    """Token ids of N texts: one flat int32 array and N + 1 offsets."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], pad_id: int) -> None:
        """Tokenise ``texts`` with a tokenizer made by :func:`tower_tokenizer`."""
        # A tokenizer without special tokens makes nothing of an empty text; attention over nothing
        # is NaN, so such a text is one padding token that is attended to.
        ids = [e.ids or [pad_id] for e in _encode(tokenizer, [tower_text(t) for t in texts])]
        self.lengths: Rows = np.array([len(x) for x in ids], np.int64)
        self._offsets: Rows = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self._flat = np.fromiter((i for x in ids for i in x), np.int32)
        self._pad_id = pad_id

    def __len__(self) -> int:
        """Return N."""
        return len(self.lengths)

    def batch(self, rows: Rows) -> tuple[Rows, Rows]:
        """Return token ids and attention mask of ``rows``, both (len(rows), longest), int64."""
        lengths = self.lengths[rows]
        columns = np.arange(max(int(lengths.max(initial=0)), 1))
        mask = columns[None, :] < lengths[:, None]  # (B, T)
        ids = np.full(mask.shape, self._pad_id, np.int64)
        ids[mask] = self._flat[(self._offsets[rows][:, None] + columns)[mask]]
        return ids, mask.astype(np.int64)

    def joined(self, other: TokenTable, rows: Rows, others: Rows) -> tuple[Rows, Rows]:
        """Return token ids of ``rows``, each before its row of ``other``, and whose they are.

        Both (N, longest); of no text 0 (padding), of this table's 1, of the other's 2.
        """
        parts = (self.batch(rows), other.batch(others))
        left, right = self.lengths[rows][:, None], other.lengths[others][:, None]  # (N, 1)
        columns = np.arange(int((left + right).max(initial=1)))
        texts = np.where(columns < left, 1, np.where(columns < left + right, 2, 0))
        ids = np.full(texts.shape, self._pad_id, np.int64)
        for text, (found, mask) in enumerate(parts, start=1):
            ids[texts == text] = found[mask == 1]
        return ids, texts.astype(np.int64)

    def chunks(self, rows: Rows, most_tokens: int) -> Iterator[Rows]:
        """Yield positions in ``rows`` as :func:`length_chunks` does."""
        return length_chunks(self.lengths[rows], most_tokens)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    """Tokenise; one text alone on this very thread: to wake another costs more than its tokens."""
    if len(texts) == 1:
        return [tokenizer.encode(texts[0])]
    return tokenizer.encode_batch_fast(texts) if texts else []


def length_chunks(lengths: Rows, most_tokens: int) -> Iterator[Rows]:
    """Yield positions in ``lengths`` (N,), shortest first, ≤ ``most_tokens`` padded per chunk.

    Texts of like length share a chunk, so that little is padded.
    """
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order]
    start = 0
    while start < len(order):
        near = np.maximum(ranked[start : start + most_tokens], 1)
        width = np.arange(1, len(near) + 1) * near
        take = max(int(np.searchsorted(width, most_tokens, side="right")), 1)
        yield order[start : start + take]
        start += take
