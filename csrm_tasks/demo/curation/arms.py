"""Trainings of the study of curation, each by the product's own steps.

Every arm starts from the base with a fresh adapter and makes the same number of optimizer steps of
as many samples: translated pairs, negatives and what a filter has left take places in the same
batches, so an arm costs what its control costs and differs from it in one thing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from csrm_tasks.demo.curation.market import CurationMarket
from csrm_tasks.demo.study.arms import cold_retriever, with_llm
from csrm_tasks.demo.study.data import SeedMarket
from csrm_tasks.options import ablation_arms
from csrm_tasks.sections import Ablation, Augmentation, Filter, Negatives
from csrm_tasks.steps.running import run_step

TABLE = Augmentation(translator="table")
MERGED = ("linear", "ties", "dare")
SEEDS_APART = 500  # a training draws from some seeds next to its own


@dataclass(frozen=True)
class Recipe:
    """What the arms share, and the settings of what they add."""

    steps: int = 240
    batch: int = 64  # samples of relevance, qi and qc together
    siblings: int = 4  # of one query in a batch, whose prefix is computed once (A12)
    qi: float = 2.0  # samples of qi for each of relevance
    qc: float = 2.0
    ranker_steps: int = 40  # of the retriever's teacher
    ebr_steps: int = 40
    per_query: int = 2  # negatives: half of middle ranks, half found by one channel only
    scorer: str = "linear"  # of the filter: seconds, where the LLM's folds cost a training
    max_share: float = 0.5  # 29 % of the "no" are wrong: a filter at A39's 10 % would refuse
    ablation_seeds: int = 2  # each of half as many steps as a training
    trainings: int = 2  # of the same data by other seeds, to merge


class Arms:
    """The trainings of one seed's market."""

    def __init__(self, market: CurationMarket, recipe: Recipe) -> None:
        self.recipe = recipe
        mixture = {"mt": 0.0, "cvr": 0.0, "qi": recipe.qi, "qc": recipe.qc}
        self.seed = with_llm(
            market.seed,
            steps=recipe.steps,
            batch=recipe.batch,
            siblings=recipe.siblings,
            ranker_steps=recipe.ranker_steps,
            product_fields=(),  # the catalogues say brand and category in the title's language
            lora={"targets": "all-linear"},
            mixture=mixture,
        )
        self.snapshot = market.seed.stage2

    def train(self, name: str, seed: SeedMarket | None = None, **given: str) -> str:
        """Train an arm on the snapshot and what else is ``given``; returns its reference."""
        return _run(seed or self.seed, "train_llm", {"snapshot": self.snapshot, **given}, arm=name)

    def again(self, number: int) -> str:
        """Train the base arm by another seed."""
        market = self.seed.market
        other = market.model_copy(update={"seed": market.seed + SEEDS_APART * number})
        return self.train("base", replace(self.seed, market=other))

    def translated(self) -> str:
        """Translate the train queries by the market's own table (A37)."""
        own = self.augmented
        given = {"snapshot": self.snapshot}
        shard = _run(own, "translate_shard", given, shard=0, of=1)
        return _run(own, "translate_queries", given | {"shards": [shard]})

    @property
    def augmented(self) -> SeedMarket:
        """The market with translation on."""
        return with_llm(self.seed, augmentation=TABLE)

    @property
    def opposed(self) -> SeedMarket:
        """The market with negatives on."""
        return with_llm(self.seed, negatives=_drawn(self.recipe))

    def negatives(self, llm: str) -> str:
        """Draw negatives (A38) that the model ``llm`` does not accept."""
        found = self._retriever()
        return _run(self.opposed, "mine_negatives", {"snapshot": self.snapshot, "llm": llm} | found)

    def _retriever(self) -> dict[str, str]:
        ebr = self.seed.market.retrieval.ebr.model_copy(update={"steps": self.recipe.ebr_steps})
        retrieval = self.seed.market.retrieval.model_copy(update={"ebr": ebr})
        market = self.seed.market.model_copy(update={"retrieval": retrieval})
        own = with_llm(replace(self.seed, market=market), mixture={"cvr": 0.3})
        _, found = cold_retriever(own)
        bm25 = _run(own, "build_bm25", {"snapshot": self.snapshot})
        index = _run(own, "build_index", {"snapshot": self.snapshot, "ebr": found})
        return {"bm25": bm25, "ebr": found, "index": index}

    def filtering(self, action: str) -> SeedMarket:
        """The market with a filter."""
        recipe = self.recipe
        rules = Filter.model_validate(
            {"action": action, "scorer": recipe.scorer, "max_share": recipe.max_share}
        )
        return replace(self.seed, market=self.seed.market.model_copy(update={"filter": rules}))

    def combined(self, names: Collection[str]) -> SeedMarket:
        """The market with the options on that bring these inputs of a training, and no others."""
        own = self.filtering("remove") if "filtered" in names else self.seed
        return with_llm(
            own,
            **({"augmentation": TABLE} if "translated" in names else {}),
            **({"negatives": _drawn(self.recipe)} if "negatives" in names else {}),
        )

    def filtered(self, action: str) -> str:
        """Say which train labels are wrong (A39)."""
        own, given = self.filtering(action), {"snapshot": self.snapshot}
        folds = [_run(own, "filter_fold", given, fold=k) for k in range(own.market.filter.folds)]
        return _run(own, "filter_noise", given | {"folds": folds})

    def merged(self, llms: Sequence[str]) -> dict[str, str]:
        """Merge adapters in every way (A55); returns reference by method."""
        given = {"snapshot": self.snapshot, "llms": list(llms)}
        return {how: _run(self.seed, "merge_llms", given, method=how) for how in MERGED}

    def ablated(self, translated: str, negatives: str, filtered: str) -> tuple[SeedMarket, str]:
        """Return the market with all options on, and what dev says of each (A41)."""
        own = self.whole
        given = {
            "snapshot": self.snapshot, "translated": translated, "negatives": negatives,
            "filtered": filtered,
        }  # fmt: skip
        runs = [_run(own, "ablation_run", given, **arm) for arm in ablation_arms(own.market)]
        return own, _run(own, "ablate", {"snapshot": self.snapshot, "runs": runs})

    @property
    def whole(self) -> SeedMarket:
        """The market with all options on, and the ablation."""
        rules = Ablation(enabled=True, seeds=self.recipe.ablation_seeds)
        own = self.combined(("translated", "negatives", "filtered"))
        return replace(own, market=own.market.model_copy(update={"ablation": rules}))

    def facts(self, ref: str) -> Mapping[str, Any]:
        """Return what an artifact says of itself."""
        return self.seed.store.open(ref).facts

    def best(self, llms: Sequence[str]) -> str:
        """Return the best by dev, the earliest of equals: the rule of ``select_llm`` (A17)."""
        return max(llms, key=lambda ref: float(self.facts(ref)["dev_micro_f1"]))

    def said(self, llm: str) -> pl.DataFrame:
        """Return answers to gold: task, pair_id, query_id, locale, grade, p and the ``threshold``
        that dev has chosen (A40).
        """
        return pl.concat(list(self._said(llm)))

    def _said(self, llm: str) -> Iterator[pl.DataFrame]:
        facts = self.facts(llm)
        for task in ("qc", "qi"):
            given = {"snapshot": self.snapshot, "llm": llm}
            ref = _run(self.seed, "score_pairs", given, space=task, split="gold")
            scored = pl.read_parquet(self.seed.store.open(ref).file("scored.parquet"))
            yield scored.select(
                "pair_id", "query_id", "locale", "grade", task=pl.lit(task), p="p1",
                threshold=pl.lit(float(facts[f"{task}_threshold"])),
            )  # fmt: skip


def _drawn(recipe: Recipe) -> Negatives:
    return Negatives(per_query=recipe.per_query, easy=0.0, ranked=0.5, mined=0.5)


def _run(seed: SeedMarket, name: str, inputs: Mapping[str, Any], **params: object) -> str:
    return run_step(name, seed.market, inputs, params, seed.settings)
