"""Train, dev and gold, grouped by normalised query: a query is on one side only, for good (A10).

The gold set is frozen. A pair enters it on the first day by whose deliveries enough raters agree,
with the grade of that day; what is delivered later changes neither its grade nor its place. And it
enters only when no earlier snapshot held its query for train or dev, in whichever locale
(:mod:`.sides`): the calendar has no say. A query that is on a side stays there.

A market may deliver gold instead: judgements that are ``held_out`` are there to measure by. Of them
a single one is enough, or several that say the same; nothing else of A10 differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.consensus import PAIR, current_votes, majority
from csrm_tasks.sections import Snapshot

SIDES = ("norm", "side")  # columns of what earlier snapshots held


@dataclass(frozen=True)
class Gold:
    """The frozen pairs, and how many met the rule and were learnt from before."""

    pairs: pl.DataFrame  # locale, query_id, product_id, grade, raters, agree, norm
    late: int


def uniform(seed: int, *parts: str) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    return int(text_digest(str(seed), *parts), 16) / 2**64


def held_out_queries(
    queries: pl.DataFrame, pairs: pl.DataFrame, seen: bool = False
) -> pl.DataFrame:
    """Return query_id of what nothing is learnt of: dev, and gold unless ``seen`` (A10).

    Thresholds are chosen on dev, and gold judges on queries that are new to a model. It is a text
    that is held out: typed alike in the other language it is the same. ``seen``: for a control.
    """
    barred = ("dev",) if seen else ("dev", "gold")
    judged = pairs.filter(pl.col("split").is_in(barred)).select("query_id").unique()
    norms = queries.join(judged, on="query_id", how="semi").select("norm").unique()
    return queries.join(norms, on="norm", how="semi").select("query_id").unique()


def frozen_gold(
    ratings: pl.DataFrame,
    rules: Snapshot,
    locales: Sequence[str],
    sides: pl.DataFrame | None = None,
    held_out: pl.DataFrame | None = None,
) -> Gold:
    """Find the gold pairs of ``locales`` in ratings (PAIR, norm, day, grade, rater_id, …).  # A10

    ``sides``: norm and side of what earlier snapshots held; None: there were none. ``held_out``:
    ratings that are gold as delivered, where those of a pair say the same.
    """
    here = pl.col("locale").is_in(locales)
    judged = ratings.filter(here)
    enough = judged.group_by(PAIR).len().filter(pl.col("len") >= rules.gold_raters)
    rated = judged.join(enough, on=PAIR, how="semi", maintain_order="left")
    agreed = (pl.col("raters") >= rules.gold_raters) & (pl.col("agree") >= rules.gold_agree)
    met, said = [_states(rated).filter(agreed)], [rated]
    if held_out is not None:
        delivered = held_out.filter(here)
        met.append(_states(delivered).filter(pl.col("agree") == pl.col("raters")))
        said.append(delivered)
    first = pl.concat(met).sort(*PAIR, "as_of", maintain_order=True)
    first = first.unique(PAIR, keep="first", maintain_order=True)
    norms = pl.concat(frame.select("query_id", "norm") for frame in said).unique()
    pairs = first.join(norms, on="query_id").drop("as_of").sort(PAIR)
    if sides is not None:
        learnt = sides.filter(pl.col("side") != "gold")
        pairs = pairs.join(learnt, on="norm", how="anti", maintain_order="left")
    return Gold(pairs, first.height - pairs.height)


def _states(rated: pl.DataFrame) -> pl.DataFrame:
    """Return each pair as it stood at the end of each day (``as_of``) on which it was rated."""
    stood = (
        rated.select(*PAIR, pl.col("day").alias("as_of"))
        .unique()
        .join(rated, on=PAIR, maintain_order="right_left")
    )
    key = (*PAIR, "as_of")
    return majority(current_votes(stood.filter(pl.col("day") <= pl.col("as_of")), key), key)


def _held(sides: pl.DataFrame | None) -> pl.DataFrame:
    return pl.DataFrame(schema=dict.fromkeys(SIDES, pl.String)) if sides is None else sides


def assign_splits(
    pairs: pl.DataFrame,
    gold: pl.DataFrame,
    dev_share: float,
    seed: int,
    sides: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Add ``split`` to judged pairs (PAIR, norm, grade, raters, agree).  # A10

    ``gold``: the frozen pairs, with the same columns. Every other pair of a gold query is left
    out, in whichever locale, also of one that was gold and has no gold pair any more. A query of
    ``sides`` (norm, side) stays where it was; of new ones a share goes to dev, drawn by hash. A
    query typed alike in two languages goes one way in both.
    """
    held = _held(sides)
    was_gold = pl.concat([gold.select("norm"), held.filter(side="gold").select("norm")])
    rest = pairs.join(was_gold.unique(), on="norm", how="anti", maintain_order="left")
    in_dev = rest.join(held.filter(side="dev"), on="norm", how="semi").select("locale", "norm")
    fresh = rest.join(held, on="norm", how="anti")
    drawn = _dev_queries(fresh, dev_share, seed, has_dev=in_dev["locale"].unique().to_list())
    dev = pl.concat([in_dev["norm"], drawn])
    split = pl.when(pl.col("norm").is_in(dev.implode())).then(pl.lit("dev"))
    frozen = gold.select(pairs.columns).with_columns(pl.lit("gold").alias("split"))
    named = rest.with_columns(split.otherwise(pl.lit("train")).alias("split"))
    return pl.concat([named, frozen])


def _dev_queries(
    pairs: pl.DataFrame, share: float, seed: int, has_dev: Sequence[str] = ()
) -> pl.Series:
    """Draw the normalised queries of dev: each by its own hash, whatever other queries there are.

    So language and grade are represented as far as chance goes. Where a locale of two queries or
    more would have none in dev, the one of the least hash goes there; not in a locale of
    ``has_dev``, which has some already.
    """
    norms = pairs["norm"].unique().sort()
    drawn = pl.Series("u", [uniform(seed, "split", n) for n in norms], dtype=pl.Float64)
    drawn_of = pl.DataFrame([norms, drawn])
    dev = drawn_of.filter(pl.col("u") < share)["norm"]
    if share <= 0.0:
        return dev
    for (locale,), own in pairs.sort("locale").group_by("locale", maintain_order=True):
        here = drawn_of.filter(pl.col("norm").is_in(own["norm"].unique().implode()))
        empty = not here["norm"].is_in(dev.implode()).any()
        if locale not in has_dev and here.height > 1 and empty:
            dev = dev.append(here.sort("u")["norm"].head(1))
    return dev
