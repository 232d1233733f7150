"""Table 3 of paper 1: towers by hard labels, the teacher, towers by its soft labels; and searches.

The towers are the paper's: no lexical evidence, and the LLM alone teaches them. What an online test
compares (section 6.2) is simulated where the market is generated (:mod:`.searches`); elsewhere EM@1
and Defect@5 are those of judged pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from csrm_tasks.demo.paper import searches
from csrm_tasks.demo.paper.ladder import Ladder
from csrm_tasks.demo.paper.market import StudyMarket
from csrm_tasks.demo.paper.recipe import Recipe
from csrm_tasks.demo.paper.results import Found
from csrm_tasks.demo.study import arms
from csrm_tasks.demo.study.data import SeedMarket
from csrm_tasks.evaluation.gold import Predictions, counts, llm_answers, tower_answers

BINARY = {"em_f1": "em", "defect_f1": "defect"}
RANKED = {"em_at_1": "em_at_1", "defect_at_5": "defect_at_5"}


@dataclass(frozen=True)
class Towers:
    """The towers of a seed."""

    market: StudyMarket
    made: Ladder

    @cached_property
    def seed(self) -> SeedMarket:
        """The market with the paper's towers."""
        seed = self.market.seed
        own, recipe = seed.market.towers, self.made.recipe
        plain = {
            "evidence": False, "stacked_teacher": False, "query_layers": None,
            "queries": recipe.tower_queries or own.queries,
            "steps": recipe.tower_steps or own.steps,
        }  # fmt: skip
        towers = own.model_copy(update=plain)
        return replace(seed, market=seed.market.model_copy(update={"towers": towers}))

    def by_hard_labels(self) -> str:
        """Train on what people have said (A32); returns the export's reference."""
        return self._exported("hard", None)

    def distilled(self) -> str:
        """Train on the teacher's word on shown and retrieved products (A31)."""
        seed, retrieval = self.seed, self.made.retrieval
        given = {"snapshot": seed.stage2}
        bm25 = arms.step(seed, "build_bm25", given)
        index = arms.step(seed, "build_index", given | {"ebr": retrieval.ebr_star})
        found = {"bm25": bm25, "ebr": retrieval.ebr_star, "index": index}
        pairs = arms.step(seed, "tower_pairs", given | found)
        asked = {"llm": self.made.teacher, "rqa": retrieval.rqa_star, "pairs": pairs}
        return self._exported("soft", arms.step(seed, "score_pairs", given | asked))

    def _exported(self, target: str, scored: str | None) -> str:
        given = {"snapshot": self.seed.stage2}
        towers = arms.step(self.seed, "train_towers", given | {"scored": scored}, target=target)
        return arms.step(self.seed, "export_towers", given | {"towers": towers})


def distil(market: StudyMarket, recipe: Recipe, found: Found) -> None:
    """Judge both kinds of towers and the teacher; then what shoppers would see and do."""
    made = Ladder(market, recipe)
    towers, seed, gold = Towers(market, made), market.seed, market.gold
    titles = made.retrieval.rqa_star
    said = llm_answers(
        "teacher", "llm", made.teacher, _scored(seed, arms.score(seed, made.teacher, titles)), gold
    )
    _keep(found, market, said, BINARY)
    exports = {"hard": towers.by_hard_labels(), "student": towers.distilled()}
    for arm, export in exports.items():
        ref = arms.step(towers.seed, "score_towers", {"snapshot": seed.stage2, "export": export})
        answers = tower_answers(arm, export, _scored(seed, ref), gold)
        _keep(found, market, answers, BINARY if market.truth else BINARY | RANKED)
    if market.truth is None:
        found.notes["conversion"] = "shoppers of a market that is not generated are not simulated"
        return
    folders: dict[str, Path] = {arm: seed.store.open(ref).path for arm, ref in exports.items()}
    searches.compare(market, market.truth, folders, found)


def _scored(seed: SeedMarket, ref: str) -> pl.DataFrame:
    return pl.read_parquet(seed.store.open(ref).file("scored.parquet"))


def _keep(found: Found, market: StudyMarket, said: Predictions, measures: dict[str, str]) -> None:
    own = counts(said, market.gold)
    for measure, family in measures.items():
        found.add(said.name, measure, market.gold.query_ids, own[family])
