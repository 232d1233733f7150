"""``csrm study``: does each step of paper 1's table 2 help on the generated market? Over seeds.

Each seed is another market; each arm is trained by the product's own steps and kept as an artifact,
so a killed study goes on where it was, and the table is written again after every part of a seed::

    transfer    sft        stage 1: source labels
                mt         … and translations
                labels     … and target labels: stage 2
    noise       hard       few labels of both markets, a fifth of them made wrong
                sd         … and the soft labels of that model (A15-A18)
    retrieval   rqa        as labels, with titles retrieved without local behaviour
                rqa_star   … with it

The arms of one part make equally many steps of equally many relevance samples, each from the base
with a fresh adapter: what is compared differs in one thing. The recipe was chosen on other seeds
(docs/STUDY.md) and is frozen here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import polars as pl

from csrm_tasks.demo import study_arms as arms
from csrm_tasks.demo.generate import DEMO_PRODUCTS
from csrm_tasks.demo.study_arms import answers, facts, score, shares, train, with_llm
from csrm_tasks.demo.study_data import SeedMarket, derive, load_pairs, thinned, with_noise
from csrm_tasks.demo.study_effects import Effect, compare

log = logging.getLogger("csrm")

COMPARISONS = {  # arm → its control
    "mt": "sft",
    "labels": "mt",
    "rqa": "labels",
    "rqa_star": "rqa",
    "sd": "hard",
}


@dataclass(frozen=True)
class Recipe:
    """What the arms share."""

    steps: int = 140
    relevance: int = 48  # relevance samples of a step, in every arm
    mt: float = 0.1  # translations per relevance sample (A6)
    noise: float = 0.2  # share of the train labels that the noise arms get wrong
    noise_source: float = 0.02  # share of the source's queries that the noise arms see
    noise_steps: int = 200  # they see each label five times: hard labels are learnt by heart
    products: int = DEMO_PRODUCTS


@dataclass
class SeedResult:
    """What one seed has found so far."""

    seed: int
    answers: dict[str, pl.DataFrame] = field(default_factory=dict)  # by arm, on the gold pairs
    gaps: dict[str, float] = field(default_factory=dict)  # transfer gap (A44) by arm
    fits: dict[str, float] = field(default_factory=dict)  # agreement with own train labels, by arm


Part = Callable[[SeedMarket, Recipe], Iterator[tuple[str, str, str]]]


def run_study(
    market_of: Callable[[int], SeedMarket], seeds: Sequence[int], recipe: Recipe
) -> Iterator[list[SeedResult]]:
    """Yield all results so far, part by part and seed by seed; finished arms are found again.

    ``market_of(seed)`` makes a seed's market (:func:`~csrm_tasks.demo.study_data.seed_market`).
    """
    found = [SeedResult(seed) for seed in seeds]
    market = cache(market_of)
    for part in PARTS:
        for result in found:
            seed = market(result.seed)
            log.info("study: seed %d, %s", result.seed, part.__name__)
            for name, llm, scored in part(seed, recipe):
                about = facts(seed, llm)
                result.answers[name] = answers(seed, scored)
                result.fits[name] = about["train_fit"]
                result.gaps[name] = about["transfer_gap"]
            yield found


def transfer(seed: SeedMarket, recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield arm, model and gold scores: translations, then target labels (A7, A9)."""
    own = _ladder(seed, recipe)
    for name, mt, snapshot in (
        ("sft", 0.0, seed.stage1),
        ("mt", recipe.mt, seed.stage1),
        ("labels", recipe.mt, seed.stage2),
    ):
        arm = shares(own, recipe.relevance, mt)
        llm = train(arm, name, snapshot)
        yield name, llm, score(arm, llm)


def noise(seed: SeedMarket, recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield arm, model and gold scores: hard and distilled, on few and noisy labels (A15-A18)."""
    steps, number = recipe.noise_steps, seed.market.seed
    own = shares(with_llm(seed, steps=steps, evaluate_every=steps), recipe.relevance, 0.0)
    pairs = load_pairs(seed, seed.stage2)
    few = thinned(pairs, own.market.source_locale, recipe.noise_source, number)
    about = {"noise": recipe.noise, "source": recipe.noise_source}
    snapshot = derive(seed, seed.stage2, with_noise(few, recipe.noise, number), about)
    teacher = train(own, "hard", snapshot)
    yield "hard", teacher, score(own, teacher)
    soft = arms.relabel(own, teacher, snapshot)
    student = train(own, "sd", snapshot, soft=soft, number=1)
    yield "sd", student, score(own, student)


def retrieval(seed: SeedMarket, recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield arm, model and gold scores: titles without, then with local behaviour (A22-A24)."""
    own = shares(_ladder(seed, recipe), recipe.relevance, recipe.mt)
    ranker, ebr = arms.cold_retriever(seed)
    for name, found in (("rqa", ebr), ("rqa_star", arms.local_retriever(seed, ranker, ebr))):
        titles = arms.titles(seed, found)
        llm = train(own, name, seed.stage2, titles)
        yield name, llm, score(own, llm, titles)


PARTS: tuple[Part, ...] = (transfer, noise, retrieval)


def _ladder(seed: SeedMarket, recipe: Recipe) -> SeedMarket:
    return with_llm(seed, steps=recipe.steps, evaluate_every=recipe.steps)


def effects(results: Sequence[SeedResult]) -> list[Effect]:
    """Return every comparison, over the seeds that have both of its arms."""
    found = []
    for name, control in COMPARISONS.items():
        both = [r.answers for r in results if name in r.answers and control in r.answers]
        if both:
            found.append(compare(name, [a[name] for a in both], [a[control] for a in both]))
    return found
