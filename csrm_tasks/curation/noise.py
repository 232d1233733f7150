"""Which train pairs are flagged as wrongly labelled, and what is done with them (A39).

A pair is flagged where the out-of-fold model holds another label than the given one to be right
with a probability above a threshold. Pairs on which two raters agree are never flagged: two people
count more than one model, and a label that a review has confirmed must not come back week by week.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.sections import Filter

log = logging.getLogger("csrm")

USUAL = 0.8  # A39
CANDIDATES = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))  # thresholds tried on dev
PRECISION = 0.9  # share of the flagged pairs that must be wrongly labelled, by estimate
ENOUGH = 50  # trusted dev pairs of which a model is sure, to estimate its errors by
CONFIDENCE = 0.95  # of the bound on the model's errors, one-sided
NOTHING = 1.0  # no probability is above it


@dataclass(frozen=True)
class Threshold:
    """Where the line is drawn and by what; ``precision``: a lower bound by dev, where there is."""

    value: float
    chosen_by: str  # market file | dev | default
    precision: float | None = None


def choose_threshold(scored: pl.DataFrame, rules: Filter) -> Threshold:
    """Choose the least candidate at which the flagged pairs are mostly wrong, by dev (A39).

    ``scored``: train and dev pairs with split, grade, raters, agree, p0, p1, p2, out of fold. Let e
    be how often a model that is sure contradicts dev labels on which raters agree, and d how often
    it contradicts the train labels that may be flagged. A false alarm is an error of the model, so
    at least 1 - e/d of the alarms are true. Dev of a language that has no train labels does not
    count: there the model errs more than on any pair that may be flagged. For e stands its upper
    bound at :data:`CONFIDENCE`
    (Clopper and Pearson, 1934): the mean would be met by luck at one of the candidates. Without
    enough pairs it is A39's 0.8, and where no candidate reaches :data:`PRECISION`, nothing is
    flagged.
    """
    if rules.threshold is not None:
        return Threshold(rules.threshold, "market file")
    told = with_prediction(scored)
    train = told.filter((pl.col("split") == "train") & ~_agreed())
    learnt = told.filter(split="train")["locale"].unique()
    dev = told.filter((pl.col("split") == "dev") & _agreed())
    dev = dev.filter(pl.col("locale").is_in(learnt.implode()))
    if dev.filter(pl.col("sure") > CANDIDATES[0]).height < ENOUGH:
        return Threshold(USUAL, "default")
    for value in CANDIDATES:
        sure, alarms = (f.filter(pl.col("sure") > value) for f in (dev, train))
        contradicted = _contradicted(alarms)
        if sure.height < ENOUGH or not contradicted:
            break  # sure of still fewer further up
        e = upper_bound(_contradicted(sure), sure.height)
        precision = 1.0 - e * alarms.height / contradicted
        if precision >= PRECISION:
            return Threshold(value, "dev", round(precision, 4))
    return Threshold(NOTHING, "dev")


def upper_bound(errors: int, n: int) -> float:
    """Return the share of errors that ``errors`` of ``n`` do not exclude at CONFIDENCE."""
    from scipy.stats import beta

    return 1.0 if errors == n else float(beta.ppf(CONFIDENCE, errors + 1, n - errors))


def decide(scored: pl.DataFrame, rules: Filter, threshold: float) -> pl.DataFrame:
    """Return a decision for every train pair of ``scored``: DECISIONS, sorted by pair.

    Raises :class:`DataError` where it would remove more than ``rules.max_share`` of a label's pairs
    in a language, or all of them.
    """
    assert rules.action is not None
    train = with_prediction(scored.filter(pl.col("split") == "train")).sort("pair_id")
    flagged = (pl.col("predicted") != pl.col("grade")) & (pl.col("sure") > threshold) & ~_agreed()
    weight = {"remove": 0.0, "down_weight": rules.weight, "review": 1.0}[rules.action]
    reason = pl.format(
        f"label {{}} has p {{}} out of fold, label {{}} has {{}}, above {threshold:g}",
        "grade", pl.col("p_label").round(3), "predicted", pl.col("sure").round(3),
    )  # fmt: skip
    decided = train.with_columns(
        action=pl.when(flagged).then(pl.lit(rules.action)).otherwise(pl.lit("keep")),
        weight=pl.when(flagged).then(pl.lit(weight)).otherwise(pl.lit(1.0)),
        reason=pl.when(flagged).then(reason).otherwise(pl.lit("")),
    )
    if rules.action == "remove":
        _refuse_too_many(decided, rules.max_share)
    return decided


def with_prediction(scored: pl.DataFrame) -> pl.DataFrame:
    """Add ``predicted`` (the earliest of equals), ``sure`` (its probability) and ``p_label``."""
    p = pl.concat_list("p0", "p1", "p2")
    return scored.with_columns(
        predicted=p.list.arg_max().cast(pl.Int8),
        sure=p.list.max(),
        p_label=p.list.get(pl.col("grade").cast(pl.Int64)),
    )


def counts(decided: pl.DataFrame) -> dict[str, dict[str, dict[str, int]]]:
    """Return locale → label → action → pairs."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    by = ("locale", "grade", "action")
    for locale, grade, action, n in decided.group_by(by).len().sort(by).iter_rows():
        found.setdefault(locale, {}).setdefault(str(grade), {})[action] = n
    return found


def _contradicted(told: pl.DataFrame) -> int:
    return told.filter(pl.col("predicted") != pl.col("grade")).height


def _agreed() -> pl.Expr:
    return pl.col("agree") >= 2


def _refuse_too_many(decided: pl.DataFrame, most: float) -> None:
    removed = (pl.col("action") == "remove").sum()
    classes = decided.group_by("locale", "grade").agg(pl.len().alias("n"), removed.alias("gone"))
    for locale, grade, n, gone in classes.sort("locale", "grade").iter_rows():
        if gone == n:
            what = "all, which leaves none"
        elif gone > most * n:
            what = f"{gone / n:.1%}, more than filter.max_share ({most:g})"
        else:
            continue
        raise DataError(
            f"the filter would remove {gone} of {n} train pairs of label {grade} in {locale}: "
            f"{what}; have them looked at first (filter.action: review), or raise "
            "filter.threshold or filter.max_share"
        )
