"""Figure 3 of paper 1: F1 by number of local labels, with and without self-distillation.

Few and noisy labels of both markets; what grows is the share of the target's train queries that
are labelled. A share's arms make as many steps. Cross-fitted where the teacher knows its labels by
heart (A18). Beside them the same labels by the noise-corrected loss (A51), in place of
self-distillation; how raters err it knows from a panel that has rated dev.
"""

from __future__ import annotations

from csrm_tasks.demo.paper.ladder import judge
from csrm_tasks.demo.paper.market import StudyMarket
from csrm_tasks.demo.paper.recipe import Recipe
from csrm_tasks.demo.paper.results import Found
from csrm_tasks.demo.study import arms
from csrm_tasks.demo.study.data import derive, load_pairs, thinned, with_noise, with_votes


def labels(market: StudyMarket, recipe: Recipe, found: Found) -> None:
    """Train on each share by hard labels, by a self-distillation round, and by corrected loss."""
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
        votes = {"votes": with_votes(few, recipe.noise, number)} if recipe.noise else {}
        snapshot = derive(seed, seed.stage2, few, about, votes)
        percent = round(100 * share)
        teacher = arms.train(shared, f"hard_{percent}", snapshot)
        said(f"hard_{percent}", teacher, None)
        soft = arms.relabel(shared, teacher, snapshot)
        student = arms.train(shared, f"sd_{percent}", snapshot, soft=soft, number=1)
        said(f"sd_{percent}", student, None)
        aware = arms.with_llm(shared, noise_correction=True)
        corrected = arms.train(aware, f"nc_{percent}", snapshot)
        said(f"nc_{percent}", corrected, None)
        for arm, llm in (("hard", teacher), ("sd", student), ("nc", corrected)):
            found.value(f"{arm}_{percent}", "fit", arms.facts(seed, llm)["train_fit"])
