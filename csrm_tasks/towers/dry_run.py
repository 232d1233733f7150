"""How long this machine takes for a market's towers: tried out on its landed texts, for seconds.

The number of queries in a step is doubled while the next one fits into what is left of the time, up
to a step of the market's; the last one counts, in proportion where it is smaller.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from csrm_tasks.base_models import weights_bytes
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import Towers
from csrm_tasks.towers.examples import Examples
from csrm_tasks.towers.model import TwinTowers, load_tokenizer
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.train import TrainPlan, train
from csrm_tasks.training.precision import choose_dtype

SECONDS = 20.0  # of trying


def here(market: MarketConfig, queries: Sequence[str], titles: Sequence[str]) -> str:
    """Say in a line how long trainings of the towers take until the first weekly release, at most.

    Empty where the encoder is not on this machine, or nothing has landed.
    """
    towers = market.towers
    if not (queries and titles and weights_bytes(towers.encoder)):
        return ""
    step = step_seconds(towers, queries, titles)
    trainings = 2 + towers.hard_baseline + market.controls.towers_seen
    return (
        f"towers on this machine: a step of {towers.batch_queries} × {towers.batch_products} pairs "
        f"{step:.2g} s; {trainings} trainings of {towers.steps:,} steps together at most "
        f"{step * towers.steps * trainings / 3600:.2g} hours"
    )


def step_seconds(
    config: Towers, queries: Sequence[str], titles: Sequence[str], seconds: float = SECONDS
) -> float:
    """Return the seconds of an optimizer step; each of its pairs has a title of its own."""
    model = TwinTowers.from_base(
        config.encoder, dim=config.dim, scale=config.scale, learn_scale=config.learn_scale,
        seed=0, separate=config.separate_trunks, lexical=config.lexical,
    )  # fmt: skip
    tokenizer = load_tokenizer(config.encoder)
    reader = TowerTokenizer(
        tokenizer.backend_tokenizer.to_str(), config.query_tokens, config.title_tokens,
        tokenizer.pad_token_id,
    )  # fmt: skip
    dtype = choose_dtype(torch.device("cpu"), model.config.hidden_size)
    end, rows, most = time.monotonic() + seconds, 1, config.batch_queries
    while True:
        given = _examples(queries, titles, rows, config.batch_products)
        tables = reader.queries(given.queries), reader.products(given.products)
        plan = TrainPlan(1, rows, config.batch_products, 0.0, 0.0, 0)
        with tempfile.TemporaryDirectory() as folder:
            took = train(model, given, *tables, plan, Path(folder) / "none", dtype).seconds
        if rows >= most or time.monotonic() + 2.5 * took > end:
            return took * most / rows
        rows = min(most, 2 * rows)


def _examples(queries: Sequence[str], titles: Sequence[str], rows: int, each: int) -> Examples:
    """Return ``rows`` queries with ``each`` titles of their own, of a soft label between."""
    pairs = np.arange(rows * each)
    unsure = np.full(len(pairs), 0.5, np.float32)
    return Examples(
        [queries[i % len(queries)] for i in range(rows)],
        [titles[int(i) % len(titles)] for i in pairs],
        pairs // each, pairs, unsure, unsure,
    )  # fmt: skip
