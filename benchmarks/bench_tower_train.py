"""One step of distilling the towers (A27-A31) in our way, in the usual way, and by a library.

Towers of XLM-R-base's widths and one layer, random weights, two threads; a generated catalogue read
as one token a character, queries with their best products by BM25 and random ones, soft labels at
random. All contestants take the same batch of 64 queries × 16 products (A31), forward, backward,
clipping and AdamW included.

The plain loop has each pair's query and title, tokenised and padded for the batch, go through both
towers. It must find the same loss, dropout off. sentence-transformers trains one encoder for both
sides and one head instead of two, by its own trainer and ``CosineSimilarityLoss``; one step of it,
after the others. Last, steps over a real encoder's vocabulary (:mod:`benchmarks.tower_steps`).
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.encoder_shapes import make_base
from benchmarks.harness import alternate, closing_line, ratio, table, timing_rows
from benchmarks.tower_steps import STEPS, tower_steps
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.text import normalise
from csrm_tasks.towers.examples import Examples, batches
from csrm_tasks.towers.losses import head_logits, towers_loss
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.train import TrainPlan, pair_logits, train
from csrm_tasks.training.optimizer import CLIP
from csrm_tasks.training.precision import choose_dtype

LAYERS = 1  # of 12, which take twelve times as long on either side
DIM, QUERY_TOKENS, TITLE_TOKENS = 128, 32, 96
RETRIEVED, RANDOM = 120, 8  # products per query: M + N, and those at random (A31)
LR, SAME = 8e-5, 1e-4
LIBRARY = "sentence-transformers, CosineSimilarityLoss, fp32"


def characters(texts: Sequence[str]) -> Any:
    """Return a tokenizer of one token a character, about what real titles of zh-TW come to."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [*special, *sorted(set("".join(texts)))]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(vocabulary)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


def make_examples(products: int, count: int) -> Examples:
    """Pair ``count`` queries with titles of a catalogue; probabilities are random."""
    world = demo_world(2 * products, 0)
    titles = [normalise(p.title) for p in world.target.products]
    asked = make_queries(world, world.target.locale, 2 * count).queries
    queries = list(dict.fromkeys(normalise(q.text) for q in asked))[:count]
    with tempfile.TemporaryDirectory() as folder:
        index = Bm25Index.build(Path(folder), [(str(i), t) for i, t in enumerate(titles)])
        hits = index.search(queries, RETRIEVED)
    rng = np.random.default_rng(0)
    rows = [
        np.unique([*(int(i) for i, _ in found), *rng.integers(0, len(titles), RANDOM)])
        for found in hits
    ]
    query = np.repeat(np.arange(len(queries)), [len(r) for r in rows])
    soft = rng.dirichlet(np.ones(3), len(query)).astype(np.float32)
    return Examples(queries, titles, query, np.concatenate(rows), soft[:, 0], soft[:, 2])


class Texts:
    """The texts and targets of one batch, pair by pair."""

    def __init__(self, examples: Examples, rows: Any, tokenizer: Any) -> None:
        self.queries = [examples.queries[i] for i in examples.query[rows]]
        self.titles = [examples.products[i] for i in examples.product[rows]]
        self.exact = torch.from_numpy(examples.exact[rows])
        self.irrelevant = torch.from_numpy(examples.irrelevant[rows])
        self._tokenizer = tokenizer

    def loss(self, model: TwinTowers, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the loss as a plain loop takes it: every pair's texts through both towers."""
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            q = model.query(*self._tokens(self.queries, QUERY_TOKENS))
            p = model.product(*self._tokens(self.titles, TITLE_TOKENS))
        logits = head_logits((q * p).sum(-1), model.scale, model.bias)
        return towers_loss(logits, self.exact, self.irrelevant)

    def _tokens(self, texts: list[str], limit: int) -> tuple[Tensor, Tensor]:
        told = self._tokenizer(
            texts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        return told["input_ids"], told["attention_mask"]


def plain_step(model: TwinTowers, texts: Texts, dtype: torch.dtype) -> None:
    """Take one optimizer step in the usual way."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    texts.loss(model, dtype).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def library_step(base: Path, texts: Texts) -> Callable[[], object]:
    """Return one optimizer step by sentence-transformers' trainer."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers import models as parts
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
    from transformers import PrinterCallback

    encoder = parts.Transformer(str(base), max_seq_length=TITLE_TOKENS)
    pool = parts.Pooling(encoder.get_embedding_dimension(), pooling_mode="mean")
    dense = parts.Dense(768, DIM, activation_function=torch.nn.Identity())
    model = SentenceTransformer(modules=[encoder, pool, dense], device="cpu")
    given = {"query": texts.queries, "title": texts.titles, "score": texts.exact.tolist()}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=len(texts.queries),
        learning_rate=LR, max_grad_norm=CLIP, use_cpu=True, fp16=False, bf16=False,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(given),
        loss=CosineSimilarityLoss(model),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return partial(trainer.train)


class Contest:
    """Examples, a batch of them, the base encoder, and what each contestant does with them."""

    def __init__(self, quick: bool, work: Path) -> None:
        self.width = (8, 4) if quick else (64, 16)  # queries, products (A31)
        self.examples = make_examples(60 if quick else 5000, 60 if quick else 1000)
        self.rows = next(batches(self.examples.query, self.examples.product, *self.width, 0))
        tokenizer = characters([*self.examples.queries, *self.examples.products])
        self.texts = Texts(self.examples, self.rows, tokenizer)
        self._work, self.base = work, make_base(work, LAYERS, tokenizer)
        definition = tokenizer.backend_tokenizer.to_str()
        reader = TowerTokenizer(definition, QUERY_TOKENS, TITLE_TOKENS, tokenizer.pad_token_id)
        start = time.perf_counter()
        self.tables = reader.queries(self.examples.queries), reader.products(self.examples.products)
        self.tokenising = time.perf_counter() - start

    def towers(self) -> TwinTowers:
        """Return the same towers every time."""
        return TwinTowers.from_base(str(self.base), dim=DIM, scale=8.0, learn_scale=True, seed=0)

    def our_step(self, model: TwinTowers, dtype: torch.dtype) -> None:
        """Take one optimizer step as the product does."""
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            plan = TrainPlan(1, *self.width, LR, LR, 0)
            train(model, self.examples, *self.tables, plan, Path(folder) / "checkpoint", dtype)

    @torch.no_grad()
    def our_loss(self, model: TwinTowers, dtype: torch.dtype = torch.float32) -> float:
        """Return the loss of the batch as the product takes it."""
        pairs = self.examples.query[self.rows], self.examples.product[self.rows]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = pair_logits(model, *self.tables, *pairs)
        return float(towers_loss(logits, self.texts.exact, self.texts.irrelevant))

    @torch.no_grad()
    def check(self, dtype: torch.dtype) -> str:
        """Return how far losses are apart; end the benchmark where the plain loop's differs."""
        model = self.towers().eval()
        ours, plain = self.our_loss(model), float(self.texts.loss(model))
        if not abs(ours - plain) <= SAME:
            raise SystemExit(f"the loss is {ours}, that of the plain loop {plain}")
        cast = self.our_loss(model, dtype)
        return f"loss {ours:.5f}, by the plain loop {plain:.5f}, in {name_of(dtype)} {cast:.5f}"

    def shape(self) -> str:
        """Say what is in the batch."""
        queries, titles = (
            np.unique(x[self.rows]) for x in (self.examples.query, self.examples.product)
        )
        q, p = self.tables
        distinct = int(q.lengths[queries].sum() + p.lengths[titles].sum())
        every = int(q.lengths[self.examples.query[self.rows]].sum())
        every += int(p.lengths[self.examples.product[self.rows]].sum())
        return (
            f"{len(self.rows)} pairs of {len(queries)} queries and {len(titles)} titles; tokens of "
            f"the distinct texts {distinct:,}, of every pair's texts {every:,}, before padding"
        )


def name_of(dtype: torch.dtype) -> str:
    """Return a number format's short name."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def main(quick: bool) -> None:
    """Print the table and the figures."""
    os.environ["OMP_NUM_THREADS"] = "2"
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    dtype = choose_dtype(torch.device("cpu"), 768)
    fp32 = torch.float32
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(quick, Path(folder))
        said = contest.check(dtype)
        ours, plain, cast = (contest.towers() for _ in range(3))
        runs = alternate(
            {
                "csrm, fp32": partial(contest.our_step, ours, fp32),
                "plain loop, fp32": partial(plain_step, plain, contest.texts, fp32),
                f"csrm, {name_of(dtype)} (chosen)": partial(contest.our_step, cast, dtype),
                LIBRARY: library_step(contest.base, contest.texts),
            },
            1 if quick else 3,
        )
        builds, losses = tower_steps(contest.examples, Path(folder), quick, 1 if quick else 5)
    print(table(timing_rows(runs, len(contest.rows), "pairs/s")))
    print(
        f"\n{contest.shape()}; {said}. Not counted above: ours tokenises all queries and the "
        f"{len(contest.examples.products):,} titles once, in {contest.tokenising:.2f} s.\n"
    )
    mine, naive, best, library = runs.values()
    figures = {
        "ratio_naive": ratio(naive, mine),
        "ratio_sentence_transformers": library.median / mine.median,
        "ratio_naive_chosen_precision": ratio(naive, best),
    }
    print(f"{STEPS} steps over a real encoder's vocabulary, fp32; {losses}\n")
    print(table(timing_rows(builds, STEPS, "steps/s")) + "\n")
    if "previous" in builds:
        figures["ratio_previous"] = ratio(builds["previous"], builds["this"])
    packages = ("sentence-transformers", "transformers", "torch")
    print(closing_line("tower_train", figures, packages))
