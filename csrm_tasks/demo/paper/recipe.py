"""What the arms of the study share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from csrm_tasks.demo.curation.arms import Recipe as CurationRecipe
from csrm_tasks.demo.market.generate import DEMO_PRODUCTS, FEWEST, MULTI_PRODUCTS
from csrm_tasks.demo.paper.plan import SHARES
from csrm_tasks.demo.public.ladder import left_to_the_week
from csrm_tasks.demo.study.run import Recipe as StepRecipe
from csrm_tasks.markets import MarketConfig
from csrm_tasks.options import without

ENCODER_LR = 1.0e-3  # of the demo's encoder of a million parameters; the paper's rate is 2e-5
TINY = StepRecipe()
SMALL = 6  # steps of a quick look


@dataclass(frozen=True)
class Recipe:
    """How long everything is trained, and of what; as ``csrm study`` has it where it is there."""

    steps: int = TINY.steps  # of every arm of the ladder
    relevance: int = TINY.relevance  # relevance samples of a step, in every arm
    mt: float = TINY.mt  # translations per relevance sample
    mt_weight: float = TINY.mt_weight  # of their loss
    encoder_lr: float = ENCODER_LR
    rounds: int = 3  # of self-distillation, at most: they stop where dev does (A17)
    shares: tuple[float, ...] = SHARES  # of the target's train queries that have labels, figure 3
    noise: float = TINY.noise  # of the labels of figure 3's arms are made wrong; 0: none
    source_share: float = TINY.noise_source  # of the source's train queries that these see
    label_steps: int = 300  # as on development seeds (docs/STUDY.md): 4 to 9 passes
    memorised: float = TINY.noise_memorised  # train fit from which these cross-fit (A18)
    tower_queries: int | None = 3000  # that towers are distilled on; None: as the market says
    tower_steps: int | None = None  # likewise
    products: int = DEMO_PRODUCTS
    curation_products: int = MULTI_PRODUCTS
    curation: CurationRecipe = field(default_factory=CurationRecipe)


def recipe_of(market: MarketConfig) -> Recipe:
    """Return the recipe of a market of the user's own: as its weekly run trains, no label spoilt.

    A step has as many relevance samples as one of a weekly run has of a batch that is shared with
    translations and conversions.
    """
    llm, mixture = market.llm, market.llm.mixture
    return Recipe(
        steps=llm.steps,
        relevance=max(1, round(llm.batch / (1.0 + mixture.mt + mixture.cvr))),
        mt=mixture.mt,
        mt_weight=mixture.mt_weight,
        encoder_lr=market.towers.lr,
        noise=0.0,
        source_share=1.0,
        label_steps=llm.steps,
        memorised=llm.distillation.memorised,
        tower_queries=None,
    )


def as_studied(market: MarketConfig) -> MarketConfig:
    """Return a market whose trainings start from the base and are judged whatever they have learnt.

    Options that other steps of a week bring are off: no arm of this study has their inputs.
    """
    plain = without(market, left_to_the_week(market))
    alone = {"must_learn": False, "warm_start": "none"}  # a study is no release
    return plain.model_copy(update={"llm": plain.llm.model_copy(update=alone)})


def small_market(market: MarketConfig) -> MarketConfig:
    """Return a market with few queries and pairs, and hardly a step where the recipe has none."""
    few = {"derived_queries": SMALL, "distilled_queries": SMALL}
    ebr = market.retrieval.ebr.model_copy(update={"steps": SMALL})
    changes = {
        "snapshot": market.snapshot.model_copy(update=few),
        "llm": market.llm.model_copy(update={"ranker_steps": SMALL}),
        "retrieval": market.retrieval.model_copy(update={"ebr": ebr, "bm25_k": 2}),
    }
    return market.model_copy(update=changes)


def small(recipe: Recipe) -> Recipe:
    """Return the recipe with hardly any steps, and the smallest markets that can be generated."""
    few = replace(recipe.curation, steps=SMALL, batch=16, ranker_steps=SMALL, ebr_steps=SMALL)
    return replace(
        recipe, steps=SMALL, relevance=16, label_steps=SMALL, rounds=2, shares=recipe.shares[-1:],
        products=FEWEST, curation_products=FEWEST, curation=few, tower_steps=SMALL,
        tower_queries=40,
    )  # fmt: skip
