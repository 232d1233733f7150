"""``csrm study curation``: does each mechanism of paper 2 act, on markets with languages to spare?

Each seed is another market (:mod:`.market`), each arm a training by the product's own steps::

    base        labels of three languages, 15 % of them wrong
    translated  … and train queries translated into the languages without labels (A37)
    negatives   … and two negatives a query, of middle ranks or of one channel (A38, A56)
    filtered    … without the labels that a cross-fitted model contradicts (A39)
    weighed     … these labels weighed down instead of left out
    again       base by another seed
    best        of base and again the better one on dev
    merged      of linear, TIES and DARE merges of the two the best on dev (A55)
    kept        all that the ablation step has kept on dev (A41), trained together

Every model says yes at the thresholds that one half of its dev has chosen (A40). What is finished
is found again as an artifact, so a killed study goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from csrm_tasks.curation.dev_answers import at_the_other_halfs_threshold
from csrm_tasks.demo.curation.arms import Arms, Recipe
from csrm_tasks.demo.curation.effects import (
    F1,
    HARD_PRECISION,
    Effect,
    Measure,
    compare,
    f1_of,
)
from csrm_tasks.demo.curation.effects import share_right as share_right_of
from csrm_tasks.demo.curation.market import CurationMarket
from csrm_tasks.demo.study.verdict import Rule
from csrm_tasks.llm.training.task_judge import SCORES
from csrm_tasks.records import DECISIONS, read_table

log = logging.getLogger("csrm")


@dataclass(frozen=True)
class Claim:
    """What is said of an arm and its control, and by which rule it is judged."""

    title: str
    arm: str
    control: str
    measure: Measure
    rule: Rule


CLAIMS = (
    Claim("translation raises F1 on absent languages", "translated", "base", F1, "gain"),
    Claim("… of qi, which this base learns", "translated", "base", f1_of("qi"), "gain"),
    Claim("negatives raise precision on hard ones", "negatives", "base", HARD_PRECISION, "gain"),
    Claim("negatives do not lower F1", "negatives", "base", F1, "no loss"),
    Claim("the filter does not lower F1", "filtered", "base", F1, "no loss"),
    Claim("weighing flagged labels down does not lower F1", "weighed", "base", F1, "no loss"),
    Claim("… nor is it below leaving them out", "weighed", "filtered", F1, "no loss"),
    Claim("thresholds of one half of dev add on the other", "dev", "dev at 0.5", F1, "gain"),
    Claim("… and on gold", "base", "base at 0.5", F1, "gain"),
    Claim("a merged adapter is not below the best single one", "merged", "best", F1, "no loss"),
    Claim("what the ablation keeps raises F1", "kept", "base", F1, "gain"),
)
PRECISION = "the filter's flagged labels are wrong ones"


@dataclass
class SeedResult:
    """What one seed has found so far."""

    seed: int
    answers: dict[str, pl.DataFrame] = field(default_factory=dict)  # by arm
    flagged: pl.DataFrame | None = None  # query_id, wrong: labels that the filter has removed
    recall: float | None = None  # share of the wrong labels that it has removed
    options: list[Mapping[str, Any]] = field(default_factory=list)  # what the ablation says
    merges: Mapping[str, float] = field(default_factory=dict)  # dev micro-F1 by method


def run_curation(
    market_of: Callable[[int], CurationMarket], seeds: Sequence[int], recipe: Recipe
) -> Iterator[list[SeedResult]]:
    """Yield all results so far, arm by arm and seed by seed; finished arms are found again."""
    found: list[SeedResult] = []
    for number in seeds:
        found.append(SeedResult(number))
        for part in one_seed(market_of(number), recipe, found[-1]):
            log.info("study: seed %d, %s is done", number, part)
            yield found


def one_seed(market: CurationMarket, recipe: Recipe, result: SeedResult) -> Iterator[str]:
    """Fill ``result`` part by part; yields the name of each."""
    arms = Arms(market, recipe)
    base = arms.train("base")
    _judge(result, "base", arms, market, base)
    result.answers["dev"], result.answers["dev at 0.5"] = _halves(arms, base)
    yield "base"
    translated = arms.translated()
    trained = arms.train("translated", arms.augmented, translated=translated)
    _judge(result, "translated", arms, market, trained)
    yield "translated"
    drawn = arms.negatives(base)
    _judge(
        result, "negatives", arms, market, arms.train("negatives", arms.opposed, negatives=drawn)
    )
    yield "negatives"
    decided = arms.filtered("remove")
    result.flagged, result.recall = removed(_decisions(arms, decided), market.truth)
    trained = arms.train("filtered", arms.filtering("remove"), filtered=decided)
    _judge(result, "filtered", arms, market, trained)
    yield "filtered"
    own = arms.filtering("down_weight")
    trained = arms.train("weighed", own, filtered=arms.filtered("down_weight"))
    _judge(result, "weighed", arms, market, trained)
    yield "weighed"
    _merge(result, arms, market, base)
    yield "merged"
    whole, ablation = arms.ablated(translated, drawn, decided)
    result.options = list(arms.facts(ablation)["options"])
    given = {"translated": translated, "negatives": drawn, "filtered": decided}
    trained = arms.train("kept", whole, ablation=ablation, **given)
    _judge(result, "kept", arms, market, trained)
    yield "kept"


def _merge(result: SeedResult, arms: Arms, market: CurationMarket, base: str) -> None:
    singles = [base, *(arms.again(k) for k in range(1, arms.recipe.trainings))]
    merged = arms.merged(singles)
    result.merges = {how: float(arms.facts(ref)["dev_micro_f1"]) for how, ref in merged.items()}
    _judge(result, "again", arms, market, singles[-1])
    _judge(result, "best", arms, market, arms.best(singles))
    _judge(result, "merged", arms, market, arms.best(list(merged.values())))


def _judge(result: SeedResult, name: str, arms: Arms, market: CurationMarket, llm: str) -> None:
    """Keep what a model says of gold, at its own thresholds and at one half."""
    hard = market.truth.filter(split="gold").select("task", "pair_id", "hard")
    asked = arms.said(llm).join(hard, on=["task", "pair_id"])
    result.answers[name] = asked.with_columns(said=pl.col("p") >= pl.col("threshold"))
    result.answers[f"{name} at 0.5"] = asked.with_columns(said=pl.col("p") >= 0.5)


def _halves(arms: Arms, llm: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return answers to dev, each half at the other's thresholds, and at one half (A40)."""
    scores = pl.read_parquet(arms.seed.store.open(llm).file(SCORES))
    dev = scores.filter(locale=arms.seed.market.target_locale)
    tasks = dev.partition_by("task", maintain_order=True)
    crossed = [own.with_columns(at_the_other_halfs_threshold(own)) for own in tasks]
    return pl.concat(crossed), dev.with_columns(said=pl.col("p") >= 0.5)


def _decisions(arms: Arms, ref: str) -> pl.DataFrame:
    return read_table(arms.seed.store.open(ref).file("decisions.parquet"), DECISIONS)


def removed(decisions: pl.DataFrame, truth: pl.DataFrame) -> tuple[pl.DataFrame, float]:
    """Return the removed labels with whether they are ``wrong`` by ``truth`` (TRUTH), and the share
    of all wrong ones that they are.
    """
    known = truth.filter(task="qi", split="train").select(
        "pair_id", wrong=pl.col("yes") != (pl.col("grade") == 1)
    )
    told = decisions.join(known, on="pair_id", how="left", validate="1:1")
    gone = told.filter(action="remove")
    found, there = (int(frame["wrong"].sum()) for frame in (gone, told))
    return gone.select("query_id", "wrong"), found / there


def effects(results: Sequence[SeedResult]) -> list[tuple[Claim, Effect]]:
    """Return every claim that some seed has both arms of, over these seeds."""
    found = []
    for claim in CLAIMS:
        both = [r.answers for r in results if {claim.arm, claim.control} <= set(r.answers)]
        if both:
            one, other = ([answers[n] for answers in both] for n in (claim.arm, claim.control))
            found.append((claim, compare(claim.measure, claim.rule, one, other)))
    return found


def filter_precision(results: Sequence[SeedResult]) -> Effect | None:
    """Return how many of the removed labels are wrong; None where nothing was removed yet."""
    flagged = [r.flagged for r in results if r.flagged is not None]
    return share_right_of(flagged) if any(f.height for f in flagged) else None
