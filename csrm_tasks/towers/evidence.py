"""Learning lexical evidence (A50): the market's lexicon, and the coefficients of both heads.

Logistic regression on a head's own logit and the features. Two kinds of pairs count half each:
what the teacher says of pairs that search may show, and what people said of the train split, in
every language, for how well words match means the same in each. The teacher's word alone teaches
less (on fresh queries of the demo EM F1 gains 5 points of 9): it has learnt what the towers have.
Towers that learnt people's grades are far too sure of the train split, so theirs are fitted on dev.

A head is kept where queries that were held back say so: log loss over folds of queries must fall,
and on dev, against the own logit with a weight and a bias fitted on the same pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.linear_model import LogisticRegression

from csrm_tasks.dataset.tables import table
from csrm_tasks.lexical.brands import brand_groups, catalogue_aliases
from csrm_tasks.lexical.evidence import Evidence
from csrm_tasks.lexical.features import NAMES
from csrm_tasks.lexical.terms import Lexicon
from csrm_tasks.records import Grade
from csrm_tasks.towers import measure
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.tables import TowerTables
from csrm_tasks.towers.tower import HEADS

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

STRENGTHS = (0.01, 0.1, 1.0)  # inverse regularisation tried; a mean pair weighs 1
FOLDS = 5
MOST = 20_000  # pairs of a kind: far more than sixteen coefficients need


def lexicon_of(tables: TowerTables) -> Lexicon:
    """Return the lexicon of all locales' catalogues: weights of terms, forms of brands."""
    products = tables.products.sort("locale", "product_id")
    titles, brands = products["title"].to_list(), products["brand"].to_list()
    named = table(tables.snapshot, "translations").filter(pl.col("kind") == "brand")
    aliases = [
        *named.select("source_text", "target_text").rows(),
        *catalogue_aliases(titles, brands),
    ]
    return Lexicon.fit(titles, brand_groups(brands, aliases))


@dataclass(frozen=True)
class Pairs:
    """What a fit reads of P pairs."""

    own: Floats  # (P, 2) the towers' own logits: exact, not defect
    features: Floats  # (P, F)
    good: Floats  # (P, 2) probability of each
    query: Rows  # (P,) pairs of one query have one number

    def __len__(self) -> int:
        """Return P."""
        return len(self.query)

    def some(self, seed: int) -> Pairs:
        """Return at most :data:`MOST` of the pairs."""
        rows = np.random.default_rng(seed).permutation(len(self))[:MOST]
        rows.sort()
        return Pairs(self.own[rows], self.features[rows], self.good[rows], self.query[rows])


def soft_pairs(model: TwinTowers, taught: measure.TaughtPairs, lexicon: Lexicon) -> Pairs:
    """Return what the teacher says."""
    embedded = taught.embedded
    return Pairs(
        measure.own_logits(model, embedded).astype(np.float64),
        measure.pair_features_of(embedded, lexicon).astype(np.float64),
        np.stack([taught.exact, 1.0 - taught.irrelevant], 1).astype(np.float64),
        np.asarray(embedded.query, np.int64),
    )


def judged_pairs(
    model: TwinTowers, reader: TowerTokenizer, pairs: pl.DataFrame, lexicon: Lexicon, seed: int
) -> Pairs:
    """Return what people said of ``pairs`` (pair_id, query, title, grade), of :data:`MOST`."""
    pairs = pairs.sort("pair_id")
    pairs = pairs.sample(MOST, seed=seed) if len(pairs) > MOST else pairs
    embedded, grade = measure.reference(model, reader, pairs), pairs["grade"].to_numpy()
    good = np.stack([grade == Grade.EXACT, grade != Grade.IRRELEVANT], 1)
    return Pairs(
        measure.own_logits(model, embedded).astype(np.float64),
        measure.pair_features_of(embedded, lexicon).astype(np.float64),
        good.astype(np.float64),
        np.asarray(embedded.query, np.int64),
    )


@dataclass(frozen=True)
class Fitted:
    """What a fit came to: None where neither head is better with the features."""

    evidence: Evidence | None
    facts: dict[str, Any]


def fit(lexicon: Lexicon, learnt: Mapping[str, Pairs], dev: Pairs | None, seed: int) -> Fitted:
    """Fit both heads on ``learnt``, every kind of pairs with equal weight; see the module.

    ``dev``: pairs that are not among them, and judge; None where the folds alone do.
    """
    kinds = [pairs.some(seed) for pairs in learnt.values() if len(pairs)]
    own, weights, bias = np.ones(2), np.zeros((len(NAMES), 2)), np.zeros(2)
    facts: dict[str, Any] = {f"evidence_{name}_pairs": len(p) for name, p in learnt.items()}
    if not kinds or len(np.unique(np.concatenate([_folds(p.query) for p in kinds]))) < 2:
        return Fitted(None, facts)  # nothing to fit, or nothing to hold back
    kept = False
    for i, head in enumerate(HEADS):
        data = _Data.of(kinds, i)
        losses = {c: _held_out(data, c) for c in STRENGTHS}
        best = min(losses, key=lambda c: losses[c])
        gain = _held_out(data.alone(), STRENGTHS[-1]) - losses[best]
        model = _regression(data, best)
        facts |= {f"evidence_{head}_strength": best, f"evidence_{head}_gain": gain}
        if dev is not None and len(dev):
            judged = _Data.of([dev], i)
            alone = data.alone()
            before = _loss(_regression(alone, STRENGTHS[-1]), judged.alone())
            facts[f"evidence_{head}_dev_gain"] = before - _loss(model, judged)
            gain = min(gain, facts[f"evidence_{head}_dev_gain"])
        facts[f"evidence_{head}"] = gain > 0
        if gain > 0:
            kept = True
            own[i], weights[:, i] = model.coef_[0, 0], model.coef_[0, 1:]
            bias[i] = model.intercept_[0]
    arrays = (a.astype(np.float32) for a in (own, weights, bias))
    return Fitted(Evidence(lexicon, *arrays) if kept else None, facts)


@dataclass(frozen=True)
class _Data:
    """Pairs of one head: x (P, 1 + F), good (P,), weight (P,), fold (P,)."""

    x: Floats
    good: Floats
    weight: Floats
    fold: Rows

    @classmethod
    def of(cls, kinds: list[Pairs], head: int) -> _Data:
        total = sum(len(p) for p in kinds)
        return cls(
            np.concatenate([np.column_stack([p.own[:, head], p.features]) for p in kinds]),
            np.concatenate([p.good[:, head] for p in kinds]),
            np.concatenate([np.full(len(p), total / len(kinds) / len(p)) for p in kinds]),
            np.concatenate([_folds(p.query) for p in kinds]),
        )

    def alone(self) -> _Data:
        """Return the own logit without the features."""
        return _Data(self.x[:, :1], self.good, self.weight, self.fold)

    def rows(self, chosen: npt.NDArray[np.bool_]) -> _Data:
        """Return some of the pairs."""
        return _Data(self.x[chosen], self.good[chosen], self.weight[chosen], self.fold[chosen])


def _regression(data: _Data, strength: float) -> LogisticRegression:
    """Fit on soft labels: every pair is one of each class, by its probability."""
    label = np.concatenate([np.ones(len(data.good)), np.zeros(len(data.good))])
    weight = np.concatenate([data.good * data.weight, (1 - data.good) * data.weight])
    model = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=100)
    return model.fit(np.concatenate([data.x, data.x]), label, sample_weight=weight)


def _loss(model: LogisticRegression, data: _Data) -> float:
    """Return the mean log loss."""
    p = np.clip(model.predict_proba(data.x)[:, 1], 1e-7, 1 - 1e-7)
    loss = -(data.good * np.log(p) + (1 - data.good) * np.log(1 - p))
    return float(np.average(loss, weights=data.weight))


def _held_out(data: _Data, strength: float) -> float:
    """Return the mean loss of folds, each by a fit on the others."""
    parts = [(data.rows(data.fold != k), data.rows(data.fold == k)) for k in np.unique(data.fold)]
    losses = [_loss(_regression(train, strength), test) for train, test in parts]
    return float(np.average(losses, weights=[test.weight.sum() for _, test in parts]))


def _folds(query: Rows) -> Rows:
    """Return the fold (P,) of each pair; a query is in one."""
    _, place = np.unique(query, return_inverse=True)
    return place % FOLDS
