"""What a snapshot says of itself: days and files with digests, counts, splits, gold, health."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl

from csrm_tasks.artifacts import json_digest
from csrm_tasks.dataset.health import verdict
from csrm_tasks.dataset.snapshot import Built
from csrm_tasks.dataset.tasks import described
from csrm_tasks.ingest.validation.validate import times_of
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import Grade

Json = dict[str, Any]


def describe(
    built: Built, market: MarketConfig, stage: int, until: str, digests: dict[str, str]
) -> Json:
    """Return ``snapshot.json``: a function of what was delivered, not of when or in which order.

    ``digests``: of the written tables. ``ends_at`` is when the last day ends at last; the contract
    of ingest lets no event in that is later. ``events_until`` is the latest event in a file read.
    """
    tables = built.tables
    ends = times_of(until, 0, market.schedule.timezone).latest
    latest = built.files["last_at"].max()
    files = built.files.select("day", "locale", "kind", "name", "digest", "rows_in")
    return {
        "market": market.market,
        "stage": stage,
        "until": until,
        "locales": {
            "learnt": [*market.learnt_locales(stage)],
            "missing": [*market.missing_locales(stage)],  # A36
        },
        "ends_at": ends.isoformat(),
        "events_until": latest.isoformat() if isinstance(latest, datetime) else None,
        "days": _days(built),
        "files": files.to_dicts(),
        "tables": {
            name: {"rows": getattr(tables, name).height, "sha256": digest}
            for name, digest in digests.items()
        },
        "splits": {
            "seed": market.seed,
            "rule": market.snapshot.model_dump(mode="json"),
            "grades": _grades(tables.pairs),
        },
        "queries": _counts(tables.queries, "origin"),
        "products": _counts(tables.products),
        "gold": _gold(tables.pairs) | {"late_pairs": built.judged.late_gold},
        "dropped_pairs": built.judged.dropped,
    } | ({} if tables.task_pairs.is_empty() else {"tasks": described(tables.task_pairs)})


def health_document(built: Built) -> Json:
    """Return ``health.json``; ``traffic`` is of the weeks that are compared, by locale and day."""
    return {
        "verdict": verdict(built.health),
        "checks": [c.as_json() for c in built.health],
        "traffic": built.traffic.to_dicts(),
    }


def facts(about: Json, built: Built) -> Json:
    """Return the facts of the step from what :func:`describe` says, short enough to be read."""
    splits = {
        f"{locale} {split}": sum(n)
        for locale, by_split in about["splits"]["grades"].items()
        for split, n in by_split.items()
    }
    origins = {f"{x} {o}": n for x, of in about["queries"].items() for o, n in of.items()}
    return {
        "stage": about["stage"],
        "until": about["until"],
        "days": list(about["days"]),
        "rows": {name: table["rows"] for name, table in about["tables"].items()},
        "pairs": splits,
        "queries": origins,
        "dropped_pairs": about["dropped_pairs"],
        "gold_digest": about["gold"]["digest"],  # A10
        "late_gold_pairs": about["gold"]["late_pairs"],
        "alpha": {locale: report["alpha"] for locale, report in built.judged.raters.items()},
        "health": verdict(built.health),
        "health_warnings": [
            f"{c.locale} {c.measure}: {c.series}" for c in built.health if c.limit is not None
        ],
    } | ({"tasks": about["tasks"]} if "tasks" in about else {})


def _days(built: Built) -> dict[str, str]:
    """Return day → digest of what was delivered on it and read."""
    content = built.files.select("day", "kind", "locale", "name", "digest")
    return {d: json_digest(content.filter(pl.col("day") == d).rows()) for d in built.days}


def _grades(pairs: pl.DataFrame) -> Json:
    """Return locale → split → pairs of each grade, from irrelevant to exact."""
    counted = (
        pairs.group_by("locale", "split")
        .agg((pl.col("grade") == g).sum().alias(g.name) for g in Grade)
        .sort("locale", "split")
    )
    counts: Json = {}
    for locale, split, *grades in counted.iter_rows():
        counts.setdefault(locale, {})[split] = grades
    return counts


def _counts(table: pl.DataFrame, column: str | None = None) -> Json:
    """Return rows by locale, or by locale and the values of a column."""
    if column is None:
        return dict(table.group_by("locale").len().sort("locale").iter_rows())
    counts: Json = {}
    for locale, value, n in table.group_by("locale", column).len().sort("locale", column).rows():
        counts.setdefault(locale, {})[value] = n
    return counts


def _gold(pairs: pl.DataFrame) -> Json:
    gold = pairs.filter(pl.col("split") == "gold").sort("pair_id")
    digest = json_digest(gold.select("pair_id", "grade").rows())
    return {"pairs": gold.height, "queries": gold["query_id"].n_unique(), "digest": digest}
