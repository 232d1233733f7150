"""Embedding generated titles by an encoder of XLM-R-base's shape, beside sentence-transformers.

The same random weights, tokens, mean pool, projection and unit length on both sides, one thread.
fp32 is compared with fp32; beside it ours in the precision that the probe chooses, with its error:
the least cosine to the fp32 vector, and how much of the fp32 top 10 it finds.
"""

from __future__ import annotations

import logging
import os
import tempfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers import models as parts

from benchmarks.encoder_shapes import make_base
from benchmarks.harness import alternate, closing_line, ratio, table, timing_rows
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.retrieval.encoder import BATCH_TOKENS, BiEncoder
from csrm_tasks.retrieval.exact import Vectors, exact_search
from csrm_tasks.text import normalise
from csrm_tasks.training.precision import choose_dtype

DIM, TOKENS = 128, 48


def peer_of(base: Path, ours: BiEncoder) -> SentenceTransformer:
    """Return the same model as sentence-transformers has it."""
    encoder = parts.Transformer(str(base), max_seq_length=TOKENS)
    pool = parts.Pooling(encoder.get_embedding_dimension(), pooling_mode="mean")
    dense = parts.Dense(768, DIM, bias=False, activation_function=torch.nn.Identity())
    dense.linear.weight.data.copy_(ours.head.weight.data)
    return SentenceTransformer(modules=[encoder, pool, dense, parts.Normalize()], device="cpu")


def overlap(vectors: Vectors, truth: Vectors) -> float:
    """Share of each vector's ten nearest in ``truth`` that are found in ``vectors``."""
    (near, _), (want, _) = (exact_search(v, v, 10) for v in (vectors, truth))
    shared = [len(set(a) & set(b)) for a, b in zip(near.tolist(), want.tolist(), strict=True)]
    return float(np.mean(shared)) / 10


def main(quick: bool) -> None:
    """Print the tables and the figures."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    world = demo_world(1000 if quick else 5000, 0)
    texts = [p.title for p in world.target.products]
    asked = texts[:: len(texts) // (30 if quick else 400)]
    plain = [normalise(t) for t in asked]  # as ours does within the time that is measured
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder), 2 if quick else 12)
        ours = BiEncoder.from_base(str(base), DIM, TOKENS, 0).eval()
        peer = peer_of(base, ours)
    dtype = choose_dtype(torch.device("cpu"), ours.width)
    chosen = deepcopy(ours).for_inference(dtype)
    name = str(dtype).removeprefix("torch.")
    runs = alternate(
        {
            "csrm, fp32": lambda: ours.encode_titles(asked),
            f"csrm, {name} (chosen)": lambda: chosen.encode_titles(asked),
            "sentence-transformers, fp32": lambda: peer.encode(plain, show_progress_bar=False),
        },
        1 if quick else 3,
    )
    truth, cast = peer.encode(plain, show_progress_bar=False), chosen.encode_titles(asked)
    same = float(np.abs(ours.encode_titles(asked) - truth).max())
    cosine = float((cast * truth).sum(axis=1).min())
    tokens = ours.titles(texts)  # the whole catalogue, as build_index batches it
    padded = sum(len(r) * int(tokens.lengths[r].max()) for r in tokens.by_length(BATCH_TOKENS))
    useful = float(tokens.lengths.sum()) / padded
    print(table(timing_rows(runs, len(asked), "titles/s")))
    print(
        f"\n{len(asked)} generated titles; fp32 equals the peer's to {same:.1e}; {name}: least "
        f"cosine to fp32 {cosine:.5f}, top 10 shared {overlap(cast, truth):.1%}; useful tokens of "
        f"{len(texts):,} titles in batches of {BATCH_TOKENS:,}: {useful:.1%}\n"
    )
    fp32, best, theirs = runs.values()
    figures = {
        "ratio_sentence_transformers": ratio(theirs, fp32),
        "ratio_chosen_precision": ratio(theirs, best),
        "least_cosine": cosine,
        "useful_share": useful,
    }
    packages = ("sentence-transformers", "transformers", "torch")
    print(closing_line("embed", figures, packages))
