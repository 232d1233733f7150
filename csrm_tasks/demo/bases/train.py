"""Make the base models that the demo ships: ``python -m csrm_tasks.demo.bases.train --out FOLDER``.

Writes ``llm/`` and ``encoder/`` (safetensors in half precision, tokenizer) and ``quality.json``.
About ten minutes on one core; both models are accepted by their bars, not by a number of steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from csrm_tasks.demo.bases.encoder import found_share, train_encoder
from csrm_tasks.demo.bases.llm import new_llm
from csrm_tasks.demo.bases.pretrain import Pretraining
from csrm_tasks.demo.bases.text import (
    HELD_OUT_SEED,
    LOCALES,
    TRAIN_SEED,
    Library,
    lexicon_words,
    make_library,
)
from csrm_tasks.demo.bases.tokenizer import train_tokenizer
from csrm_tasks.demo.market.lexicon import LANG_OF, Lexicon, load_lexicon
from csrm_tasks.json_files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

log = logging.getLogger("csrm")

LISTINGS, HELD_OUT = 8000, 2000  # per language
VOCABULARY, REPEATS = 6000, 4


def base_tokenizer(lexicon: Lexicon) -> PreTrainedTokenizerFast:
    """Return the tokenizer of both base models."""
    words = [w for locale in LOCALES for w in lexicon_words(lexicon, LANG_OF[locale])]
    return train_tokenizer(words * REPEATS, VOCABULARY)


def make_base(out: Path, seed: int) -> dict[str, Any]:
    """Train both models, save them below ``out`` and return their quality.

    Raises :class:`~csrm_tasks.errors.CsrmError` where a model misses its bar.
    """
    lexicon = load_lexicon()
    train: list[Library] = [make_library(lexicon, x, LISTINGS, TRAIN_SEED) for x in LOCALES]
    held_out = [make_library(lexicon, x, HELD_OUT, HELD_OUT_SEED) for x in LOCALES]
    tokenizer = base_tokenizer(lexicon)
    start = time.process_time()
    encoder = train_encoder(tokenizer, train, held_out, seed)
    shares = {lib.lang: round(found_share(encoder, tokenizer, lib), 4) for lib in held_out}
    after_encoder = time.process_time()
    words = encoder.embeddings.word_embeddings.weight.detach().clone()
    causal = new_llm(tokenizer, words, seed)
    reading = Pretraining(causal, tokenizer, train, seed).run(held_out)
    quality = {
        "reading_accuracy": reading,
        "types_found_first": shares,
        "llm_cpu_seconds": round(time.process_time() - after_encoder),
        "encoder_cpu_seconds": round(after_encoder - start),
        "seed": seed,
    }
    save(causal, tokenizer, out / "llm")
    save(encoder, tokenizer, out / "encoder")
    write_json(out / "quality.json", quality, sort_keys=False)
    return quality


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model in half precision and its tokenizer."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for llm/ and encoder/")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)
    log.info("base models: %s", json.dumps(make_base(args.out, args.seed)))


if __name__ == "__main__":
    main()
