"""What raters said, agreed upon pair by pair, and on which side each text stands (A10, A49)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from csrm_tasks.dataset.consensus import PAIR, consensus, current_votes, rater_name
from csrm_tasks.dataset.raters import rater_report
from csrm_tasks.dataset.sides import text_ids
from csrm_tasks.dataset.splits import assign_splits, frozen_gold
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections.tasks import Task
from csrm_tasks.text import pair_ids

_IS_RELEVANCE = pl.col("task") == "relevance"


@dataclass(frozen=True)
class JudgedPairs:
    """The judged pairs with their splits, and what became of the raters' grades on the way."""

    pairs: pl.DataFrame  # PAIRS and norm
    others: pl.DataFrame  # of the tasks besides relevance, likewise with ``task``
    votes: pl.DataFrame  # VOTES
    dropped: int  # pairs of products that the snapshot does not have
    late_gold: int  # pairs that met gold's rule after a snapshot had held their query to learn from
    raters: dict[str, Any]  # see csrm_tasks.dataset.raters

    @property
    def sided(self) -> pl.DataFrame:
        """Norm and split of every judged text, whichever task it is judged in."""
        return pl.concat(p.select("norm", "split") for p in (self.pairs, self.others))


def judged_pairs(
    answers: Mapping[Task, pl.DataFrame],
    products: pl.DataFrame,
    market: MarketConfig,
    sides: pl.DataFrame,
) -> JudgedPairs:
    """Agree on every pair, and put each text on one side, for all tasks together (A10)."""
    rules = market.snapshot
    texts = pl.concat(said.select("norm") for said in answers.values()).unique()
    texts = texts.with_columns(text_ids(texts["norm"]))
    held = texts.join(sides, on="text").select("norm", "side").unique()
    gold_of = {
        task: frozen_gold(
            _votes_of(said), rules, market.gold_locales, held, said.filter(held_out=1)
        )
        for task, said in answers.items()
    }
    golden = [_of_products(gold.pairs, task, products) for task, gold in gold_of.items()]
    norms = [*(g["norm"] for g in golden), held.filter(side="gold")["norm"]]
    was_gold = pl.concat(norms).unique()
    parts, dropped = [], 0
    raters: dict[str, Any] = {}
    for task, said in answers.items():
        voted = _votes_of(said)
        agreed = consensus(voted, rules.consensus)
        if task == "relevance":
            raters = rater_report(voted, agreed)
        known = _of_products(agreed.drop("tied"), task, products)
        dropped += agreed.height - known.height
        if rules.consensus != "majority":  # fitted on all pairs at once: gold's decide nothing
            rest = voted.filter(~pl.col("norm").is_in(was_gold.implode()))
            known = _of_products(consensus(rest, rules.consensus).drop("tied"), task, products)
        learnt = known.filter(~pl.col("locale").is_in(market.evaluation_locales))
        parts.append(learnt.join(said.select("query_id", "norm").unique(), on="query_id"))
    split = assign_splits(
        pl.concat(parts), pl.concat(g.select(parts[0].columns) for g in golden), rules.dev_share,
        market.seed, held,
    )  # fmt: skip
    ids = pair_ids(split["query_id"], split["product_id"])
    whole = split.with_columns(ids).sort("task", *PAIR)
    pairs, others = (whole.filter(f) for f in (_IS_RELEVANCE, ~_IS_RELEVANCE))
    return JudgedPairs(
        pairs=pairs.drop("task"),
        others=others,
        votes=_votes(_votes_of(answers["relevance"]), pairs),
        dropped=dropped,
        late_gold=sum(gold.late for gold in gold_of.values()),
        raters=raters,
    )


def _votes_of(said: pl.DataFrame) -> pl.DataFrame:
    """Return what counts in a consensus: all but gold as it was delivered."""
    return said.filter(held_out=0)


def _of_products(pairs: pl.DataFrame, task: Task, products: pl.DataFrame) -> pl.DataFrame:
    """Name the task, and keep the pairs of products that the snapshot has; qc judges categories."""
    if task != "qc":
        pairs = pairs.join(products, on=["locale", "product_id"], how="semi")
    return pairs.with_columns(task=pl.lit(task))


def _votes(ratings: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return what each rater says of the pairs that are not gold: VOTES, sorted."""
    open_ = pairs.filter(pl.col("split") != "gold").select(*PAIR, "pair_id")
    votes = current_votes(ratings).with_columns(rater_name()).join(open_, on=PAIR)
    return votes.select("pair_id", "locale", "rater", "grade").sort(pl.all())
