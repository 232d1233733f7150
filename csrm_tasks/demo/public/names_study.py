"""``csrm study names``: retrieval and query-category on real names, with languages held out.

The market of the study is of its own home, and learns query-category alone: its answers are landed,
taken in, frozen and learnt from by the product's own steps. Nothing of a language held out is
landed, and nothing of the test categories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from csrm_tasks.artifacts import json_digest
from csrm_tasks.demo.market.files import jsonl_bytes, put
from csrm_tasks.demo.public import categories, tables
from csrm_tasks.demo.public.categories import Retrieved
from csrm_tasks.demo.public.ladder import Rung, Study, judged
from csrm_tasks.demo.public.names import Names, category_answers
from csrm_tasks.market_files.new import ENCODER, LLM
from csrm_tasks.markets import MarketConfig, validated
from csrm_tasks.presets import with_presets
from csrm_tasks.settings import Settings
from csrm_tasks.steps.night import take_in
from csrm_tasks.steps.running import run_step

DAY = "2025-01-06"
TARGET = "ko-KR"  # whose dev chooses thresholds, where it is learnt
# Fixed beforehand. The shipped models read Korean and Traditional Chinese well, others letter by
# letter; e5-small and Gemma read all of these languages.
RETRIEVERS: dict[str, dict[str, Any]] = {
    "shipped": {"encoder": ENCODER, "dim": None, "steps": 300, "batch": 64, "pool": 64,
                "lr": 1.0e-3, "max_length": 48},
    "e5-small": {"preset": "e5-small", "encoder": "base:e5-small", "steps": 120, "batch": 64,
                 "pool": 64, "lr": 5.0e-5, "max_length": 48},
}  # fmt: skip
LLMS: dict[str, dict[str, Any]] = {
    "shipped": {"base": LLM, "lora": {"r": 32, "alpha": 64, "dropout": 0.0}, "lr": 2.0e-3,
                "batch": 64, "steps": 300, "evaluate_every": 300, "max_length": 192},
    "gemma-270m": {"preset": "gemma-270m", "base": "base:gemma-270m", "steps": 100,
                   "evaluate_every": 100, "max_length": 96},
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how long; None: as the recipes above say."""

    retriever: str = "shipped"
    llm: str = "shipped"
    retriever_steps: int | None = None
    llm_steps: int | None = None


def market_of(names: Names, recipe: Recipe, seed: int) -> MarketConfig:
    """Return the market of the study; it learns the languages that are not held out."""
    learnt = [x for x in names.queries["locale"].unique().sort() if x not in names.held_out]
    target = TARGET if TARGET in learnt else learnt[-1]
    llm, ebr = dict(LLMS[recipe.llm]), dict(RETRIEVERS[recipe.retriever])
    if recipe.llm_steps is not None:
        llm |= {"steps": recipe.llm_steps, "evaluate_every": recipe.llm_steps}
    if recipe.retriever_steps is not None:
        ebr["steps"] = recipe.retriever_steps
    keys = {
        "market": "names_qc", "source_locales": [x for x in learnt if x != target],
        "target_locale": target, "seed": seed, "tasks": ["qc"], "llm": llm,
        "retrieval": {"ebr": ebr}, "towers": {"encoder": ENCODER},
    }  # fmt: skip
    return validated(with_presets(keys))


def run_names(names: Names, market: MarketConfig, settings: Settings, asked: int) -> Iterator[str]:
    """Yield the report, part by part; what is trained for query-category is found again."""
    yield tables.head(names, market)
    yield tables.retrieval(list(retrieval(names, market, settings.home)), names.held_out)
    said = [(rung.name, one) for rung, one in query_category(names, market, settings, asked)]
    yield tables.by_language("qc", said, names.held_out)


def retrieval(
    names: Names, market: MarketConfig, home: Path
) -> Iterator[tuple[str, dict[str, Retrieved]]]:
    """Yield each arm and its figures on test by language; an arm's queries are its only choice."""
    config, seed, test = market.retrieval.ebr, market.seed, names.of("test")
    yield "as it comes", dict(categories.search(categories.base_encoder(config, seed), names, test))
    everything = replace(names, held_out=())
    for arm, own in (("learnt languages", names), ("all languages (control)", everything)):
        queries = own.of("train")
        told = (config.model_dump(mode="json"), seed, queries.rows(), names.paths)
        work = home / "work" / "names" / json_digest(told)[:20]  # of this very training
        model = categories.trained(names, queries, config, seed, work)
        yield arm, dict(categories.search(model, names, test))


def query_category(
    names: Names, market: MarketConfig, settings: Settings, asked: int
) -> Iterator[tuple[Rung, dict[str, Any]]]:
    """Yield each rung and its figures on at most ``asked`` test queries of each language."""
    test = names.of("test")
    some = (
        own.sample(min(asked, own.height), seed=market.seed)
        for _, own in test.group_by("locale", maintain_order=True)
    )
    rows = category_answers(names, pl.concat(some), market.seed).with_columns(task=pl.lit("qc"))
    study = Study(market, settings, _snapshot(names, market, settings))
    for rung in study.rungs(rows):
        yield rung, judged(rows, rung)


def _snapshot(names: Names, market: MarketConfig, settings: Settings) -> str:
    """Land the answers about train's and dev's categories, and freeze them."""
    queries = pl.concat([names.of("train"), names.of("dev")])
    answers = category_answers(names, queries, market.seed)
    folder = settings.landing / market.market / DAY
    for (locale,), own in answers.group_by("locale", maintain_order=True):
        records = (
            {"label_id": f"{locale}-{i}", "query": query, "category": item,
             "label": ("no", "yes")[grade], "rater_id": "names"}
            for i, (query, item, grade) in enumerate(own.select("query", "item", "grade").rows())
        )  # fmt: skip
        put(folder / str(locale) / "query_categories.jsonl", jsonl_bytes(records))
    take_in(market, settings, DAY)
    return run_step("snapshot", market, {}, {"stage": 2, "until": DAY}, settings)
