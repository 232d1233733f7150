"""Drift and data health: planted shifts are caught, no shift passes, a first week says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.dataset.health import HealthCheck, check, refuse_failed, verdict
from csrm_tasks.dataset.profiles import Delivered, Profile, Seen, profiles
from csrm_tasks.errors import DataError
from csrm_tasks.sections import Health, Limits
from csrm_tasks.settings import Settings
from tests.data_fixtures import (
    KO,
    ZH,
    ingest,
    label,
    land_lines,
    land_sessions,
    market,
    product,
    session,
    snapshot,
)

RULES = Health()


def week(**changes: Any) -> Profile:
    """A week like any other, but for ``changes``."""
    usual = Profile(
        days=("2026-01-05", "2026-01-06"),
        files={
            "labels": Delivered(3000, 6, 30), "ubi_queries": Delivered(8000, 0, 80),
            "ubi_events": Delivered(90_000, 90, 900), "catalogue": Delivered(500, 1, 400),
        },
        shares={
            "grades": {"0": 900, "1": 700, "2": 1400},
            "language of queries": {"zh": 900, "latin": 80, "none": 20},
            "language of titles": {"zh": 480, "latin": 20},
        },
        empty={
            "labels.rater_id": (0, 3000), "labels.guideline_version": (0, 3000),
            "catalogue.brand": (100, 500), "ubi_events.position": (900, 80_000),
        },
        shown=pl.DataFrame({"query_id": [f"q{i}" for i in range(1000)], "impressions": 80}),
    )  # fmt: skip
    return replace(usual, **changes)


def shuffled(rng: np.random.Generator) -> Profile:
    """Another draw of the same week."""
    usual = week()
    shares = {
        name: dict(zip(n, map(int, rng.multinomial(sum(n.values()), _p(n))), strict=True))
        for name, n in usual.shares.items()
    }
    empty = {c: (int(rng.binomial(n, k / n)), n) for c, (k, n) in usual.empty.items()}
    files = {
        k: Delivered(int(f.rows * rng.uniform(0.8, 1.2)), int(rng.poisson(f.quarantined)), f.known)
        for k, f in usual.files.items()
    }
    return week(shares=shares, empty=empty, files=files)


def _p(counts: Mapping[str, int]) -> list[float]:
    return [n / sum(counts.values()) for n in counts.values()]


def judged(now: Profile, *earlier: Profile, rules: Health = RULES) -> list[HealthCheck]:
    """Judge ``now`` after ``earlier`` weeks, the newest of them first."""
    return check({(ZH, i): p for i, p in enumerate((now, *earlier))}, (ZH,), rules)


def test_no_shift_passes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        checks = judged(shuffled(rng), shuffled(rng))
        assert {c.verdict for c in checks} == {"ok"}, checks
    refuse_failed(checks, "tiny", "2026-01-11")
    assert verdict(checks) == "ok"


def test_a_first_week_has_nothing_to_be_compared_with() -> None:
    checks = judged(week())
    assert {c.verdict for c in checks} == {"first"}
    assert all(c.distance is None for c in checks)
    assert verdict(checks) == "first"


BROKEN = Delivered(90_000, 40_000, 900)
AGAIN = Delivered(90_000, 90, 80_000)
SHIFTS: dict[str, dict[str, Any]] = {
    "grades": {"shares": week().shares | {"grades": {"0": 2800, "1": 100, "2": 100}}},
    "language": {"shares": week().shares | {"language of queries": {"latin": 990, "zh": 10}}},
    "volume": {"files": week().files | {"ubi_events": Delivered(4000, 0, 40)}},
    "labels": {"files": week().files | {"labels": Delivered(300, 0, 3)}},
    "nulls": {"empty": week().empty | {"labels.rater_id": (2900, 3000)}},
    "columns": {"empty": week().empty
                | {"labels.rater_id": (3000, 3000), "labels.guideline_version": (3000, 3000)}},
    "duplicates": {"files": week().files | {"ubi_events": AGAIN}},
    "quarantine": {"files": week().files | {"ubi_events": BROKEN}},
    "new_queries": {"shown": week().shown.with_columns(query_id="x" + pl.col("query_id"))},
}  # fmt: skip


@pytest.mark.parametrize("measure", SHIFTS)
def test_a_planted_shift_is_caught_by_its_measure(measure: str) -> None:
    shifted = week(**SHIFTS[measure])
    caught = {c.measure for c in judged(shifted, week()) if c.verdict in ("warn", "fail")}
    assert caught == {measure} | ({"nulls"} if measure == "columns" else set())
    strict = RULES.model_copy(update={measure: Limits(warn=0.0, fail=0.1)})
    checks = judged(shifted, week(), rules=strict)
    assert verdict(checks) == "fail"
    with pytest.raises(DataError, match=rf"{ZH} {measure} .*health\.{measure}\.fail is 0\.1") as e:
        refuse_failed([c for c in checks if c.measure == measure], "tiny", "2026-01-11")
    assert "\n" not in str(e.value)
    silent = RULES.model_copy(update={measure: Limits()})
    assert measure not in {
        c.measure for c in judged(shifted, week(), rules=silent) if c.limit is not None
    }


def test_what_stops_coming_is_caught_and_a_silent_locale_is_told() -> None:
    files = {k: f for k, f in week().files.items() if k != "ubi_events"}
    gone = next(c for c in judged(week(files=files), week()) if c.series == "ubi_events per day")
    assert (gone.measure, gone.now, gone.distance, gone.verdict) == ("volume", 0, 1.0, "fail")
    absent = check({(ZH, 1): week()}, (ZH,), RULES)
    assert [c.verdict for c in absent] == ["absent"]


def test_a_few_rows_say_nothing() -> None:
    small = week(shares={"grades": {"0": 20, "2": 1}})
    few = [c for c in judged(week(shares={"grades": {"0": 1, "2": 20}}), small)
           if c.measure == "grades"]  # fmt: skip
    assert [c.verdict for c in few] == ["few"]


def test_a_week_that_failed_is_not_the_next_ones_yardstick() -> None:
    bad = week(**SHIFTS["grades"])
    assert verdict(judged(bad, bad, week())) == "fail"
    assert verdict(judged(week(), bad, week())) == "ok"
    again = judged(week(days=("2026-01-12",), **SHIFTS["grades"]), bad, week())
    assert verdict(again) == "fail"


def test_a_week_accepted_by_hand_passes_and_is_the_next_yardstick() -> None:
    rules = Health(accept=("2026-01-06",))
    bad = week(**SHIFTS["grades"])
    checks = judged(bad, week(days=("2026-01-01",)), rules=rules)
    assert verdict(checks) == "accepted"
    refuse_failed(checks, "tiny", "2026-01-11")
    later = week(days=("2026-01-12",), **SHIFTS["grades"])
    first = week(days=("2026-01-01",))
    assert [c.verdict for c in judged(later, bad, first, rules=rules) if c.measure == "grades"] == [
        "ok"
    ]


def seen(days: Mapping[str, int], rng: np.random.Generator) -> Seen:
    """Random rows on some days, as a snapshot reads them."""
    rated, sold, logged, files = [], [], [], []
    for day, n in days.items():
        for i in range(n):
            at = None if rng.random() < 0.3 else "2026"
            rated.append((ZH, day, "牛奶", int(rng.integers(3)), "r", "", at))
            sold.append((ZH, day, "三星 手機", "三星" if rng.random() < 0.5 else "", "c", ""))
            logged.append((ZH, day, f"q{i % 5}", f"tv {i % 5}", 4, 3))
        files.append((ZH, day, "labels", n + 2, 0, 0, 2))
    about = ["locale", "day"]
    return Seen(
        pl.DataFrame(files, [*about, "kind", "rows_in", "quarantined", "known", "ignored"],
                     orient="row"),
        pl.DataFrame(rated, [*about, "query", "grade", "rater_id", "guideline_version", "rated_at"],
                     orient="row"),
        pl.DataFrame(sold, [*about, "title", "brand", "category", "description"], orient="row"),
        pl.DataFrame(logged, [*about, "query_id", "query", "impressions", "positions"],
                     orient="row"),
        pl.DataFrame([(ZH, day, 100 * n, n) for day, n in days.items()],
                     [*about, "events", "machine_events"], orient="row"),
    )  # fmt: skip


def test_profiles_count_what_the_slow_way_counts() -> None:
    days = {"2026-01-11": 7, "2026-01-05": 4, "2026-01-04": 9, "2025-11-01": 5}
    rows = seen(days, np.random.default_rng(0))
    found = profiles(rows, list(days), "2026-01-11")
    assert set(found) == {(ZH, 0), (ZH, 1)}  # the oldest is of no week that matters
    now = found[ZH, 0]
    assert now.days == ("2026-01-05", "2026-01-11")
    assert now.files == {"labels": Delivered(11, 0, 0)}
    assert now.machines == (11, 1100)
    mine = [r for r in rows.ratings.rows(named=True) if r["day"] in now.days]
    grades = [r["grade"] for r in mine]
    assert now.shares["grades"] == {str(g): grades.count(g) for g in sorted(set(grades))}
    assert now.shares["language of queries"] == {"latin": 5, "zh": 1}  # distinct texts
    assert now.shares["language of titles"] == {"zh": 11}
    assert now.empty["labels.guideline_version"] == (11, 11)
    assert now.empty["labels.rated_at"] == (sum(r["rated_at"] is None for r in mine), 11)
    assert now.empty["ubi_events.position"] == (11, 44)
    assert sum(now.shown["impressions"]) == 44


DAYS = ("2026-01-04", "2026-01-11", "2026-01-18")


def land_week(settings: Settings, day: str, grade: int | None, queries: str = "商品") -> None:
    if day == DAYS[0]:
        for locale in (KO, ZH):
            land_lines(settings, day, f"{locale}/catalogue.jsonl", [product(1, "商品", "三星")])
    land_lines(settings, day, f"{ZH}/labels.jsonl", [
        label(f"{day}{i}", f"{queries}{i}", "p1", i % 3 if grade is None else grade)
        for i in range(30)
    ])  # fmt: skip
    land_sessions(settings, day, ZH, [
        session(f"{day}{i}", f"{queries}{i % 9}", ["p1"], day, click="p1") for i in range(30)
    ])  # fmt: skip


def test_a_snapshot_of_a_sick_week_is_refused_and_says_why(settings: Settings) -> None:
    config = market(health=Health(least=20))
    for day, grade in zip(DAYS[:2], (None, 0), strict=True):
        land_week(settings, day, grade)
        ingest(settings, day)
    first = snapshot(settings, 2, DAYS[0], config)
    assert first.facts["health"] == "first"
    with pytest.raises(DataError) as e:
        snapshot(settings, 2, DAYS[1], config)
    assert str(e.value) == (
        "tiny, week to 2026-01-11: zh-TW grades (grades) was 0 33.3%, 1 33.3%, 2 33.3% and is "
        "0 100.0%; distance 0.678, health.grades.fail is 0.3; mend the deliveries, or add "
        "'2026-01-11' to health.accept in the market's file"
    )
    snapshot(settings, 1, DAYS[1], config)  # reads no label of the target: nothing to object to
    looked_at = market(health=Health(least=20, accept=(DAYS[1],)))
    made = snapshot(settings, 2, DAYS[1], looked_at)
    assert made.facts["health"] == "accepted"
    assert made.facts["health_warnings"] == ["zh-TW grades: grades"]
    land_week(settings, DAYS[2], None)
    ingest(settings, DAYS[2])
    after = snapshot(settings, 2, DAYS[2], config)  # compared with the week before the sick one
    found = json.loads(after.file("health.json").read_text())
    assert found["verdict"] == "ok"
    grades = [c for c in found["checks"] if c["measure"] == "grades"]
    assert [(c["before"], c["distance"]) for c in grades] == [
        ({"0": 0.333333, "1": 0.333333, "2": 0.333333}, 0.0)
    ]
    absent = [c["locale"] for c in found["checks"] if c["verdict"] == "absent"]
    assert absent == [KO]
