"""A tokenizer cut to some of its tokens, so that the texts they come from are cut as before (A61).

Why the texts keep their tokens:

- BPE applies, again and again, the best merge of two neighbours. Of a token that is left at the
  end, all merges happened inside it, and in the order in which its own letters alone would be
  merged. So a token is kept with what comes into being on that way; and of the merges, those whose
  parts and result are kept, in their order. On the texts the best merge is never one that is gone.
- Unigram takes the best-scored way through a text; fewer pieces are fewer ways, the best among
  them. The cost of an unknown character hangs on the worst score of all, so that piece stays.

Kept beside what the texts use, for texts to come: the bytes or the unknown token that a tokenizer
falls back on, and the single letters of the scripts that the market writes.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from csrm_tasks.errors import ArtifactError, ConfigError

SCRIPT_SHARE = 0.001  # of the market's letters: below it, letters are somebody's slip
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
USED, SPECIAL, FALLBACK, LETTERS, PARTS = "used", "special", "fallback", "letters", "parts"


@dataclass(frozen=True)
class Cut:
    """A cut tokenizer; token i of it is token ``kept[i]`` of the whole one."""

    tokenizer: Tokenizer
    kept: tuple[int, ...]  # ascending
    reasons: dict[str, int]  # reason → tokens that are kept for it and for none before it


def cut_tokenizer(
    whole: Tokenizer, used: set[int], texts: Iterable[str], special: Iterable[str]
) -> Cut:
    """Return ``whole`` with the tokens ``used``, ``special`` and what both need.

    ``texts`` say which scripts the market writes. Raises :class:`ConfigError` for a tokenizer that
    is neither BPE nor Unigram.
    """
    spec = json.loads(whole.to_str())
    vocabulary = _vocabulary(spec)
    reasons: dict[str, int] = {}
    kept: set[int] = set()

    def keep(reason: str, ids: Iterable[int]) -> None:
        new = set(ids) - kept
        reasons[reason] = len(new)
        kept.update(new)

    keep(USED, used)
    named = {*special, *_in_processor(spec["post_processor"]), *_unknown(spec["model"])}
    keep(SPECIAL, (vocabulary[t] for t in named if t in vocabulary))
    keep(FALLBACK, _fallback(spec, vocabulary))
    keep(LETTERS, _letters(vocabulary, scripts(texts)))
    tokens = {i: t for t, i in vocabulary.items()}
    if spec["model"]["type"] == "BPE":
        keep(PARTS, _parts(spec["model"], [tokens[i] for i in sorted(kept)], vocabulary))
    order = tuple(sorted(kept))
    new_ids = {tokens[old]: new for new, old in enumerate(order)}
    cut = Tokenizer.from_str(json.dumps(_renumbered(spec, new_ids)))
    for token, new in new_ids.items():
        if cut.token_to_id(token) != new:
            raise ArtifactError(f"token {token!r} is not {new} in the cut tokenizer; not trimmed")
    return Cut(cut, order, reasons)


def _vocabulary(spec: Mapping[str, Any]) -> dict[str, int]:
    """Return token → id of the model and of what was added to it."""
    model = spec["model"]
    if model["type"] == "BPE":
        if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
            raise ConfigError("a BPE tokenizer that marks the ends of words cannot be trimmed")
        found = dict(model["vocab"])
    elif model["type"] == "Unigram":
        found = {piece: i for i, (piece, _) in enumerate(model["vocab"])}
    else:
        raise ConfigError(f"a {model['type']} tokenizer cannot be trimmed; BPE and Unigram can")
    return found | {added["content"]: added["id"] for added in spec["added_tokens"]}


def _unknown(model: Mapping[str, Any]) -> Iterable[str]:
    if model["type"] == "Unigram":
        return () if model["unk_id"] is None else (model["vocab"][model["unk_id"]][0],)
    return () if model["unk_token"] is None else (model["unk_token"],)


def _fallback(spec: Mapping[str, Any], vocabulary: Mapping[str, int]) -> Iterable[int]:
    """Return what a text without kept pieces is made of, and the piece of the worst score."""
    model = spec["model"]
    found = [vocabulary[b] for b in BYTES if model.get("byte_fallback") and b in vocabulary]
    if '"ByteLevel"' in json.dumps([spec["pre_tokenizer"], spec["normalizer"]]):
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        found += [vocabulary[letter] for letter in alphabet if letter in vocabulary]
    if model["type"] == "Unigram":
        worst, _ = min(model["vocab"], key=lambda row: row[1])
        found.append(vocabulary[worst])
    return found


def scripts(texts: Iterable[str]) -> set[str]:
    """Return the scripts of letters, as Unicode begins their names, that the texts are written in.

    Those of fewer than :data:`SCRIPT_SHARE` of all letters are left out.
    """
    letters = Counter(letter for text in texts for letter in text)
    found: Counter[str] = Counter()
    for letter, times in letters.items():
        if letter.isalpha():
            found[script(letter)] += times
    return {name for name, times in found.items() if times >= SCRIPT_SHARE * found.total()}


def script(letter: str) -> str:
    """Return the first word of a letter's Unicode name: CJK, HANGUL, LATIN, …"""
    return unicodedata.name(letter, "").partition(" ")[0]


def _letters(vocabulary: Mapping[str, int], of: set[str]) -> Iterable[int]:
    for token, number in vocabulary.items():
        letter = token.removeprefix("▁")
        if len(letter) == 1 and (letter.isascii() or (letter.isalpha() and script(letter) in of)):
            yield number


def _parts(
    model: Mapping[str, Any], tokens: Iterable[str], vocabulary: Mapping[str, int]
) -> Iterable[int]:
    """Return what comes into being while the letters of each token are merged to it."""
    ranks = {(a, b): rank for rank, (a, b) in enumerate(map(_pair, model["merges"]))}
    for token in tokens:
        for part in merged(token, ranks):
            if part in vocabulary:
                yield vocabulary[part]


def _pair(merge: Any) -> tuple[str, str]:
    a, b = merge.split(" ") if isinstance(merge, str) else merge
    return a, b


def merged(token: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Return every symbol that BPE makes of a token's letters, the letters first."""
    symbols = list(token)
    made = [*symbols]
    while len(symbols) > 1:
        ranked = [(ranks[p], i) for i, p in enumerate(pairwise(symbols)) if p in ranks]
        if not ranked:
            break
        _, at = min(ranked)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        made.append(symbols[at])
    return made


def _renumbered(spec: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return the tokenizer's JSON with the tokens of ``ids`` only."""
    model = dict(spec["model"])
    added = [a | {"id": ids[a["content"]]} for a in spec["added_tokens"] if a["content"] in ids]
    if model["type"] == "BPE":
        model["vocab"] = {t: ids[t] for t in model["vocab"] if t in ids}
        merges = map(_pair, model["merges"])
        model["merges"] = [[a, b] for a, b in merges if a in ids and b in ids and a + b in ids]
    else:
        unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
        model["vocab"] = [row for row in model["vocab"] if row[0] in ids]
        model["unk_id"] = None if unknown is None else ids[unknown]
    processor = _each_id(spec["post_processor"], ids)
    added.sort(key=lambda a: a["id"])
    return spec | {
        "model": model, "added_tokens": added, "post_processor": processor,
        "padding": None, "truncation": None,
    }  # fmt: skip


def _in_processor(processor: Any) -> set[str]:
    """Return the tokens that a post-processor puts around a text."""
    if not processor:
        return set()
    if processor["type"] == "Sequence":
        return set().union(*map(_in_processor, processor["processors"]))
    if processor["type"] == "TemplateProcessing":
        return {t for one in processor["special_tokens"].values() for t in one["tokens"]}
    return {processor[k][0] for k in ("sep", "cls") if k in processor}


def _each_id(processor: Any, ids: Mapping[str, int]) -> Any:
    if not processor:
        return processor
    if processor["type"] == "Sequence":
        return processor | {"processors": [_each_id(p, ids) for p in processor["processors"]]}
    if processor["type"] == "TemplateProcessing":
        tokens = processor["special_tokens"]
        return processor | {
            "special_tokens": {
                k: one | {"ids": [ids[t] for t in one["tokens"]]} for k, one in tokens.items()
            }
        }
    pairs = {k: [processor[k][0], ids[processor[k][0]]] for k in ("sep", "cls") if k in processor}
    return processor | pairs


def check_same_tokens(
    encode: Callable[[list[str]], Sequence[Sequence[int]]], cut: Cut, texts: Sequence[str]
) -> None:
    """Raise :class:`ArtifactError` where a text's tokens are others after the cut.

    ``encode``: texts to ids of the whole tokenizer, special ones included.
    """
    for start in range(0, len(texts), AT_ONCE):
        chunk = list(texts[start : start + AT_ONCE])
        found = cut.tokenizer.encode_batch(chunk)
        for text, before, after in zip(chunk, encode(chunk), found, strict=True):
            if [cut.kept[i] for i in after.ids] != list(before):
                raise ArtifactError(
                    f"the text {text[:60]!r} has other tokens after the cut; not trimmed"
                )


AT_ONCE = 4096
