"""Eq. (1) of paper 1 to the letter, beside the loss that is used instead (A22), on the demo market.

``python -m csrm_tasks.demo.study.equation_1`` after ``make demo``: trains the cold-start retriever
three times on the demo's own pseudo pairs, with the same batches and steps, and prints how many of
the three nearest titles are right (by the generated market's rule) and recall@20 of the source's
dev. docs/PAPER.md holds the table.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import click
import numpy as np
import polars as pl
import torch
from torch import Tensor

from csrm_tasks import records
from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.dataset.tables import table
from csrm_tasks.demo.market.generate import DEMO_PRODUCTS, demo_world
from csrm_tasks.demo.market.labels import default_queries
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.search import Shelves
from csrm_tasks.demo.runner.home import Home
from csrm_tasks.errors import ArtifactError
from csrm_tasks.markets import load_market
from csrm_tasks.retrieval.batches import Batch
from csrm_tasks.retrieval.catalogue import evaluate_encoder, index_locale
from csrm_tasks.retrieval.ebr import EbrTrainer
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.index import ProductIndex
from csrm_tasks.retrieval.losses import equation_1
from csrm_tasks.retrieval.pairs import training_pairs
from csrm_tasks.settings import Settings
from csrm_tasks.text import query_id

MARKET, TOP = "demo", 3


class Printed(EbrTrainer):
    """Minimises the two sums as they are printed, divided by the number of pairs."""

    sign = 1.0

    def batch_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return eq. (1)'s two sums over the batch; negatives as for A22."""
        cosine, positive = self.cosines(batch)
        negatives = cosine.masked_fill(~torch.from_numpy(batch.allowed), -torch.inf)
        own = cosine.gather(1, positive[:, None]).squeeze(1)
        contrast, squares = equation_1(own, negatives, torch.from_numpy(batch.weight))
        return self.sign * contrast / len(own), squares / len(own)


class Turned(Printed):
    """The same with its sign mended: the ratio is to grow."""

    sign = -1.0


def cold_start_inputs(settings: Settings) -> dict[str, Artifact]:
    """Open what the demo's cold-start retriever was trained on."""
    store = ArtifactStore(settings.artifacts, settings.cache)
    for path in sorted(Path(settings.artifacts, MARKET, "train_ebr").glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["about"]["params"] == {"local": False}:
            return {k: store.open(manifest["inputs"][k]) for k in ("snapshot", "scored")}
    raise ArtifactError(f"{settings.artifacts} has no cold-start retriever; run make demo first")


def precision(index: ProductIndex, model: BiEncoder, queries: pl.DataFrame, locale: str) -> float:
    """Share of the nearest three titles that are exact or substitute, over ``queries``."""
    world = demo_world(DEMO_PRODUCTS, 0)
    shop = world.catalogue(locale)
    shelves, row = (
        Shelves(world.lexicon, shop),
        {p.product_id: i for i, p in enumerate(shop.products)},
    )
    asked = make_queries(world, locale, default_queries(world)[locale]).queries
    known = {query_id(locale, q.text): q for q in asked}
    own = queries.filter(pl.col("query_id").is_in(list(known)))
    found, _ = index.search(model.encode_queries(own["norm"].to_list()), TOP)
    shares = [
        (shelves.grades(known[q], np.array([row[index.ids[i]] for i in near])) >= 1).mean()
        for q, near in zip(own["query_id"], found.tolist(), strict=True)
    ]
    return float(np.mean(shares))


def main() -> None:
    """Train, measure, print a table."""
    torch.set_num_threads(1)
    settings = Home.of(MARKET).settings
    market, given = load_market(MARKET, settings.markets), cold_start_inputs(settings)
    names = ("queries", "products", "pairs", "behaviour")
    tables = {name: table(given["snapshot"].path, name) for name in names}
    scored = records.read_table(given["scored"].file("scored.parquet"), records.SCORED)
    data = training_pairs(tables["queries"], tables["products"], scored, None)
    config, locales = market.retrieval.ebr, market.locales
    click.echo(f"| loss | {' | '.join(f'P@{TOP} {n}' for n in locales)} | dev recall@20, source |")
    for name, trainer in (("printed", Printed), ("sign mended", Turned), ("A22", EbrTrainer)):
        model = BiEncoder.from_base(
            config.encoder, config.dim, config.max_length, market.seed, config.query_prefix,
            config.title_prefix,
        )  # fmt: skip
        shares, recall = [], None
        with tempfile.TemporaryDirectory() as work:
            trainer(model, data, config, market.seed, Path(work)).run()
            for locale in locales:
                own = {k: t.filter(pl.col("locale") == locale) for k, t in tables.items()}
                index, _ = index_locale(locale, model, "", own, market.retrieval, market.seed)
                shares.append(precision(index, model, own["queries"], locale))
                measured = evaluate_encoder(index, model, own, Path(work) / locale)["dev"]
                recall = recall or (measured or {}).get("recall_at_20")
        cells = [name, *(f"{s:.3f}" for s in shares), f"{recall:.3f}"]
        click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
