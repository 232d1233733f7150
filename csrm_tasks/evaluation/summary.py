"""Everything a run's report says, as one JSON document: figures, intervals, comparisons, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from csrm_tasks.evaluation import metrics
from csrm_tasks.evaluation.gold import Counts, Gold, Predictions, counts, seen_queries
from csrm_tasks.evaluation.measures import LOWER, MEASURES
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.evaluation.paired import (
    Interval,
    draws_of,
    holm,
    percentile,
    resample,
    two_sided,
)
from csrm_tasks.evaluation.paired import verdict as verdict_of
from csrm_tasks.evaluation.slices import Mask

Json = dict[str, Any]
Draws = dict[str, tuple[float, Floats]]  # measure → value of all queries, and of each resample
ALPHA = 0.05


def summarise(
    models: Sequence[Predictions], gold: Gold, rivals: Sequence[tuple[str, str]] = ()
) -> Json:
    """Return gold set, models with intervals, all paired comparisons and slices (A42, A43, A45).

    A comparison {"a", "b"} is the difference a - b; every pair is there in both directions, so that
    a reader looks up the claim it is after. An undefined figure is null. ``rivals``: names of
    (candidate, champion) whose difference is taken in every slice, too, and, where towers were
    taught gold queries before these were gold, also over the queries that are new to both.
    """
    weights = resample(gold.queries)
    tables = {m.name: counts(m, gold) for m in models}
    drawn = {name: _drawn(table, weights) for name, table in tables.items()}
    slices = [_slice(name, mask, models, gold, rivals) for name, mask in gold.slices.items()]
    _correct(slices)
    return {
        "gold": {"pairs": gold.pairs, "queries": gold.queries, "digest": gold.digest},
        "grades": np.bincount(gold.grade, minlength=3).tolist(),
        "models": [_model(m, tables[m.name], drawn[m.name], gold) for m in models],
        "comparisons": _comparisons(drawn),
        "rivals": [list(pair) for pair in rivals],
        "new_to_both": [one for pair in rivals for one in _new_to_both(models, gold, tables, pair)],
        "slices": slices,
    }


def _new_to_both(
    models: Sequence[Predictions], gold: Gold, tables: Mapping[str, Counts], pair: tuple[str, str]
) -> list[Json]:
    """Compare two models over the queries that neither was taught; [] where these are all."""
    taught: Mask = np.zeros(gold.queries, bool)
    for model in models:
        if model.name in pair:
            taught |= seen_queries(model, gold)
    if not taught.any():
        return []
    weights = resample(int((~taught).sum()))
    drawn = {
        name: _drawn({f: table[~taught] for f, table in tables[name].items()}, weights)
        for name in pair
    }
    return [c | {"queries": int((~taught).sum())} for c in _comparisons(drawn)[::2]]


def _drawn(tables: Counts, weights: Floats) -> Draws:
    """Return every measure's distribution; queries are summed up once per family of counts."""
    draws: Draws = {}
    for family, table in tables.items():
        named = {name: metric for name, (of, metric) in MEASURES.items() if of == family}
        draws |= draws_of(table, named, weights)
    return {name: draws[name] for name in MEASURES if name in draws}


def _model(model: Predictions, tables: Counts, drawn: Draws, gold: Gold) -> Json:
    described: Json = {"name": model.name, "kind": model.kind, "source": model.source}
    described["seen_queries"] = int(seen_queries(model, gold).sum())
    confusions = ("relevance", "em", "defect")
    described["confusion"] = {
        f: tables[f].sum(0).astype(int).tolist() for f in confusions if f in tables
    }
    if model.probabilities is not None:
        described["calibration"] = tables["calibration"].sum(0).tolist()
        each = metrics.class_f1(tables["relevance"].sum(0))
        described["class_f1"] = [float(v) if np.isfinite(v) else None for v in each]
    described["figures"] = {name: percentile(*d).as_json() for name, d in drawn.items()}
    return described


def _comparisons(drawn: Mapping[str, Draws]) -> list[Json]:
    comparisons = []
    for measure in MEASURES:
        known = [name for name, draws in drawn.items() if measure in draws]
        for a, b in combinations(known, 2):
            diff = _difference(drawn[a][measure], drawn[b][measure])
            comparisons += [
                _compared(a, b, measure, diff),
                _compared(b, a, measure, diff.negated()),
            ]
    return comparisons


def _difference(one: tuple[float, Floats], other: tuple[float, Floats]) -> Interval:
    return percentile(one[0] - other[0], one[1] - other[1])


def _compared(a: str, b: str, measure: str, diff: Interval) -> Json:
    better = diff.negated() if measure in LOWER else diff
    return {"a": a, "b": b, "measure": measure, **diff.as_json(), "verdict": verdict_of(better)}


def _slice(
    name: str,
    mask: Mask,
    models: Sequence[Predictions],
    gold: Gold,
    rivals: Sequence[tuple[str, str]],
) -> Json:
    """Judge all models on the pairs of one slice; resamples are of the slice's own queries."""
    inside = np.unique(gold.query[mask])
    weights = resample(len(inside))
    drawn = {}
    for model in models:
        tables = {f: table[inside] for f, table in counts(model, gold, mask).items()}
        drawn[model.name] = _drawn(tables, weights)
    figures = {
        model: {measure: percentile(*d).as_json() for measure, d in draws.items()}
        for model, draws in drawn.items()
    }
    differences = [
        _compared(a, b, measure, _difference(drawn[a][measure], drawn[b][measure]))
        | {"p": two_sided(drawn[a][measure][1] - drawn[b][measure][1])}
        for a, b in rivals
        for measure in MEASURES
        if measure in drawn[a] and measure in drawn[b]
    ]
    described: Json = {"name": name, "pairs": int(mask.sum()), "queries": len(inside)}
    return described | {"figures": figures, "differences": differences}


def _correct(slices: Sequence[Json]) -> None:
    """Decide the differences of each measure over all slices together, by Holm.

    A report of twenty slices shows a difference by luck; :func:`.paired.holm` keeps the chance of
    any at :data:`ALPHA`. What only its own interval decides is "not decided". A slice in which a
    measure is undefined (no exact product, say) is none of them.
    """
    together: dict[tuple[str, str, str], list[Json]] = {}
    for one in slices:
        for d in one["differences"]:
            if d["value"] is not None:
                together.setdefault((d["a"], d["b"], d["measure"]), []).append(d)
    for family in together.values():
        for d, p in zip(family, holm([d["p"] for d in family]), strict=True):
            d["p"] = p
            if p > ALPHA:
                d["verdict"] = "not decided"


def headline(summary: Json) -> dict[str, float]:
    """Flatten the defined figures as MLflow metrics: ``{model}.{figure}``, ``…_lo``, ``…_hi``."""
    figures = {}
    for model in summary["models"]:
        for figure, value in model["figures"].items():
            for part, suffix in (("value", ""), ("lo", "_lo"), ("hi", "_hi")):
                if value[part] is not None:
                    figures[f"{model['name']}.{figure}{suffix}"] = value[part]
    return figures


def against(summary: Json, measure: str) -> dict[str, Json]:
    """Return the comparisons of one measure, keyed ``"a vs b"``, without the two names."""
    return {
        f"{c['a']} vs {c['b']}": {k: c[k] for k in ("value", "lo", "hi", "verdict")}
        for c in summary["comparisons"]
        if c["measure"] == measure
    }
