"""``csrm study``: does each step of paper 1's table 2 help on the generated market? Over seeds.

Each seed is another market; each arm is trained by the product's own steps and kept as an artifact,
so a killed study goes on where it was, and the table is written again after every part of a seed::

    transfer    sft        stage 1: source labels
                mt         … and translations
                labels     source and target labels: stage 2
    retrieval   rqa        as labels, with titles retrieved without local behaviour
                rqa_star   … with it
    noise       hard       few labels of both markets, a fifth of them made wrong
                sd         … and soft labels, cross-fitted by that recipe (A15-A18)
                hard_short as hard in half the steps: stopped before they are learnt by heart
                sd_short   as sd, likewise

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

from csrm_tasks.demo.market.generate import DEMO_PRODUCTS
from csrm_tasks.demo.study import arms
from csrm_tasks.demo.study.arms import answers, facts, score, shares, train, with_llm
from csrm_tasks.demo.study.data import SeedMarket, derive, load_pairs, thinned, with_noise
from csrm_tasks.demo.study.effects import Effect, compare

log = logging.getLogger("csrm")

COMPARISONS = (  # arm, control
    ("mt", "sft"),
    ("labels", "sft"),
    ("rqa", "labels"),
    ("rqa_star", "rqa"),
    ("sd", "hard"),
    ("sd_short", "hard_short"),
    ("sd", "hard_short"),
)


@dataclass(frozen=True)
class Recipe:
    """What the arms share."""

    steps: int = 250  # nearly a pass over the labels
    relevance: int = 48  # relevance samples of a step, in every arm
    mt: float = 0.5  # translations per relevance sample; 0.1 in the paper, over 500,000 steps
    mt_weight: float = 0.1  # of their loss, which is eight times the relevance loss at the start
    noise: float = 0.2  # share of the train labels that the noise arms get wrong
    noise_source: float = 0.1  # share of the source's queries that the noise arms see
    noise_steps: int = 480  # eight passes: hard labels are learnt by heart, wrong ones too
    noise_memorised: float = 0.5  # train fit from which the teacher is cross-fitted (A18)
    products: int = DEMO_PRODUCTS


@dataclass
class SeedResult:
    """What one seed has found so far."""

    seed: int
    answers: dict[str, pl.DataFrame] = field(default_factory=dict)  # by arm, on the gold pairs
    gaps: dict[str, float] = field(default_factory=dict)  # transfer gap (A44) by arm
    fits: dict[str, float] = field(default_factory=dict)  # agreement with own train labels, by arm


StudyPart = Callable[[SeedMarket, Recipe], Iterator[tuple[str, str, str]]]


def run_study(
    market_of: Callable[[int], SeedMarket], seeds: Sequence[int], recipe: Recipe
) -> Iterator[list[SeedResult]]:
    """Yield all results so far, part by part and seed by seed; finished arms are found again.

    ``market_of(seed)`` makes a seed's market (:func:`~csrm_tasks.demo.study.data.seed_market`).
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
    for name, mt, snapshot in (
        ("sft", 0.0, seed.stage1),
        ("mt", recipe.mt, seed.stage1),
        ("labels", 0.0, seed.stage2),
    ):
        arm = _ladder(seed, recipe, mt)
        llm = train(arm, name, snapshot)
        yield name, llm, score(arm, llm)


def noise(seed: SeedMarket, recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield arm, model and gold scores: hard and distilled, on few and noisy labels (A15-A18)."""
    number = seed.market.seed
    pairs = load_pairs(seed, seed.stage2)
    few = thinned(pairs, seed.market.source_locales[0], recipe.noise_source, number)
    about = {"noise": recipe.noise, "source": recipe.noise_source}
    snapshot = derive(seed, seed.stage2, with_noise(few, recipe.noise, number), about)
    memorised = {"memorised": recipe.noise_memorised}
    own = with_llm(shares(seed, recipe.relevance, 0.0, 1.0), distillation=memorised)
    for ending, steps in (("", recipe.noise_steps), ("_short", recipe.noise_steps // 2)):
        arm = with_llm(own, steps=steps)
        teacher = train(arm, f"hard{ending}", snapshot)
        yield f"hard{ending}", teacher, score(arm, teacher)
        soft = arms.relabel(arm, teacher, snapshot)
        student = train(arm, f"sd{ending}", snapshot, soft=soft, number=1)
        yield f"sd{ending}", student, score(arm, student)


def retrieval(seed: SeedMarket, recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield arm, model and gold scores: titles without, then with local behaviour (A22-A24)."""
    own = _ladder(seed, recipe, 0.0)
    ranker, ebr = arms.cold_retriever(seed)
    for name, found in (("rqa", ebr), ("rqa_star", arms.local_retriever(seed, ranker, ebr))):
        titles = arms.titles(seed, found)
        llm = train(own, name, seed.stage2, titles)
        yield name, llm, score(own, llm, titles)


PARTS: tuple[StudyPart, ...] = (transfer, retrieval, noise)


def _ladder(seed: SeedMarket, recipe: Recipe, mt: float) -> SeedMarket:
    return shares(with_llm(seed, steps=recipe.steps), recipe.relevance, mt, recipe.mt_weight)


def effects(results: Sequence[SeedResult]) -> list[Effect]:
    """Return every comparison, over the seeds that have both of its arms."""
    found = []
    for arm, control in COMPARISONS:
        both = [r.answers for r in results if {arm, control} <= set(r.answers)]
        if both:
            one, other = ([answers[name] for answers in both] for name in (arm, control))
            found.append(compare(arm, control, one, other))
    return found
