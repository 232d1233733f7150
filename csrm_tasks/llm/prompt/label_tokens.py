"""Which vocabulary rows are the labels: resolved in context, so that nothing is assumed (A1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.prompt.prompts import (
    LABEL_SLOT,
    LabelSpace,
    ProductFields,
    QueryFields,
    relevance_prompt,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = QueryFields("water 500ml"), ProductFields("water 500ml x 20", "none", "food")


def label_ids(tokenizer: PreTrainedTokenizerBase, space: LabelSpace) -> tuple[int, ...]:
    """Return the token id of each label of ``space``.

    The prompt and the prompt with its label are tokenised; exactly one token must be new and the
    rest unchanged, both in a whole prompt and behind the bare slot (prompts are joined from
    segments). Raises :class:`ConfigError` with the tokenizer's name otherwise.
    """
    ids = tuple(_one_new_token(tokenizer, space, token) for token in space.tokens)
    if len(set(ids)) != len(ids):
        raise _refuse(tokenizer, f"gives two labels of {space.name!r} the same token")
    return ids


def _one_new_token(tokenizer: PreTrainedTokenizerBase, space: LabelSpace, token: str) -> int:
    tokens: set[int] = set()
    for text in (relevance_prompt(space, *_PROBE), LABEL_SLOT):
        before = tokenizer(text)["input_ids"]
        after = tokenizer(text + token)["input_ids"]
        if len(after) != len(before) + 1 or after[:-1] != before:
            raise _refuse(
                tokenizer,
                f"does not keep label {token!r} of {space.name!r} as one token of its own",
            )
        tokens.add(int(after[-1]))
    if len(tokens) != 1:
        raise _refuse(tokenizer, f"gives label {token!r} of {space.name!r} different tokens")
    return tokens.pop()


def _refuse(tokenizer: PreTrainedTokenizerBase, what: str) -> ConfigError:
    return ConfigError(
        f"tokenizer {tokenizer.name_or_path!r} {what}; "
        "choose other label tokens for the space or another base model (llm.base)"
    )
