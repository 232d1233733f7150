"""Figure 3 of paper 1: F1 by number of local labels, with and without self-distillation.

Few and noisy labels of both markets; what grows is the share of the target's train queries that
are labelled. A share's two arms make as many steps. Cross-fitted where the teacher knows its labels
by heart (A18). The noise-corrected loss (A51) is no part of this code and so of no arm.
"""

from __future__ import annotations

from csrm_tasks.demo.paper.ladder import judge
from csrm_tasks.demo.paper.market import StudyMarket
from csrm_tasks.demo.paper.recipe import Recipe
from csrm_tasks.demo.paper.results import Found
from csrm_tasks.demo.study import arms
from csrm_tasks.demo.study.data import derive, load_pairs, thinned, with_noise


def labels(market: StudyMarket, recipe: Recipe, found: Found) -> None:
    """Train on each share by hard labels, then a round of self-distillation on the same."""
    seed, config = market.seed, market.seed.market
    said, number = judge(market, found), config.seed
    whole = load_pairs(seed, seed.stage2)
    for source in config.source_locales:
        whole = thinned(whole, source, recipe.source_share, number)
    noisy = with_noise(whole, recipe.noise, number)
    shared = arms.shares(
        arms.with_llm(
            seed, steps=recipe.label_steps, distillation={"memorised": recipe.memorised}
        ),
        recipe.relevance, 0.0, 1.0,
    )  # fmt: skip
    for share in recipe.shares:
        few = thinned(noisy, config.target_locale, share, number)
        about = {"noise": recipe.noise, "source": recipe.source_share, "target": share}
        snapshot = derive(seed, seed.stage2, few, about)
        percent = round(100 * share)
        teacher = arms.train(shared, f"hard_{percent}", snapshot)
        said(f"hard_{percent}", teacher, None)
        soft = arms.relabel(shared, teacher, snapshot)
        student = arms.train(shared, f"sd_{percent}", snapshot, soft=soft, number=1)
        said(f"sd_{percent}", student, None)
        for arm, llm in (("hard", teacher), ("sd", student)):
            found.value(f"{arm}_{percent}", "fit", arms.facts(seed, llm)["train_fit"])
