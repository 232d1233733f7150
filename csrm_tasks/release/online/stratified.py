"""A day's audit drawn by strata: from many queries, those from which most is learnt (A58).

The frame is the day's slice of queries in the order of a plain draw, so each stands for as much
traffic as another. Both releases rank all of it, their towers say how likely people will find a
difference (:mod:`.expected`), and ``audit_queries`` of it are judged, by known chances. What people
say of a query counts by its weight, 1 over its chance and the frame's size. Weights are settled
before anybody judges, from answers that were in when the day was drawn (:class:`Sums`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import polars as pl

from csrm_tasks.release.online import audits
from csrm_tasks.release.online.allocation import Before, by_strata, numbers
from csrm_tasks.release.online.audits import Scorer
from csrm_tasks.release.online.checks import Sums
from csrm_tasks.release.online.expected import (
    COLUMNS,
    MEASURES,
    Expected,
    Measure,
    by_measure,
)
from csrm_tasks.release.online.prediction_powered import Estimate, estimate
from csrm_tasks.release.online.strata import Drawn, Population, draw

FRAME = 20  # queries ranked for every one that is judged
LEAST = 20  # answered queries beyond one per stratum and day, for an interval
DAYS = 30  # that a market's queries should last for


def frame_size(queries: int, number: int) -> int:
    """Return how many of so many queries a day's audit of ``number`` is drawn from."""
    return max(number, min(FRAME * number, queries // DAYS))


def ranked(scorers: Mapping[str, Scorer], shown: pl.DataFrame) -> pl.DataFrame:
    """Rank ``shown`` (query_id, query, product_id, title) by every release and keep the tops.

    Returns what :func:`~.audits.page` does, with ``exact`` and ``irrelevant``: the mean of what the
    releases' towers say of the pair.
    """
    tops, said = [], []
    for release, scorer in scorers.items():
        scored = scorer.score(*(shown[c].to_list() for c in ("query", "product_id", "title")))
        tops.append(audits.top(shown, scored.rank_score, release))
        said.append(np.stack([scored.em, scored.defect]).astype(np.float64))
    exact, irrelevant = np.mean(said, axis=0)
    pairs = shown.select("query_id", "product_id").with_columns(
        exact=pl.Series(exact), irrelevant=pl.Series(irrelevant)
    )
    return pl.concat(tops).join(
        pairs, on=["query_id", "product_id"], how="left", maintain_order="left"
    )


def draw_by_strata(
    found: pl.DataFrame, before: Sequence[pl.DataFrame], number: int, seed: str
) -> pl.DataFrame:
    """Draw about ``number`` queries of a frame; returns it with stratum, size and chance.

    ``found``: :func:`~.expected.expected` of the frame; ``before``: :func:`judged` of audits that
    people have answered. ``chance`` is null where a query was not drawn. An empty frame (all the
    market's queries were asked) has none.
    """
    if found.is_empty():
        return found.with_columns(
            pl.lit(0).alias("stratum"), *(pl.lit(0.0).alias(c) for c in ("size", "chance"))
        )
    said = by_measure(found)
    each = np.ones(found.height, np.int64)
    population = by_strata(each, each, said)
    many = numbers(population, each, said, _before(before), number)
    rng = np.random.default_rng(int.from_bytes(sha256(seed.encode()).digest()[:8], "big"))
    drawn = draw(population, many, rng)
    chance = np.full(found.height, np.nan)
    chance[drawn.query] = drawn.chance
    return found.with_columns(
        pl.Series("stratum", population.stratum), pl.Series("size", population.size),
        pl.Series("chance", chance).fill_nan(None),
    )  # fmt: skip


def judged(frame: pl.DataFrame, answered: pl.DataFrame) -> pl.DataFrame:
    """Return the drawn queries that people have answered, with their weights.

    ``frame``: of :func:`draw_by_strata`; ``answered``: query_id and what people said by measure
    (``em``, ``defect``: −1, 0 or 1). The answered stand for all that were drawn of their stratum;
    where none of a stratum's are in yet the audit says nothing so far, and no row is returned.
    """
    drawn = frame.drop_nulls("chance").rename({c: f"{c}_expected" for c in COLUMNS.values()})
    both = drawn.join(answered, on="query_id", how="left", maintain_order="left")
    known = pl.col("em").is_not_null()
    both = both.with_columns(
        weight=pl.len().over("stratum") / known.sum().over("stratum")
        / pl.col("chance") / frame.height
    ).filter(known)  # fmt: skip
    return both if both["stratum"].n_unique() == drawn["stratum"].n_unique() else both.clear()


def sums(found: pl.DataFrame) -> dict[Measure, Sums]:
    """Return what one audit's :func:`judged` add to the rollout's sums."""
    weight = found["weight"].to_numpy() * found.height  # of a plain draw it would be 1
    one = float(np.square(weight).mean()) if len(weight) else 0.0
    said = {m: found[c].to_numpy().astype(np.float64) for m, c in COLUMNS.items()}
    return {
        m: Sums(float(weight @ x), float((weight * x) @ (weight * x)), one) for m, x in said.items()
    }


def _before(parts: Sequence[pl.DataFrame]) -> Before:
    if not parts:
        none = np.zeros(0)
        nothing = {m: Expected(none, none) for m in MEASURES}
        return Before(np.zeros(0, np.int64), none, none, dict.fromkeys(MEASURES, none), nothing)
    rows = pl.concat(parts)
    return Before(
        rows["stratum"].to_numpy(), rows["size"].to_numpy(), rows["weight"].to_numpy(),
        {m: rows[c].to_numpy().astype(np.float64) for m, c in COLUMNS.items()},
        {m: Expected(rows[f"{c}_expected"].to_numpy(), rows[f"{c}_chance"].to_numpy())
         for m, c in COLUMNS.items()},
    )  # fmt: skip


@dataclass(frozen=True)
class Audited:
    """One answered audit: its frame, and what people said of the drawn."""

    frame: pl.DataFrame
    judged: pl.DataFrame


def helped(answered: Sequence[Audited], alpha: float) -> Mapping[Measure, Estimate]:
    """Return both differences as people and towers say them together, for one look.

    The towers' expectation of every query of the frames, corrected by what people said of the
    drawn (prediction-powered inference): unbiased whatever the towers are worth. λ is tuned on all
    answers, so this holds for a look and not for looking every day: it is shown, never judged.
    Empty where too few queries are answered.
    """
    told = [a for a in answered if a.judged.height]
    if sum(a.judged.height - a.judged["stratum"].n_unique() for a in told) < LEAST:
        return {}
    frames = pl.concat(a.frame for a in told)
    at, chance, start = [], [], 0
    for a in told:
        place = {q: start + n for n, q in enumerate(a.frame["query_id"])}
        at += [place[q] for q in a.judged["query_id"]]
        chance.append(1 / (a.judged["weight"].to_numpy() * a.frame.height))
        start += a.frame.height
    population = Population(np.ones(start, np.int64), frames["stratum"].to_numpy())
    drawn = Drawn(np.array(at, np.int64), np.minimum(np.concatenate(chance), 1.0))
    people = pl.concat(a.judged for a in told)
    return {
        m: estimate(
            population, drawn, people[c].to_numpy().astype(np.float64), said.difference,
            alpha=alpha, chance=said.chance,
        )
        for (m, said), c in zip(by_measure(frames).items(), COLUMNS.values(), strict=True)
    }  # fmt: skip
