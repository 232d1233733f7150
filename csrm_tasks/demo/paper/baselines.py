"""What table 2 of paper 1 compares with: a fine-tuned encoder, and a model that is only asked."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from csrm_tasks.demo.paper.ladder import Ladder, judge, keep_graded
from csrm_tasks.demo.paper.market import StudyMarket
from csrm_tasks.demo.paper.recipe import Recipe
from csrm_tasks.demo.paper.results import UNTRAINED, Found
from csrm_tasks.demo.study import arms
from csrm_tasks.demo.study.data import derive, load_pairs
from csrm_tasks.errors import ConfigError

LEARNT = 0.02  # of dev's micro-F1 above the majority class


def baselines(market: StudyMarket, recipe: Recipe, found: Found) -> None:
    """Judge the prompted base, the towers' encoder and the market's other one (A46).

    The encoders learn the source's labels, as the paper's do, in as many steps as an LLM.
    """
    seed, config = market.seed, market.seed.market
    judge(market, found)("sft", Ladder(market, recipe).sft, None)
    try:
        asked = {"model": config.llm.base}
        _keep(market, found, "zero_shot", "baseline_prompt", seed.stage2, asked)
    except ConfigError as e:  # a base that reads the digits in pieces cannot be asked like that
        found.notes["zero_shot"] = str(e)
    few = load_pairs(seed, seed.stage2)
    target = (pl.col("locale") == config.target_locale) & (pl.col("split") != "gold")
    cold = derive(seed, seed.stage2, few.filter(~target), {"labels": "source"})
    shared = {
        "steps": recipe.steps,
        "batch": recipe.relevance,
        "lr": recipe.encoder_lr,
        "max_length": config.llm.max_length,
    }
    small, large = config.towers.encoder, config.controls.encoder
    _keep(market, found, "encoder_small", "baseline_encoder", cold, {"encoder": small, **shared})
    if large is None or large == small:
        found.notes["encoder_large"] = "controls.encoder names no encoder beside the towers' own"
        return
    _keep(market, found, "encoder_large", "baseline_encoder", cold, {"encoder": large, **shared})


def _keep(
    market: StudyMarket,
    found: Found,
    arm: str,
    step: str,
    snapshot: str,
    params: Mapping[str, object],
) -> None:
    scored = market.seed.store.open(arms.step(market.seed, step, {"snapshot": snapshot}, **params))
    table = pl.read_parquet(scored.file("scored.parquet"))
    keep_graded(market, found, arm, table)
    own, majority = (scored.facts.get(name) for name in ("dev_micro_f1", "dev_majority"))
    if majority is not None and own < majority + LEARNT:
        found.notes[arm] = (
            f"{UNTRAINED}: dev micro-F1 {own:.3f}, of which that class {majority:.3f}"
        )
