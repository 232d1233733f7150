"""One query of 12 tokens through a query tower of XLM-R-base's shape: text in, vector out.

Random weights, 250,002 tokens, two threads. Beside torch in fp32 (transformers, the same pooling
and projection) and sentence-transformers with its ONNX backend and its own dynamic int8, the
faster of two of its configurations, in a process with packages of its own. Every text is encoded
alone; contestants take turns of a few texts. p99 is of the 2-layer tower asked by itself, the
median of several repetitions.

Flips are decisions that int8 query vectors change against the same tower in fp32, with fp32
products, on generated pairs of made-up words (benchmarks/concepts.py): only the projections are
trained, by least squares, the short tower's towards the full tower's vectors. Thresholds are the
best F1 on half of the queries, flips are counted on the other half.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from benchmarks import concepts
from benchmarks.concepts import DIM
from benchmarks.encoder_shapes import make_base
from benchmarks.harness import Timing, closing_line, ratio, table
from benchmarks.peers.process import Peer, PeerError
from benchmarks.query_towers import Judged, fit_projection, least_cosine, serve
from csrm_tasks.towers.depth import truncate_layers
from csrm_tasks.towers.measure import embed
from csrm_tasks.towers.serving.runtime import TowerRuntime, Vectors
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.tower import Tower

THREADS, LAYERS = 2, 2
TURN, WARM = 14, 4  # texts of a turn; of which not timed
REPEATED = 9  # times that the short tower encodes every query by itself, three times over
NAMED = 20_000  # words that texts are made of
SIZES = {  # quick → layers, tokens, texts to fit on, queries, products, turns
    False: (12, 250_002, 1500, 600, 300, 40),
    True: (3, 5_002, 300, 40, 60, 1),
}
OURS, SHORT, TORCH = "csrm int8", f"csrm int8, {LAYERS} layers", "torch fp32"
Seconds = Callable[[Sequence[str]], list[float]]


def each(encode: Callable[[list[str]], object], texts: Sequence[str]) -> list[float]:
    """Encode every text alone and return how long each took."""
    seconds = []
    for text in texts:
        began = time.perf_counter()
        encode([text])
        seconds.append(time.perf_counter() - began)
    return seconds


@torch.inference_mode()
def encode_by_torch(tokenizer: Any, tower: Tower, texts: list[str]) -> Vectors:
    """Encode as one does with transformers."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    found: Vectors = tower(batch["input_ids"], batch["attention_mask"]).numpy()
    return found


def in_turns(contestants: Mapping[str, Seconds], texts: list[str], turns: int) -> dict[str, Timing]:
    """Let every contestant encode the same few texts, turn by turn; the first of a turn are not
    timed: caches are another's, and another's threads still spin.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns):
        asked = [texts[(turn * TURN + i) % len(texts)] for i in range(TURN)]
        for name, run in contestants.items():
            seconds[name] += run(asked)[WARM:]
    return {name: Timing(tuple(s)) for name, s in seconds.items()}


def ask(peer: Peer, config: str, each: bool, texts: Sequence[str]) -> Any:
    """Let sentence-transformers encode: seconds of each text, or vectors."""
    return peer.ask({"config": config, "texts": list(texts), "each": each})


def start_peer(base: Path, tower: Tower, folder: Path) -> Peer | None:
    """Start sentence-transformers; where its packages cannot be had, say so and go on without."""
    weights, linear = folder / "projection.npz", tower.projection
    np.savez(weights, weight=linear.weight.detach().numpy(), bias=linear.bias.detach().numpy())
    try:
        return Peer("st_onnx", str(base), str(weights), str(folder / "st"), str(THREADS))
    except PeerError as e:
        print(f"no ratio to sentence-transformers: {e}\n")
        return None


def rows(runs: Mapping[str, Timing]) -> list[dict[str, object]]:
    """Rows of the table, in milliseconds a query."""
    return [
        {"contestant": name, "median ms": t.median * 1e3}
        | {f"p{q}": float(np.quantile(t.seconds, q / 100)) * 1e3 for q in (10, 90, 99)}
        for name, t in runs.items()
    ]


@dataclass(frozen=True)
class Contest:
    """The towers, how their texts are read, and what was exported of them."""

    tokenizer: Any
    reader: TowerTokenizer
    base: Path
    towers: Mapping[str, Tower]  # by the name of their int8 export
    served: Mapping[str, TowerRuntime]


def prepare(folder: Path, layers: int, vocabulary: int, learnt: concepts.Texts) -> Contest:
    """Fit the full and the short tower to ``learnt`` and export both in int8."""
    tokenizer = concepts.make_tokenizer(vocabulary)
    reader = TowerTokenizer(tokenizer.backend_tokenizer.to_str(), 32, 32, tokenizer.pad_token_id)
    base = make_base(folder / "base", layers, tokenizer)
    encoder = AutoModel.from_pretrained(base, dtype=torch.float32, add_pooling_layer=False)
    full = Tower(encoder, DIM).eval()
    short = truncate_layers(full, LAYERS)
    texts = reader.queries(learnt.texts)
    fit_projection(full, texts, concepts.wanted_vectors(learnt))
    fit_projection(short, texts, embed(full, texts))
    towers = {OURS: full, SHORT: short}
    served = {k: serve(folder / f"export{i}", t, reader, THREADS)
              for i, (k, t) in enumerate(towers.items())}  # fmt: skip
    return Contest(tokenizer, reader, base, towers, served)


def by_itself(seconds: Seconds, texts: list[str]) -> list[Timing]:
    """Time ``texts`` three times over, again and again: a neighbour's burst spoils one or two."""
    return [Timing(tuple(seconds(texts * 3))) for _ in range(REPEATED)]


def p99(runs: Sequence[Timing]) -> list[float]:
    """Return the 99th percentile of each repetition, in seconds, ascending."""
    return sorted(float(np.quantile(t.seconds, 0.99)) for t in runs)


def main(quick: bool) -> None:
    """Print the tables and the figures."""
    torch.set_num_threads(THREADS)
    layers, vocabulary, fitted, asked, sold, turns = SIZES[quick]
    learnt, queries, products = (
        concepts.make_texts(n, NAMED, seed) for seed, n in enumerate((fitted, asked, sold))
    )
    with tempfile.TemporaryDirectory() as name:
        contest = prepare(Path(name), layers, vocabulary, learnt)
        full = contest.towers[OURS]
        # Its packages are a download of their own: no matter of a quick run.
        peer = None if quick else start_peer(contest.base, full, Path(name))
        configs = peer.hello["configs"] if peer else []
        contestants: dict[str, Seconds] = {
            TORCH: partial(each, partial(encode_by_torch, contest.tokenizer, full)),
            **{k: partial(each, r.encode_queries) for k, r in contest.served.items()},
            **{k: partial(ask, peer, k, True) for k in configs},
        }
        runs = in_turns(contestants, queries.texts, turns)
        theirs = {k: np.array(ask(peer, k, False, queries.texts), np.float32) for k in configs}
        if peer:
            peer.close()
        alone = by_itself(contestants[SHORT], queries.texts)
    print(table(rows(runs | {f"{SHORT}, by itself": Timing(sum((t.seconds for t in alone), ()))})))
    print(f"\n{vocabulary:,} tokens, {layers} layers.", end=" ")
    print("p99 by itself, of each repetition:", *(f"{s * 1e3:.2f}" for s in p99(alone)), "ms")
    figures = {
        "int8_ratio_torch": ratio(runs[TORCH], runs[OURS]),
        "p99_2layer_s": statistics.median(p99(alone)),
    } | quality(contest, theirs, queries, products)
    if configs:
        best = min((runs[k] for k in configs), key=lambda t: t.median)
        figures["ratio_st_onnx_int8"] = ratio(best, runs[OURS])
        figures["ratio_2layer_st_onnx_int8"] = ratio(best, runs[SHORT])
    print("\n")
    print(closing_line("tower_query", figures, ("onnxruntime", "torch", "transformers")))


def quality(
    contest: Contest, theirs: Mapping[str, Vectors], queries: concepts.Texts,
    products: concepts.Texts,
) -> dict[str, float]:  # fmt: skip
    """Print how near every int8 tower comes to its fp32; return the flips."""
    texts = contest.reader.queries(queries.texts)
    fp32 = {k: embed(tower, texts) for k, tower in contest.towers.items()}
    found = embed(contest.towers[OURS], contest.reader.queries(products.texts))
    pairs = concepts.make_pairs(queries, products, seed=5)
    judged = Judged(*pairs, vectors=found, half=len(queries.texts) // 2)
    print(f"{len(judged.grade):,} pairs.", end=" ")
    flips = []
    for k, runtime in contest.served.items():
        int8 = np.concatenate([runtime.encode_queries([t]) for t in queries.texts])
        flips.append(judged.flips(int8, fp32[k]))
        print(
            f"{k}: least cosine to its fp32 {least_cosine(int8, fp32[k]):.4f}, decisions right "
            f"{judged.right(int8):.1%} (fp32 {judged.right(fp32[k]):.1%}).", end=" ",
        )  # fmt: skip
    for k, vectors in theirs.items():
        print(f"{k}: {least_cosine(vectors.reshape(fp32[OURS].shape), fp32[OURS]):.4f}.", end=" ")
    return dict(zip(("flips", "flips_2layer"), flips, strict=True))
