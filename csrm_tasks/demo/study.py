"""``csrm study``: does each step of paper 1's table 2 help on the generated market? Over seeds.

Each seed is another market; each arm is trained by the product's own steps and kept as an artifact,
so a killed study goes on where it was, and the table is written again after every seed::

    stage 1   sft        source labels
              mt         … and translations
              rqa        … and retrieved titles
    stage 2   labels     … and target labels
              rqa_star   … and titles retrieved with local behaviour
    noise     hard       few labels of both markets, a fifth of them made wrong
              sd1, sd2   … with the soft labels of the model before (A15-A19)

All arms of a stage make equally many steps of equally many relevance samples, so what is compared
differs in one thing. The recipe was chosen on other seeds (docs/STUDY.md) and is frozen here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from csrm_tasks.demo import study_arms as arms
from csrm_tasks.demo.generate import DEMO_PRODUCTS
from csrm_tasks.demo.study_arms import answers, facts, score, shares, train, with_llm
from csrm_tasks.demo.study_data import (
    SeedMarket,
    derive,
    load_pairs,
    seed_market,
    thinned,
    with_noise,
)
from csrm_tasks.demo.study_effects import Effect, compare
from csrm_tasks.markets import MarketConfig

log = logging.getLogger("csrm")

COMPARISONS = {  # arm → its control
    "mt": "sft",
    "rqa": "mt",
    "labels": "rqa",
    "rqa_star": "labels",
    "sd1": "hard",
    "sd2": "hard",
}


@dataclass(frozen=True)
class Recipe:
    """What the arms share."""

    steps: int = 150
    relevance: int = 48  # relevance samples of a step, in every arm
    mt: float = 0.1  # translations per relevance sample (A6)
    noise: float = 0.2  # share of the train labels that the noise arms get wrong
    noise_source: float = 0.1  # share of the source's queries that the noise arms see
    noise_steps: int = 300
    cross_fit: float = 0.9  # train fit from which a teacher is cross-fitted (A18)
    products: int = DEMO_PRODUCTS


@dataclass(frozen=True)
class SeedResult:
    """What one seed found."""

    seed: int
    answers: dict[str, pl.DataFrame]  # by arm: query_id, pair_id, grade, said on the gold pairs
    gaps: dict[str, float]  # transfer gap (A44) by arm
    notes: dict[str, float]  # facts behind the effects


def run_study(
    base: MarketConfig, home: Path, seeds: Sequence[int], recipe: Recipe
) -> Iterator[SeedResult]:
    """Yield the result of one seed after another; what was trained before is found again."""
    for seed in seeds:
        market = seed_market(base, home, seed, recipe.products)
        log.info("study: seed %d, ladder", seed)
        models = _ladder(market, recipe)
        log.info("study: seed %d, label noise", seed)
        models |= _noise_arms(market, recipe)
        yield _result(market, seed, models)


@dataclass(frozen=True)
class _Arm:
    llm: str
    scored: str


def _ladder(seed: SeedMarket, recipe: Recipe) -> dict[str, _Arm]:
    """Train and score the arms of both stages."""
    own = with_llm(seed, steps=recipe.steps, evaluate_every=recipe.steps)
    plain, mt = (shares(own, recipe.relevance, x) for x in (0.0, recipe.mt))
    cold, ranker = arms.cold_titles(seed)
    local = arms.local_titles(seed, ranker, cold)
    given = {
        "sft": (plain, seed.stage1, None, None),
        "mt": (mt, seed.stage1, None, None),
        "rqa": (mt, seed.stage1, cold.train, cold.gold),
        "labels": (mt, seed.stage2, cold.gold, cold.gold),
        "rqa_star": (mt, seed.stage2, local, local),
    }
    found = {}
    for name, (market, snapshot, titles, gold_titles) in given.items():
        llm = train(market, name, snapshot, titles)
        found[name] = _Arm(llm, score(market, llm, gold_titles))
    return found


def _noise_arms(seed: SeedMarket, recipe: Recipe) -> dict[str, _Arm]:
    """Train and score hard labels and rounds of self-distillation on few and noisy labels."""
    steps = recipe.noise_steps
    own = with_llm(seed, steps=steps, evaluate_every=steps)
    own = with_llm(own, distillation={"memorised": recipe.cross_fit})
    own = shares(own, recipe.relevance, 0.0)
    few = thinned(
        load_pairs(seed, seed.stage2),
        own.market.source_locale,
        recipe.noise_source,
        seed.market.seed,
    )
    noisy = with_noise(few, recipe.noise, seed.market.seed)
    about = {"noise": recipe.noise, "source": recipe.noise_source}
    snapshot = derive(seed, seed.stage2, noisy, about)
    llm = train(own, "hard", snapshot)
    found = {"hard": _Arm(llm, score(own, llm))}
    for number in (1, 2):
        soft = arms.relabel(own, llm, snapshot)
        llm = train(own, f"sd{number}", snapshot, soft=soft, number=number)
        found[f"sd{number}"] = _Arm(llm, score(own, llm))
    return found


def _result(seed: SeedMarket, number: int, models: dict[str, _Arm]) -> SeedResult:
    about = {name: facts(seed, arm.llm) for name, arm in models.items()}
    gaps = {name: about[name]["transfer_gap"] for name in ("sft", "mt")}
    fits = {f"train fit, {name}": about[name]["train_fit"] for name in ("hard", "sd1", "sd2")}
    said = {name: answers(seed, arm.scored) for name, arm in models.items()}
    return SeedResult(number, said, gaps, fits)


def effects(results: Sequence[SeedResult]) -> list[Effect]:
    """Return every comparison over the seeds so far."""
    return [
        compare(name, [r.answers[name] for r in results], [r.answers[control] for r in results])
        for name, control in COMPARISONS.items()
    ]
