"""Is this week's delivery like the last one that was accepted? Measured before it is learnt from.

Each locale's newest window is compared with its newest earlier window that itself passed, so that
a bad week never becomes the yardstick of the next. The outcome is a function of what the store
holds and of the market's file: the same days are judged alike, whenever they are.

=============  ===================================================================================
measure        distance between the two windows
=============  ===================================================================================
columns        share of the optional columns once filled that are wholly empty now
volume         1 - smaller / larger of searches and of events per published day
labels         the same of labels
grades         Jensen-Shannon distance (base 2) of the raters' grades
language       Jensen-Shannon distance of the languages of distinct queries, of titles
nulls          difference of a column's share of empty values
duplicates     difference of the share of rows that were known already
new_queries    share of impressions whose query the accepted window did not have
quarantine     difference of the share of rows in quarantine
machines       difference of the share of events that machines made (ingest/aggregates/shoppers.py)
=============  ===================================================================================

All distances are between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from csrm_tasks.dataset.profiles import EARLIER, Key, Profile
from csrm_tasks.errors import DataError
from csrm_tasks.sections import Health, Limits

NIGHTLY = ("ubi_queries", "ubi_events")
REPEATED = ("labels", *NIGHTLY)  # a catalogue may come whole each night: known rows say nothing
Value = int | float | Mapping[str, float] | None  # rows, a share, shares by value


@dataclass(frozen=True)
class HealthCheck:
    """One comparison. Verdicts: ok, warn, fail, accepted (by hand), and where nothing was compared:
    first (nothing to compare with), few (too few rows), absent (nothing came).
    """

    locale: str
    measure: str
    series: str
    before: Value
    now: Value
    distance: float | None
    verdict: str
    limit: float | None = None  # that was exceeded

    def as_json(self) -> dict[str, Any]:
        """Return the fields, for health.json."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """A comparison before it is judged."""

    measure: str
    series: str
    before: Value
    now: Value
    rows: tuple[float, float]  # behind the two values
    distance: float


def check(
    profiles: Mapping[Key, Profile], locales: tuple[str, ...], rules: Health
) -> list[HealthCheck]:
    """Judge the newest window of each locale."""
    return [c for locale in locales for c in _newest(profiles, locale, rules)]


def verdict(checks: list[HealthCheck]) -> str:
    """Return the worst verdict; ``first`` when nothing could be compared."""
    given = {c.verdict for c in checks}
    return next((v for v in ("fail", "accepted", "warn", "ok") if v in given), "first")


def refuse_failed(checks: list[HealthCheck], market: str, until: str) -> None:
    """Raise :class:`DataError` naming the worst measure, both values and the threshold."""
    failed = sorted((c for c in checks if c.verdict == "fail"), key=lambda c: -(c.distance or 0))
    if not failed:
        return
    c = failed[0]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    raise DataError(
        f"{market}, week to {until}: {c.locale} {c.measure} ({c.series}) was {said(c.before)} and "
        f"is {said(c.now)}; distance {c.distance:.3f}, health.{c.measure}.fail is {c.limit}{more}; "
        f"mend the deliveries, or add '{until}' to health.accept in the market's file"
    )


def said(value: Value) -> str:
    """Write a value for people: rows as a whole number, shares in per cent."""
    if value is None or value == {}:
        return "nothing"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v:.1%}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.1%}"


def _newest(profiles: Mapping[Key, Profile], locale: str, rules: Health) -> list[HealthCheck]:
    """Go from the oldest window to the newest, keeping the last that passed."""
    accepted: Profile | None = None
    for window in range(EARLIER, 0, -1):
        now = profiles.get((locale, window))
        if now and all(c.verdict != "fail" for c in _compare(locale, now, accepted, rules)):
            accepted = now
    newest = profiles.get((locale, 0))
    if newest is None:
        return [HealthCheck(locale, "volume", "all files", None, 0, None, "absent")]
    return _compare(locale, newest, accepted, rules)


def _compare(locale: str, now: Profile, before: Profile | None, rules: Health) -> list[HealthCheck]:
    by_hand = any(day in rules.accept for day in now.days)
    comparisons = _comparisons(now, before or Profile(()))
    return [_judged(locale, f, rules, by_hand) for f in comparisons]


def _judged(locale: str, compared: Comparison, rules: Health, by_hand: bool) -> HealthCheck:
    before, now = compared.rows
    about = (locale, compared.measure, compared.series, compared.before, compared.now)
    if not before:
        return HealthCheck(*about, None, "first")
    # What was there and is gone is compared all the same, by the measures that count rows.
    if before < rules.least or (now < rules.least and compared.measure not in ("volume", "labels")):
        return HealthCheck(*about, None, "few")
    limits: Limits = getattr(rules, compared.measure)
    distance = round(compared.distance, 6)
    if limits.fail is not None and distance > limits.fail:
        return HealthCheck(*about, distance, "accepted" if by_hand else "fail", limits.fail)
    if limits.warn is not None and distance > limits.warn:
        return HealthCheck(*about, distance, "warn", limits.warn)
    return HealthCheck(*about, distance, "ok")


def _comparisons(now: Profile, before: Profile) -> Iterator[Comparison]:
    yield from _columns(now, before)
    yield from _volume(now, before)
    yield from _shapes(now, before)
    for column in sorted({*now.empty, *before.empty}):
        yield _difference("nulls", column, now.empty.get(column), before.empty.get(column))
    yield from _new_queries(now, before)
    if now.machines or before.machines:
        yield _difference("machines", "events", now.machines, before.machines)
    for kind in sorted({*now.files, *before.files}):
        new, old = now.files.get(kind), before.files.get(kind)
        parts = [(f.quarantined, f.rows) if f else None for f in (new, old)]
        yield _difference("quarantine", kind, *parts)
        if kind in REPEATED:
            parts = [(f.known, f.rows) if f else None for f in (new, old)]
            yield _difference("duplicates", kind, *parts)


def _columns(now: Profile, before: Profile) -> Iterator[Comparison]:
    both = sorted({*now.empty} & {*before.empty})
    filled = [c for c in both if before.empty[c][0] < before.empty[c][1]]
    kept = [c for c in filled if now.empty[c][0] < now.empty[c][1]]
    rows = [min((p.empty[c][1] for c in filled), default=0) for p in (before, now)]
    lost = ", ".join(c for c in filled if c not in kept)
    share = len(kept) / len(filled) if filled else 1.0
    value = round(share, 6) if filled else None
    yield Comparison("columns", lost or "filled", 1.0, value, (rows[0], rows[1]), 1 - share)


def _volume(now: Profile, before: Profile) -> Iterator[Comparison]:
    for kind in sorted({*now.files, *before.files} & {*REPEATED}):
        n, m = ((p.files[kind].rows if kind in p.files else 0) for p in (now, before))
        new, old = n / len(now.days), m / max(len(before.days), 1)
        measure = "volume" if kind in NIGHTLY else "labels"
        distance = 1 - min(new, old) / max(new, old) if new or old else 0.0
        yield Comparison(measure, f"{kind} per day", round(old), round(new), (m, n), distance)


def _shapes(now: Profile, before: Profile) -> Iterator[Comparison]:
    from scipy.spatial.distance import jensenshannon

    for series in sorted({*now.shares, *before.shares}):
        new, old = now.shares.get(series, {}), before.shares.get(series, {})
        values = sorted({*new, *old})
        p, q = ([float(counts.get(v, 0)) for v in values] for counts in (old, new))
        rows = (sum(p), sum(q))
        # Rounding may take the divergence of equals a hair below zero; its root is then NaN.
        distance = float(np.nan_to_num(jensenshannon(p, q, base=2))) if all(rows) else 1.0
        measure = "grades" if series == "grades" else "language"
        yield Comparison(measure, series, _shares(old), _shares(new), rows, distance)


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {value: round(n / total, 6) for value, n in counts.items()}


def _difference(
    measure: str, series: str, new: tuple[int, int] | None, old: tuple[int, int] | None
) -> Comparison:
    (a, n), (b, m) = new or (0, 0), old or (0, 0)
    is_now, was = round(a / n, 6) if n else None, round(b / m, 6) if m else None
    distance = abs((is_now or 0.0) - (was or 0.0))
    return Comparison(measure, series, was, is_now, (m, n), distance)


def _new_queries(now: Profile, before: Profile) -> Iterator[Comparison]:
    shown, known = (int(p.shown["impressions"].sum()) for p in (now, before))
    new = int(now.shown.join(before.shown, on="query_id", how="anti")["impressions"].sum())
    share = new / shown if shown else 0.0
    if shown or known:
        value = round(share, 6) if known else None
        yield Comparison("new_queries", "impressions", None, value, (known, shown), share)
