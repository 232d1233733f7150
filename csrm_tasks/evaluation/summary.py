"""Everything a run's report says, as one JSON document: figures, intervals, comparisons, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from csrm_tasks.evaluation import metrics
from csrm_tasks.evaluation.gold import Answers, Counts, Gold, counts
from csrm_tasks.evaluation.measures import MEASURES, share
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.evaluation.paired import Interval, distribution, interval, percentile, resample
from csrm_tasks.evaluation.paired import verdict as verdict_of

Json = dict[str, Any]
SLICE_MEASURES = {"llm": "micro_f1", "baseline": "micro_f1", "towers": "em_f1"}


def summarise(models: Sequence[Answers], gold: Gold) -> Json:
    """Return gold set, models with intervals, all paired comparisons and slices (A42, A43, A45).

    A comparison {"a", "b"} is the difference a - b; every pair is there in both directions, so that
    a reader looks up the claim it is after. An undefined figure is null.
    """
    weights = resample(gold.queries)
    tables = {m.name: counts(m, gold) for m in models}
    return {
        "gold": {"pairs": gold.pairs, "queries": gold.queries, "digest": gold.digest},
        "grades": np.bincount(gold.grade, minlength=3).tolist(),
        "models": [_model(m, tables[m.name], gold, weights) for m in models],
        "comparisons": _comparisons(tables, weights),
        "slices": [_slice(name, mask, models, gold, weights) for name, mask in gold.slices.items()],
    }


def _model(model: Answers, tables: Counts, gold: Gold, weights: Floats) -> Json:
    found: Json = {"name": model.name, "kind": model.kind, "source": model.source}
    found["confusion"] = {f: t.sum(0).astype(int).tolist() for f, t in tables.items()}
    figures = {
        name: interval(tables[family], metric, weights)
        for name, (family, metric) in MEASURES.items()
        if family in tables
    }
    figures |= _ranking(model, gold, weights)
    if model.probabilities is not None:
        bins = metrics.calibration_by_query(
            model.probabilities, gold.grade, gold.query, gold.queries
        )
        figures["ece"] = interval(bins, metrics.ece, weights)
        found["calibration"] = bins.sum(0).tolist()
        each = metrics.class_f1(tables["relevance"].sum(0))
        found["class_f1"] = [float(v) if np.isfinite(v) else None for v in each]
    found["figures"] = {name: i.as_json() for name, i in figures.items()}
    return found


def _ranking(model: Answers, gold: Gold, weights: Floats) -> dict[str, Interval]:
    """EM@1 and Defect@5 when the model ranks the judged products of each gold query."""
    em, defect = metrics.top_hits(gold.query, model.score, gold.grade, gold.queries)
    one = np.ones(gold.queries)
    return {
        "em_at_1": interval(np.stack([em, one], 1), share, weights),
        "defect_at_5": interval(np.stack([defect, one], 1), share, weights),
    }


def _comparisons(tables: Mapping[str, Counts], weights: Floats) -> list[Json]:
    found = []
    for measure, (family, metric) in MEASURES.items():
        drawn = {
            name: distribution(t[family], metric, weights)
            for name, t in tables.items()
            if family in t
        }
        for a, b in permutations(drawn, 2):
            (one, one_draws), (other, other_draws) = drawn[a], drawn[b]
            diff = percentile(one - other, one_draws - other_draws)
            found.append(
                {"a": a, "b": b, "measure": measure, **diff.as_json(), "verdict": verdict_of(diff)}
            )
    return found


def _slice(name: str, mask: Any, models: Sequence[Answers], gold: Gold, weights: Floats) -> Json:
    found: Json = {"name": name, "pairs": int(mask.sum())}
    found["queries"] = len(np.unique(gold.query[mask]))
    found["figures"] = {}
    for model in models:
        measure = SLICE_MEASURES[model.kind]
        family, metric = MEASURES[measure]
        table = counts(model, gold, mask)[family]
        found["figures"][model.name] = {
            "measure": measure,
            **interval(table, metric, weights).as_json(),
        }
    return found


def headline(summary: Json) -> dict[str, float]:
    """Flatten the defined figures as MLflow metrics: ``{model}.{figure}``, ``…_lo``, ``…_hi``."""
    found = {}
    for model in summary["models"]:
        for figure, value in model["figures"].items():
            for part, suffix in (("value", ""), ("lo", "_lo"), ("hi", "_hi")):
                if value[part] is not None:
                    found[f"{model['name']}.{figure}{suffix}"] = value[part]
    return found


def against(summary: Json, measure: str) -> dict[str, Json]:
    """Return the comparisons of one measure, keyed ``"a vs b"``, without the two names."""
    return {
        f"{c['a']} vs {c['b']}": {k: c[k] for k in ("value", "lo", "hi", "verdict")}
        for c in summary["comparisons"]
        if c["measure"] == measure
    }
