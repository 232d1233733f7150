"""The demo's base encoder: a tiny XLM-R that knows which words go with which listing.

Unsupervised contrastive learning (SimCSE and inverse cloze, in one): a few words of a listing, or
its description and category, must find its title among the titles of the batch. One language per
batch, no queries of shoppers, no labels, no translations; retrieval is trained elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from csrm_tasks.demo.bases.text import Library
from csrm_tasks.demo.market.compose import pick
from csrm_tasks.demo.market.world import Product
from csrm_tasks.errors import CsrmError

log = logging.getLogger("csrm")

BAR = 0.85  # share of held-out listings found, per language
BATCH, CHOICE = 128, 50  # listings of a batch; titles among which the bar is measured
LEARNING_RATE, TEMPERATURE = 1.5e-3, 0.07
JUDGE_EVERY, COOL_DOWN, MOST_STEPS = 100, 200, 4000
MAX_TOKENS = 64


def new_encoder(vocabulary: int, padding: int, seed: int) -> XLMRobertaModel:
    """Return a fresh two-layer encoder of width 128."""
    torch.manual_seed(seed)
    return XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=192,
            type_vocab_size=1,
            pad_token_id=padding,
            bos_token_id=None,
            eos_token_id=None,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.05,
        ),
        add_pooling_layer=False,
    )


def embed(encoder: XLMRobertaModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Return mask-aware mean embeddings of unit length, (len(texts), H)."""
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    mask = batch["attention_mask"]  # (B, T)
    hidden = encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    real = mask[:, :, None].to(hidden.dtype)
    return functional.normalize((hidden * real).sum(1) / real.sum(1).clamp(min=1.0), dim=-1)


def contrastive_loss(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Return the symmetric in-batch softmax loss of unit vectors (B, H): row i goes with row i."""
    scores = left @ right.T / temperature  # (B, B)
    wanted = torch.arange(len(scores))
    return (
        functional.cross_entropy(scores, wanted) + functional.cross_entropy(scores.T, wanted)
    ) / 2


def view(library: Library, listing: Product, u: list[float]) -> str:
    """Return a few words of the listing (60 %), its description, or category and brand."""
    lexicon, lang = library.lexicon, library.lang
    if u[0] < 0.2 and listing.description:
        return listing.description
    if u[0] < 0.4:
        return f"{listing.category.rpartition(' > ')[2]} {listing.brand}".strip()
    words = [lexicon.types[listing.spec.type].words.of(lang)]
    if u[1] < 0.5 and listing.spec.values:
        words.insert(0, lexicon.values[pick(listing.spec.values, u[2])].words.of(lang))
    if u[3] < 0.4:
        brand = lexicon.brands[listing.spec.brand].words
        words.insert(0, brand.of(lang) if u[4] < 0.6 else brand.en.lower())
    return " ".join(words)


def batches(libraries: list[Library], seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Yield views and titles of a batch of listings, the languages in turn."""
    rng = np.random.default_rng(seed)
    while True:
        for library in libraries:
            rows = rng.choice(len(library.listings), BATCH, replace=False).tolist()
            listings = [library.listings[i] for i in rows]
            draws = rng.random((BATCH, 5)).tolist()
            views = [view(library, p, u) for p, u in zip(listings, draws, strict=True)]
            yield views, [p.title for p in listings]


@torch.inference_mode()
def found_share(
    encoder: XLMRobertaModel, tokenizer: PreTrainedTokenizerFast, library: Library, rounds: int = 20
) -> float:
    """Return how often a type's name finds a title of that type first, among :data:`CHOICE`.

    Among the titles is one of the type, and none other of its category's.
    """
    encoder.eval()
    rng = np.random.default_rng(0)
    hits = asked = 0
    for _ in range(rounds):
        rows = rng.permutation(len(library.listings))
        first = {library.group(library.listings[i]): library.listings[i] for i in rows.tolist()}
        listings = list(first.values())[:CHOICE]
        names = [library.lexicon.types[p.spec.type].words.of(library.lang) for p in listings]
        scores = (
            embed(encoder, tokenizer, names)
            @ embed(encoder, tokenizer, [p.title for p in listings]).T
        )
        hits += int((scores.argmax(1) == torch.arange(len(listings))).sum())
        asked += len(listings)
    encoder.train()
    return hits / asked


def train_encoder(
    tokenizer: PreTrainedTokenizerFast, libraries: list[Library], held_out: list[Library], seed: int
) -> XLMRobertaModel:
    """Train until every language passes the bar, then cool down; return the encoder.

    Raises :class:`CsrmError` where the bar is not reached in :data:`MOST_STEPS`.
    """
    encoder = new_encoder(len(tokenizer), tokenizer.pad_token_id, seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    stream = batches(libraries, seed)
    for step in range(1, MOST_STEPS + 1):
        train_step(encoder, tokenizer, optimizer, next(stream), min(1.0, step / 50))
        if step % JUDGE_EVERY == 0 and passed(encoder, tokenizer, held_out, step):
            break
    else:
        raise CsrmError(f"base encoder below its bar of {BAR} after {MOST_STEPS} steps")
    for left in range(COOL_DOWN, 0, -1):
        train_step(encoder, tokenizer, optimizer, next(stream), left / COOL_DOWN)
    if not passed(encoder, tokenizer, held_out, step + COOL_DOWN):
        raise CsrmError(f"base encoder fell below its bar of {BAR} while cooling down")
    return encoder.eval()


def train_step(
    encoder: XLMRobertaModel,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
    batch: tuple[list[str], list[str]],
    share: float,
) -> None:
    """Make one step at ``share`` of the full rate."""
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * share
    views, titles = batch
    left, right = embed(encoder, tokenizer, views), embed(encoder, tokenizer, titles)
    contrastive_loss(left, right, TEMPERATURE).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def passed(
    encoder: XLMRobertaModel, tokenizer: PreTrainedTokenizerFast, held_out: list[Library], step: int
) -> bool:
    """Measure every language and say whether all pass the bar."""
    shares = {lib.lang: round(found_share(encoder, tokenizer, lib), 3) for lib in held_out}
    log.info("base encoder: step %d, types found first %s", step, shares)
    return min(shares.values()) >= BAR
