"""Learning lexical evidence (A50): the market's lexicon, and the coefficients of both heads.

Logistic regression on a head's own logit, the features and, where held-back queries are better
explained with them, products of two features. Two kinds of pairs count half each:
what the teacher says of pairs that search may show, and what people said of the train split, in
every language, for how well words match means the same in each. The teacher's word alone teaches
less (on fresh queries of the demo EM F1 gains 5 points of 9): it has learnt what the towers have.
Towers that learnt people's grades are far too sure of the train split, so theirs are fitted on dev.

A head is kept where queries that were held back say so: log loss over folds of queries must fall,
and on dev, against the own logit with a weight and a bias fitted on the same pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.tables import table
from csrm_tasks.lexical.brands import brand_groups, catalogue_aliases
from csrm_tasks.lexical.evidence import Evidence
from csrm_tasks.lexical.features import NAMES
from csrm_tasks.lexical.terms import Lexicon
from csrm_tasks.records import Grade
from csrm_tasks.text import normalise
from csrm_tasks.towers import measure
from csrm_tasks.towers.export import Reference
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.tables import TowerTables
from csrm_tasks.towers.tower import HEADS

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

STRENGTHS = (0.01, 0.1, 1.0)  # inverse regularisation tried; a mean pair weighs 1
SUMS, PRODUCTS = FORMS = ("sums", "products")  # of features: by themselves, and two by two as well
FOLDS = 5
MOST = 10_000  # pairs of a kind: far more than a hundred coefficients need
MOST_STEPS, HALVINGS, TOLERANCE = 50, 20, 1e-9  # of Newton's method; of the mean loss
FIRST, SECOND = np.triu_indices(len(NAMES))  # the features of each product


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
    query: Rows  # (P,) pairs of one query's text have one number, whichever kind they are of

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
        _numbers(embedded),
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
        _numbers(embedded),
    )


def _numbers(embedded: Reference) -> Rows:
    """Return the number of each pair's query: by its text, which people and teacher may share."""
    numbers = [int(text_digest(normalise(text)), 16) >> 1 for text in embedded.queries]
    found: Rows = np.array(numbers, np.int64)[embedded.query]
    return found


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
    facts: dict[str, Any] = {f"evidence_{name}_pairs": len(p) for name, p in learnt.items()}
    if not kinds or len(np.unique(_folds(kinds))) < 2:
        return Fitted(None, facts)  # nothing to fit, or nothing to hold back
    heads = []
    for i, head in enumerate(HEADS):
        judged = _Data.of([dev], i) if dev is not None and len(dev) else None
        made, about = _fit_head(_Data.of(kinds, i), judged)
        heads.append(made)
        facts |= {f"evidence_{head}_{name}": fact for name, fact in about.items()}
    return Fitted(_joined(lexicon, heads), facts)


@dataclass(frozen=True)
class _Head:
    """Coefficients of one head; by themselves those of a head without evidence."""

    own: float = 1.0
    bias: float = 0.0
    weights: Floats = field(default_factory=lambda: np.zeros(len(NAMES)))
    products: Floats = field(default_factory=lambda: np.zeros((len(NAMES), len(NAMES))))
    kept: bool = False

    @classmethod
    def of(cls, model: Floats) -> _Head:
        bias, own, *rest = model
        products = np.zeros((len(NAMES), len(NAMES)))
        if len(rest) > len(NAMES):
            products[FIRST, SECOND] = rest[len(NAMES) :]
        weights = np.array(rest[: len(NAMES)])
        return cls(float(own), float(bias), weights, (products + products.T) / 2, True)


def _fit_head(data: _Data, dev: _Data | None) -> tuple[_Head, dict[str, Any]]:
    """Return one head's coefficients, those of no evidence where it is not confirmed, and facts."""
    losses = {(form, c): _held_out(data.read_as(form), c) for form in FORMS for c in STRENGTHS}
    form, best = min(losses, key=lambda setting: losses[setting])
    model, alone = _regression(data.read_as(form), best), data.alone()
    gains = {"gain": _held_out(alone, STRENGTHS[-1]) - losses[form, best]}
    if dev is not None:
        before = _loss(_regression(alone, STRENGTHS[-1]), dev.alone())
        gains["dev_gain"] = before - _loss(model, dev.read_as(form))
    kept = min(gains.values()) > 0
    facts = {"form": form, "strength": best, **gains, "kept": kept}
    return _Head.of(model) if kept else _Head(), facts


def _joined(lexicon: Lexicon, heads: list[_Head]) -> Evidence | None:
    """Return both heads' evidence; None where neither has any."""
    if not any(head.kept for head in heads):
        return None
    own, bias = ([getattr(head, name) for head in heads] for name in ("own", "bias"))
    weights = np.stack([head.weights for head in heads], 1)
    products = np.stack([head.products for head in heads])
    arrays = (np.array(a, np.float32) for a in (own, weights, products, bias))
    return Evidence(lexicon, *arrays)


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
            _folds(kinds),
        )

    def alone(self) -> _Data:
        """Return the own logit without the features."""
        return replace(self, x=self.x[:, :1])

    def read_as(self, form: str) -> _Data:
        """Return the same, with products of features behind them where ``form`` has them."""
        if form == SUMS:
            return self
        features = self.x[:, 1:]
        return replace(self, x=np.hstack([self.x, features[:, FIRST] * features[:, SECOND]]))

    def rows(self, chosen: npt.NDArray[np.bool_]) -> _Data:
        """Return some of the pairs."""
        return _Data(self.x[chosen], self.good[chosen], self.weight[chosen], self.fold[chosen])


def _regression(data: _Data, strength: float) -> Floats:
    """Return bias and coefficients (1 + width of x) of least loss on soft labels, by Newton.

    The loss is half the square of the coefficients, not of the bias, plus ``strength`` times the
    weighted log loss. (scikit-learn has every pair twice for a soft label, and takes five times as
    long with a hundred columns.) It is convex; steps are halved until it falls.
    """
    x = np.column_stack([np.ones(len(data.x)), data.x])
    penalty = np.ones(x.shape[1])
    penalty[0] = 0.0
    weight = strength * data.weight

    def loss(w: Floats) -> float:
        z = x @ w
        return float(penalty @ w**2 / 2 + weight @ (np.logaddexp(0, z) - data.good * z))

    w, now = np.zeros(x.shape[1]), loss(np.zeros(x.shape[1]))
    for _ in range(MOST_STEPS):
        p = expit(x @ w)
        slope = penalty * w + (weight * (p - data.good)) @ x
        curve = np.diag(penalty) + x.T @ (x * (weight * p * (1 - p))[:, None])
        step = np.linalg.lstsq(curve, slope, rcond=None)[0]
        tried = [w - step / 2**k for k in range(HALVINGS)]
        better = next(((v, found) for v in tried if (found := loss(v)) < now), None)
        if better is None or now - better[1] < TOLERANCE * weight.sum():
            return w if better is None else better[0]
        w, now = better
    return w


def _loss(model: Floats, data: _Data) -> float:
    """Return the mean log loss."""
    p = np.clip(expit(data.x @ model[1:] + model[0]), 1e-7, 1 - 1e-7)
    loss = -(data.good * np.log(p) + (1 - data.good) * np.log(1 - p))
    return float(np.average(loss, weights=data.weight))


def _held_out(data: _Data, strength: float) -> float:
    """Return the mean loss of folds, each by a fit on the others."""
    parts = [(data.rows(data.fold != k), data.rows(data.fold == k)) for k in np.unique(data.fold)]
    losses = [_loss(_regression(train, strength), test) for train, test in parts]
    return float(np.average(losses, weights=[test.weight.sum() for _, test in parts]))


def _folds(kinds: Sequence[Pairs]) -> Rows:
    """Return the fold (P,) of each pair; a query is in one, whichever kinds of pairs it has."""
    _, place = np.unique(np.concatenate([p.query for p in kinds]), return_inverse=True)
    return place % FOLDS
