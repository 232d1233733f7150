"""The report's part on what was learnt from: the week's data health, and how far raters agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from csrm_tasks.dataset.health import said
from csrm_tasks.evaluation.report import parts

Json = Mapping[str, Any]
TONE = {
    "ok": ("good", "✓"), "warn": ("open", "!"), "accepted": ("open", "!"), "fail": ("bad", "✗"),
}  # fmt: skip
UNCOMPARED = {
    "first": "nothing earlier to compare with",
    "few": "too few rows to compare",
    "absent": "nothing delivered in this week",
}
TRAFFIC = (
    ("events", "events"), ("machines", "machines"), ("machine_events", "their events"),
    ("machine_searches", "their searches"), ("over_bound", "beyond the bound"),
)  # fmt: skip
MAX_DAYS = 14  # days by locale, the newest; all are in the snapshot's health.json
MAX_RATERS = 12  # shown, least accurate first; all are in the snapshot's raters.json


def data_part(data: Json) -> str:
    """Return the sections on ``health`` and ``raters``, each as its file in a snapshot says."""
    health = data["health"]
    return _health(health["checks"]) + _traffic(health["traffic"]) + _raters(data["raters"])


def _health(checks: Sequence[Json]) -> str:
    compared = [c for c in checks if c["distance"] is not None]
    worst: dict[tuple[str, str], Json] = {}
    for c in sorted(compared, key=_badness, reverse=True):
        worst.setdefault((c["locale"], c["measure"]), c)
    rows = [
        [
            f"{escape(c['locale'])} {escape(c['measure'].replace('_', ' '))}",
            f'<span class="text">{escape(c["series"])}</span>',
            escape(said(c["before"])),
            escape(said(c["now"])),
            f"{c['distance']:.3f}<small>{_limit(c)}</small>",
            _chip(c["verdict"]),
        ]
        for c in compared
        if worst[c["locale"], c["measure"]] is c
    ]
    head = ["measure", "furthest off", "before", "now", "distance", "verdict"]
    caption = "The newest week against the last accepted one; of each measure what is furthest off"
    table = parts.table(caption, head, rows) if rows else ""
    return f"<h2>Data health</h2>{_uncompared(checks)}{table}"


def _traffic(days: Sequence[Json]) -> str:
    """Events that do not count, of each of the newest days; nothing where all do."""
    shown = [d for d in days if d["machines"] or d["over_bound"]]
    rows = [
        [escape(f"{d['locale']} {d['day']}"), *(f"{d[c]:,}" for c, _ in TRAFFIC)]
        for d in sorted(shown, key=lambda d: (d["day"], d["locale"]))[-MAX_DAYS:]
    ]
    caption = (
        "Set apart: what machines did (too fast, too broad, a click on everything), and what one "
        "shopper did with one pair beyond the market’s bound; stored, but no evidence"
    )
    return parts.table(caption, ["day", *(head for _, head in TRAFFIC)], rows) if rows else ""


def _badness(check: Json) -> tuple[bool, float]:
    return (check["limit"] is not None, check["distance"])


def _limit(check: Json) -> str:
    return "" if check["limit"] is None else f"limit {check['limit']}"


def _chip(verdict: str) -> str:
    tone, sign = TONE[verdict]
    return f'<span class="chip {tone}"><span aria-hidden="true">{sign}</span> {verdict}</span>'


def _uncompared(checks: Sequence[Json]) -> str:
    """Say in words what was not compared, by locale and reason."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for c in checks:
        if c["distance"] is None:
            series = reasons.setdefault((c["locale"], c["verdict"]), {})
            series[f"{c['measure'].replace('_', ' ')} ({c['series']})"] = None
    lines = [
        f"<li>{escape(locale)}, {UNCOMPARED[why]}: {escape(', '.join(series))}</li>"
        for (locale, why), series in reasons.items()
    ]
    return f'<ul class="note">{"".join(lines)}</ul>' if lines else ""


def _raters(raters: Json) -> str:
    agreement = [
        [
            escape(locale),
            parts.number(report["alpha"]),
            f"{report['pairs']:,}",
            f"{report['ratings']:,}",
            f"{report['ties']:,}",
        ]
        for locale, report in raters.items()
    ]
    caption = (
        "Krippendorff’s α (ordinal) over pairs with two or more raters; – where undefined. Ties: "
        "pairs with two grades as well supported, which take the one nearest the mean, then lower"
    )
    made = parts.table(caption, ["locale", "α", "pairs", "ratings", "ties"], agreement)
    for locale, report in raters.items():
        if report["raters"]:
            made += _confusions(locale, report["raters"])
    return f"<h2>Raters</h2>{made}"


def _confusions(locale: str, raters: Sequence[Json]) -> str:
    shown = sorted(raters, key=lambda r: (r["accuracy"], r["rater"]))[:MAX_RATERS]
    rows = [
        [
            escape(r["rater"]),
            f"{r['ratings']:,}",
            f"{r['accuracy']:.1%}",
            *(" · ".join(f"{n:,}" for n in row) for row in r["confusion"]),
        ]
        for r in shown
    ]
    caption = (
        f"{locale}: {len(shown)} of {len(raters)} raters against the consensus of three or more, "
        "least often right first; said 0 · 1 · 2 where the consensus is …"
    )
    return parts.table(caption, ["rater", "ratings", "right", *parts.LABELS], rows)
