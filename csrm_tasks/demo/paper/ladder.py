"""Table 2 of paper 1: a ladder on which every rung keeps what the ones below it added.

=========  ========  ==================================================================
arm        labels    beside them
=========  ========  ==================================================================
sft        source    nothing
mt         source    translations (A7)
mt_rqa     source    … and titles of a retriever without local behaviour (A21, A22, A24)
labels     both      the same: stage 2
rqa_star   both      titles of the retriever that saw local behaviour (A23)
sd1 … sd3  both      … and half of each target is the soft label of the round before (A15)
=========  ========  ==================================================================

Every arm starts from the base with a fresh adapter (A17) and makes as many steps of as many
relevance samples; dev is evaluated once, at the last step. The rounds are those of the product:
there is none after one that dev does not like, and its figure stands for those after it (A17).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from csrm_tasks.demo.paper.market import StudyMarket
from csrm_tasks.demo.paper.recipe import Recipe
from csrm_tasks.demo.paper.results import PASSED_ON, Found
from csrm_tasks.demo.study import arms
from csrm_tasks.demo.study.data import SeedMarket
from csrm_tasks.evaluation.gold import counts, llm_answers

Judge = Callable[[str, str, str | None], None]  # arm, model, titles


@dataclass(frozen=True)
class Retrieval:
    """Both retrievers of a seed and the titles that they find; references."""

    ebr: str
    ebr_star: str
    rqa: str
    rqa_star: str


@dataclass(frozen=True)
class Ladder:
    """The trainings of a seed; what one part has trained another finds again."""

    market: StudyMarket
    recipe: Recipe

    @cached_property
    def with_mt(self) -> SeedMarket:
        """The market whose batches hold translations."""
        return self._mixed(self.recipe.mt)

    @cached_property
    def retrieval(self) -> Retrieval:
        """Both retrievers, the second one gone on with from the first."""
        seed = self.market.seed
        ranker, ebr = arms.cold_retriever(seed)
        local = arms.local_retriever(seed, ranker, ebr)
        return Retrieval(ebr, local, arms.titles(seed, ebr), arms.titles(seed, local))

    @property
    def sft(self) -> str:
        """Train on source labels alone."""
        return arms.train(self._mixed(0.0), "sft", self.market.seed.stage1)

    @cached_property
    def rqa_star(self) -> str:
        """Train on all labels, with the titles of RQA*."""
        titles = self.retrieval.rqa_star
        return arms.train(self.with_mt, "rqa_star", self.market.seed.stage2, titles)

    @cached_property
    def rounds(self) -> tuple[str, ...]:
        """Train the rounds of self-distillation after :attr:`rqa_star`."""
        own, snapshot, titles = self.with_mt, self.market.seed.stage2, self.retrieval.rqa_star
        found = [self.rqa_star]
        for k in range(1, self.recipe.rounds + 1):
            soft = arms.relabel(own, found[-1], snapshot, titles)
            found.append(arms.train(own, f"sd{k}", snapshot, titles, soft, k))
        return tuple(found[1:])

    @cached_property
    def teacher(self) -> str:
        """Choose the best on dev of RQA* and its rounds, and calibrate it (A17, A30)."""
        given = {"snapshot": self.market.seed.stage2, "llms": [self.rqa_star, *self.rounds]}
        return arms.step(self.with_mt, "select_llm", given)

    def _mixed(self, mt: float) -> SeedMarket:
        recipe, seed = self.recipe, arms.with_llm(self.market.seed, steps=self.recipe.steps)
        return arms.shares(seed, recipe.relevance, mt, recipe.mt_weight)


def ladder(market: StudyMarket, recipe: Recipe, found: Found) -> None:
    """Train and judge every rung; the transfer gap of the first two (A44)."""
    made, seed = Ladder(market, recipe), market.seed
    said = judge(market, found)

    def told(arm: str, llm: str, titles: str | None = None) -> None:
        said(arm, llm, titles)
        about = arms.facts(seed, llm)
        found.value(arm, "fit", about["train_fit"])
        if "unlearnt" in about:
            found.notes[arm] = f"learnt nothing: {about['unlearnt'].partition(': ')[0]}"
        if about.get("transfer_gap") is not None:
            found.value(arm, "gap", about["transfer_gap"])

    told("sft", made.sft)
    told("mt", arms.train(made.with_mt, "mt", seed.stage1))
    rqa, star = made.retrieval.rqa, made.retrieval.rqa_star
    told("mt_rqa", arms.train(made.with_mt, "mt_rqa", seed.stage1, rqa), rqa)
    told("labels", arms.train(made.with_mt, "labels", seed.stage2, rqa), rqa)
    told("rqa_star", made.rqa_star, star)
    for k, llm in enumerate(made.rounds, 1):
        told(f"sd{k}", llm, star)
        if stopped := arms.facts(seed, llm).get("stopped"):
            found.notes[f"sd{k}"] = f"{PASSED_ON}: {stopped}"


def judge(market: StudyMarket, found: Found) -> Judge:
    """Return what scores gold with a model and keeps its confusions as those of an arm."""

    def said(arm: str, llm: str, titles: str | None = None) -> None:
        scored = pl.read_parquet(
            market.seed.store.open(arms.score(market.seed, llm, titles)).file("scored.parquet")
        )
        keep_graded(market, found, arm, scored)

    return said


def keep_graded(market: StudyMarket, found: Found, arm: str, scored: pl.DataFrame) -> None:
    """Keep the confusions of three-class scores (pair_id, p0, p1, p2) of the gold pairs."""
    answers = llm_answers(arm, "llm", arm, scored, market.gold)
    found.add(arm, "micro_f1", market.gold.query_ids, counts(answers, market.gold)["relevance"])
