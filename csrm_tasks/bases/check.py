"""``csrm base check``: whether a base can be used, and what it is worth on a market's titles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoTokenizer

from csrm_tasks.bases.models import load_model
from csrm_tasks.bases.packages import own_counts
from csrm_tasks.bases.record import CAUSAL, BaseRecord, kept_bases, read_record
from csrm_tasks.bases.texts import MarketTexts
from csrm_tasks.bases.vocabulary import BYTES
from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.cost.formula import Shape, forward_flops, one_by_one, train_flops
from csrm_tasks.llm.cost.job import memory
from csrm_tasks.llm.network.model import Model, load_base
from csrm_tasks.llm.network.packed import pack, run_packed
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import (
    LABEL_SPACES,
    RELEVANCE,
    ProductFields,
    QueryFields,
    product_form,
)
from csrm_tasks.markets import MarketConfig
from csrm_tasks.text import normalise
from csrm_tasks.towers.model import load_tokenizer
from csrm_tasks.training.precision import product_rate

TITLES = 2000  # of a locale, for tokens per character
PERPLEXITY_TITLES = 100  # of a locale: a whole vocabulary at every token costs
ADAM = 16  # bytes of a trained weight in fp32: itself, its gradient, two moments


def checked(folder: Path, config: MarketConfig, texts: MarketTexts) -> Iterator[str]:
    """Yield what is found, a line each; raises the error that says why a base is refused."""
    record = read_record(folder)
    record.check(folder)
    yield (
        f"{folder.name}: {record.kind}, {record.parameters / 1e6:,.1f} M parameters "
        f"({record.dtype}), {record.vocabulary:,} tokens; files are as they were added"
    )
    causal = record.kind == CAUSAL
    model = load_base(str(folder)) if causal else None
    tokenizer = model.tokenizer if model else load_tokenizer(str(folder))
    titles = {locale: texts.titles(locale, TITLES) for locale in texts.locales}
    if model is not None:
        yield _readable(model, config, [t for v in titles.values() for t in v])
    read = {k: v if causal else [normalise(t) for t in v] for k, v in titles.items()}
    yield same_tokenizer(folder, record, tokenizer, [t for v in read.values() for t in v])
    if record.trimmed is not None:
        yield _against_whole(folder, record, tokenizer, _said(texts, causal))
    for locale, some in read.items():
        yield f"{locale}: {_tokens(tokenizer, some)}{_perplexity(model, some)}"
    mean = _mean_tokens(tokenizer, [t for v in read.values() for t in v])
    yield from _llm_cost(model, config, titles) if model else _encoder_cost(folder, record, mean)


def shortest_window(config: Any) -> int | None:
    """Return how far the narrowest layer looks back, in tokens; None where all see everything."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = window is not None and (kinds is None or "sliding_attention" in kinds)
    return window if slides else None


def _readable(model: Model, config: MarketConfig, titles: Sequence[str]) -> str:
    """Run the longest prompt, too: a window or too few positions show only there.

    It is not compared with the model's own logits, as a short one is when a base is loaded: in bf16
    two ways of the same sums differ by up to .01 of a probability.
    """
    ids = model.tokenizer("\n".join(titles))["input_ids"]
    longest = np.resize(np.asarray(ids, np.int32), config.llm.max_length)
    with torch.no_grad():
        run_packed(model.causal, pack([(longest[:1], longest[1:])], model.device))
    labels = "; ".join(
        f"{space} " + " ".join(map("{}={}".format, LABEL_SPACES[space].tokens, ids.tolist()))
        for space, ids in model.labels.items()
        if space in LABEL_SPACES
    )
    window = shortest_window(model.causal.config)
    sees = f"a window of {window} tokens" if window else "plain attention"
    return (
        f"labels in one token: {labels}; {sees}, packed as its own logits; a prompt of "
        f"llm.max_length ({config.llm.max_length} tokens) runs"
    )


def same_tokenizer(folder: Path, record: BaseRecord, used: Any, texts: Sequence[str]) -> str:
    """Compare ``used``, as transformers loads it, with ``tokenizer.json`` and with the package's.

    Raises :class:`ConfigError` where the former two differ: the class that tokenizer_config.json
    names has put its own normaliser in the place of the file's.
    """
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_truncation()
    plain.no_padding()
    own = [e.ids for e in plain.encode_batch(list(texts))]
    differ = sum(a != b for a, b in zip(used(list(texts))["input_ids"], own, strict=True))
    if differ:
        raise ConfigError(
            f"{folder.name}: of {len(texts):,} titles {differ:,} have other tokens than "
            "tokenizer.json gives them; the tokenizer_class of tokenizer_config.json replaces it"
        )
    said = f"tokenizer: as tokenizer.json on {len(texts):,} titles"
    count = own_counts(record.origin.source)
    if count is None or record.trimmed is not None:
        return said
    ours = [len(ids) for ids in used([f"query: {t}" for t in texts])["input_ids"]]
    equal = sum(a == b for a, b in zip(ours, count(texts), strict=True))
    return f"{said}; as many tokens as the package's own on {equal:,} of them"


def _said(texts: MarketTexts, causal: bool) -> list[str]:
    """Return titles and queries of today, as they are tokenised."""
    found = {*texts.products["title"].to_list(), *texts.queries["query"].to_list()}
    return sorted(found if causal else map(normalise, found))


def _against_whole(folder: Path, record: BaseRecord, tokenizer: Any, texts: Sequence[str]) -> str:
    """Count the texts that came since a base was trimmed, and that it cuts otherwise (A61)."""
    kept = kept_bases(folder.parent).items()
    of = [n for n, found in kept if found.origin == record.origin and found.trimmed is None]
    if not of:
        return "the whole base is not kept here; what falls back is not compared with it"
    whole = AutoTokenizer.from_pretrained(folder.parent / of[0])
    other = texts_cut_otherwise(whole, tokenizer, texts)
    before, after = (sum(row[i] for row in other) for i in (0, 1))
    said = f"of {len(texts):,} titles and queries {len(other):,} are cut otherwise than by {of[0]}"
    return f"{said}, into {after:,} tokens instead of {before:,}" if other else said


def texts_cut_otherwise(whole: Any, cut: Any, texts: Sequence[str]) -> list[tuple[int, int]]:
    """Return the tokens of each text that ``cut`` cuts otherwise than ``whole``: before, after."""
    rows = zip(whole(list(texts))["input_ids"], cut(list(texts))["input_ids"], strict=True)
    as_text = ((whole.convert_ids_to_tokens(a), cut.convert_ids_to_tokens(b)) for a, b in rows)
    return [(len(a), len(b)) for a, b in as_text if a != b]


def _tokens(tokenizer: Any, titles: Sequence[str]) -> str:
    """Say how finely titles are cut, and how many of them need what a tokenizer falls back on."""
    rows = tokenizer(list(titles), add_special_tokens=False)["input_ids"]
    tokens, characters = sum(map(len, rows)), sum(map(len, titles))
    vocabulary = tokenizer.get_vocab()
    fallback = {vocabulary[byte] for byte in BYTES if byte in vocabulary}
    unknown = tokenizer.unk_token_id
    fallen = [sum(i in fallback or i == unknown for i in row) for row in rows]
    return (
        f"{tokens / max(characters, 1):.2f} tokens a character on {len(titles):,} titles, "
        f"{sum(map(bool, fallen)):,} of them with bytes or unknown ({sum(fallen):,} tokens)"
    )


def _mean_tokens(tokenizer: Any, texts: Sequence[str]) -> float:
    return sum(map(len, tokenizer(list(texts))["input_ids"])) / max(len(texts), 1)


def _perplexity(model: Model | None, titles: Sequence[str]) -> str:
    """Say a causal model's perplexity of a token, and bits of a character, which compare bases."""
    if model is None:
        return "; perplexity: none, it is an encoder"
    some = titles[:: max(len(titles) // PERPLEXITY_TITLES, 1)]
    nats, tokens = log_loss(model, some)
    characters = max(sum(map(len, some)), 1)
    return (
        f"; perplexity {math.exp(nats / max(tokens, 1)):,.1f} a token, "
        f"{nats / math.log(2) / characters:.2f} bits a character ({len(some)} titles)"
    )


@torch.inference_mode()
def log_loss(model: Model, texts: Sequence[str]) -> tuple[float, int]:
    """Return −Σ log p of the tokens of ``texts``, and their number; the start token is given.

    Without a start token the first token of a text is given, and not counted.
    """
    nats, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]], device=model.device)
        if ids.shape[1] > 1:
            logits = model.causal(input_ids=ids, use_cache=False).logits[0, :-1].float()
            nats += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    return nats, count


def _llm_cost(model: Model, config: MarketConfig, titles: dict[str, list[str]]) -> Iterator[str]:
    shape = Shape.of(model.causal.config)
    yield f"memory by formula: {memory(shape, config.llm)}"
    encoder = PromptEncoder(model.tokenizer, config.llm.max_length, product_form(config.llm))
    some = [title for found in titles.values() for title in found][:TITLES]
    lengths = [encoder.length(RELEVANCE, QueryFields(t), ProductFields(t)) for t in some]
    length = sum(lengths) / max(len(lengths), 1)
    rate = product_rate(model.dtype, model.causal.config.hidden_size)
    work = one_by_one(1, length)
    yield (
        f"{_speed(f'prompts of {length:.0f} tokens', rate, model.precision)}: training "
        f"{rate / train_flops(shape, work, config.llm.lora):,.1f} prompts/s, scoring "
        f"{rate / forward_flops(shape, work):,.1f}"
    )


def _encoder_cost(folder: Path, record: BaseRecord, length: float) -> Iterator[str]:
    """Say what an encoder costs: products with all weights but the tables, attention left out."""
    encoder = load_model(folder, record.kind)
    tables = (m for m in encoder.modules() if isinstance(m, torch.nn.Embedding))
    trunk = record.parameters - sum(t.weight.numel() for t in tables)
    yield (
        f"memory by formula: {4 * record.parameters / 2**30:.3g} GiB of weights in fp32, "
        f"{ADAM * record.parameters / 2**30:.3g} GiB when all of them are trained"
    )
    width = encoder.config.hidden_size
    rate = product_rate(torch.float32, width)
    flops = 2.0 * trunk * length
    yield (
        f"{_speed(f'texts of {length:.0f} tokens', rate, 'fp32')}: training "
        f"{rate / (3 * flops):,.0f} texts/s without the optimizer, embedding {rate / flops:,.0f}"
    )


def _speed(of: str, rate: float, precision: str) -> str:
    return (
        f"speed by formula, {of}, at most: {torch.get_num_threads()} thread(s) reach "
        f"{rate / 1e9:,.0f} GFLOP/s in {precision} on a product of its width"
    )
