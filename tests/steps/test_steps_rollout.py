"""A rollout through its steps, from sessions and raters' files to the routing document."""

from __future__ import annotations

import csv
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from csrm_tasks import clocks, tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.blobs import LocalBlobs
from csrm_tasks.errors import ConfigError, DataError, RefusedError
from csrm_tasks.release import ledger, manage, verdicts
from csrm_tasks.release.bundle.scorer import ReleaseScorer
from csrm_tasks.release.ledger import moment
from csrm_tasks.release.online import evidence as online_evidence
from csrm_tasks.release.online import stratified
from csrm_tasks.sections import Rollout, Schedule, Step
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.store import open_store, writing
from csrm_tasks.store.tables import DAYS, INTERLEAVED, SESSIONS
from tests.release_fixtures import (
    LOCALE,
    MARKET,
    a_bundle,
    market,
    publish,
    store_of,
    write_snapshot,
)
from tests.release_world import World

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

PLAN = Rollout(
    steps=(
        Step(weight=0, audits=20, audit_margin=0.9),
        Step(weight=50, margin=0.5, audits=20, audit_margin=0.9),
    ),
    planned_sessions=2000, audit_queries=30, error_margin=None, latency_ratio=None,
)  # fmt: skip
CONFIG = market(rollout=PLAN)


class Rolling(World):
    """One rollout under way, its clock turned back so that its days are over."""

    config = CONFIG

    def step(self, name: str, inputs: dict[str, str] | None = None, **params: Any) -> Artifact:
        ref = run_step(name, self.config, inputs or {}, params, self.settings)
        return store_of(self.settings).open(ref)

    def begin(self) -> str:
        """Start the rollout of a release with real towers; returns its id."""
        made = [self.real_release(key) for key in ("one", "two")]
        self.promote(made[0]())
        two = made[1]()
        assert self.step("rollout_start", {"state": self.step("rollout_state").ref}).facts["did"]
        return str(two.id)

    def real_release(self, key: str) -> Any:
        snapshot = publish(self.settings, "snapshot", "s", write_tables)

        refs = {"snapshot": snapshot.ref, "llm": "tiny/select_llm/x", "rqa": "tiny/build_rqa/x"}
        return lambda: self.release(key, write=a_bundle(key), **refs)

    def day(self, after: int) -> str:
        """Publish the day so many days after this step began, and return it."""
        state = self.opened()
        assert state is not None
        began = clocks.day_of(moment(state.windows[-1].since), self.config.schedule.timezone)
        name = (began + timedelta(days=after)).isoformat()
        row = {"market": MARKET, "day": name, "digest": "d", "rows_in": 1, "quarantined": 0,
               "share": 0.0, "stale": 0}  # fmt: skip
        with writing(open_store(self.settings.db_url), MARKET) as connection:
            known = connection.scalar(sa.select(DAYS.c.day).where(DAYS.c.day == name))
            if known is None:
                connection.execute(sa.insert(DAYS), [row])
        return name

    def look(self, day: str) -> tuple[Any, str]:
        """Look and settle; returns the look's facts and the move."""
        look = self.step("rollout_evaluate", day=day)
        return look.facts, self.step("rollout_apply", {"look": look.ref}).facts["move"]


def write_tables(folder: Path) -> None:
    write_snapshot(folder)
    rows = {
        "query_id": [f"q{i // 8}" for i in range(640)],
        "product_id": [f"p{i % 60}" for i in range(640)],
        "locale": [LOCALE] * 640,
        "impressions": [1 + i % 5 for i in range(640)],
        "clicks": [0] * 640, "carts": [0] * 640, "purchases": [0] * 640, "weight": [1.0] * 640,
    }  # fmt: skip
    pl.DataFrame(rows).write_parquet(folder / "behaviour.parquet")


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Rolling:
    world = Rolling(settings)
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    return world


def give_answers(
    world: Rolling, day: str, grade: str = "2", part: slice = slice(None), name: str = "answers.csv"
) -> Path:
    """Answer a part of a day's tasks as raters do: the same file, with grades."""
    folder = world.settings.landing / MARKET / "audits"
    with (folder / f"{day}.tasks.csv").open(encoding="utf-8-sig", newline="") as f:
        tasks = list(csv.DictReader(f))
    judged = {row["item"] for row in tasks[part]}
    path = folder / f"{day}.{name}"
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(tasks[0]))
        writer.writeheader()
        given = {"grade": grade, "rater_id": "ann"}
        writer.writerows(row | (given if row["item"] in judged else {}) for row in tasks)
    return path


def take(world: Rolling, day: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Take answers in; return the files taken, and each row's queries and sum of grades."""
    state = world.step("rollout_state")
    taken = world.step("audit_answers", {"state": state.ref}, day=day).facts["taken"]
    rows = [e.payload for e in ledger.history(world.settings, MARKET) if e.action == "audited"]
    store = store_of(world.settings)
    files = [store.open(p["grades"]).file("answers.parquet") for p in rows]
    grades = [pl.read_parquet(file)["grade"].sum() for file in files]
    return taken, [(int(p["queries"]), g) for p, g in zip(rows, grades, strict=True)]


def audit(world: Rolling, day: str) -> Artifact:
    drawn = world.step("audit_tasks", {"state": world.step("rollout_state").ref}, day=day)
    world.step("audit_send", {"audit": drawn.ref})
    return drawn


def sessions(world: Rolling, day: str, hits: dict[str, int], each: int = 3000) -> None:
    """Store ``each`` sessions of every release, so many of which bought."""
    began = datetime.fromisoformat(world.opened().windows[-1].since) + timedelta(hours=1)  # type: ignore[union-attr]
    rows = [
        {"market": MARKET, "day": day, "locale": LOCALE, "session_id": f"{release}-{day}-{n}",
         "bucket": "", "release": release, "mixed": False, "converted": n < bought,
         "first_at": began.astimezone(UTC), "last_at": began.astimezone(UTC)}
        | dict.fromkeys(("searches", "impressions", "clicks", "carts", "purchases"), 1)
        for release, bought in hits.items()
        for n in range(each)
    ]  # fmt: skip
    with writing(open_store(world.settings.db_url), MARKET) as connection:
        connection.execute(sa.insert(SESSIONS), rows)


def test_from_shadow_to_everybody_by_raters_and_shoppers(world: Rolling) -> None:
    two = world.begin()
    one = world.live()
    day = world.day(1)
    drawn = audit(world, day)
    assert drawn.facts["queries"] == 30
    facts, move = world.look(day)
    assert (facts["outcome"], move) == ("INCONCLUSIVE", "wait")
    assert facts["reasons"][0] == "audits: 0 of 20 audited queries"
    give_answers(world, day)
    for _ in range(2):  # the second time nothing is new
        state = world.step("rollout_state")
        taken = world.step("audit_answers", {"state": state.ref}, day=day)
        assert taken.facts["taken"] == [f"{day}.answers.csv"]
    rows = [e.action for e in manage.history(world.settings, MARKET)]
    assert (rows.count("asked"), rows.count("audited")) == (1, 1)
    assert world.look(world.day(2))[1] == "advance"
    assert world.doc()["weights"]["next"] == 50

    day = world.day(1)
    assert world.look(day)[0]["outcome"] == "ERROR"  # nothing was logged
    sessions(world, day, {two: 640, one: 600})  # type: ignore[dict-item]
    facts, move = world.look(world.day(2))
    assert (facts["outcome"], move) == ("SUCCESS", "advance"), facts
    assert world.live() == two
    world.agrees()


def test_fuller_and_corrected_answers_take_the_place_of_earlier_ones(world: Rolling) -> None:
    world.begin()
    day = world.day(1)
    audit(world, day)
    name = f"{day}.answers.csv"
    half = slice(0, 75)
    give_answers(world, day, part=slice(0, 0))
    assert take(world, day) == ([], [])  # a template
    give_answers(world, day, part=half)
    few = take(world, day)[1]
    assert few == [(few[0][0], 150)] and few[0][0] < 30
    give_answers(world, day, part=slice(75, None))  # the other half, in a file of its own
    assert take(world, day) == ([name], [*few, (30, 300)])
    give_answers(world, day, grade="0", part=half)  # the first half corrected
    assert take(world, day) == ([name], [*few, (30, 300), (30, 150)])
    give_answers(world, day)  # and back
    for _ in range(2):  # the second time nothing is new
        assert take(world, day) == ([name], [*few, (30, 300), (30, 150), (30, 300)])
    opened = world.opened()
    entries = ledger.verified(world.settings, MARKET)
    assert opened is not None
    assert online_evidence.audits(entries, opened, "rater").queries == 30  # type: ignore[union-attr]


def test_one_bad_file_of_answers_holds_up_no_other(world: Rolling) -> None:
    world.begin()
    days = [world.day(1), world.day(2)]
    for day in days:
        audit(world, day)
        give_answers(world, day)
    bad = world.settings.landing / MARKET / "audits" / f"{days[0]}.answers.csv"
    bad.rename(bad.with_suffix(".xlsx")).write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"answers\.xlsx is a workbook"):
        take(world, days[1])
    audited = [e for e in ledger.history(world.settings, MARKET) if e.action == "audited"]
    assert len(audited) == 1
    bad.write_bytes(b"item,grade,rater_id\n")
    with pytest.raises(DataError, match="leave the one that counts"):
        take(world, days[1])


def test_tasks_that_were_sent_are_not_sent_again(world: Rolling) -> None:
    world.begin()
    day = world.day(1)
    drawn = audit(world, day)
    tasks = world.settings.landing / MARKET / "audits" / f"{day}.tasks.csv"
    tasks.write_bytes(tasks.read_bytes() + b"a rater's work")
    world.step("audit_send", {"audit": drawn.ref})
    assert tasks.read_bytes().endswith(b"a rater's work")


def test_a_day_before_the_first_asks_raters_nothing(world: Rolling) -> None:
    """Its queries would be those of the first day, and both would count."""
    world.begin()
    before, first = (audit(world, world.day(n)) for n in (-1, 0))
    assert (before.facts["queries"], before.facts["items"]) == (0, 0)
    assert first.facts["queries"] == 30


def test_raters_who_find_defects_roll_it_back(world: Rolling) -> None:
    two = world.begin()
    one = world.live()
    day = world.day(1)
    drawn = audit(world, day)
    pages = pl.read_parquet(drawn.file("key.parquet"))
    assert pages["query_id"].n_unique() == 30
    payload = {
        "by": "rater", "audit": drawn.ref, "grades": "", "queries": "30", "em_lost": "20",
        "em_won": "0", "defect_new": "20", "defect_gone": "0",
    }  # fmt: skip
    ledger.append(world.settings, MARKET, "audited", two, actor="t", reason="", payload=payload)
    facts, move = world.look(day)
    assert (facts["outcome"], move, world.live()) == ("FAILURE", "abort", one), facts
    world.agrees()


def test_an_llms_estimate_is_shown_and_judges_nothing(world: Rolling) -> None:
    two = world.begin()
    day = world.day(1)
    drawn = audit(world, day)
    pairs = pl.read_parquet(drawn.file("pairs.parquet"))
    shares = {"p0": 0.9, "p1": 0.05, "p2": 0.05}
    scored = pairs.with_columns(**{k: pl.lit(v, pl.Float32) for k, v in shares.items()})
    made = publish(
        world.settings, "score_pairs", "e", lambda f: scored.write_parquet(f / "scored.parquet")
    )
    estimate = world.step("audit_estimate", {"audit": drawn.ref, "scored": made.ref}).facts
    assert (estimate["queries"], estimate["defect_new"]) == (30, 0)  # both all bad alike
    look = world.step("rollout_evaluate", day=day)
    said = json.loads(look.file("verdict.json").read_text())["teacher_estimate"]
    assert "not by people" in said["note"] and said["queries"] == 30
    assert look.facts["reasons"][0] == "audits: 0 of 20 audited queries"
    assert world.opened().release == two  # type: ignore[union-attr]


@pytest.mark.parametrize("zone", ["Asia/Seoul", "America/Los_Angeles", "UTC"])
def test_a_look_judges_up_to_the_end_of_the_markets_day(world: Rolling, zone: str) -> None:
    world.config = CONFIG.model_copy(update={"schedule": Schedule(timezone=zone)})
    world.begin()
    day = world.day(0)
    assert world.step("rollout_state").facts["first_day"] == day
    until = moment(verdicts.read(world.step("rollout_evaluate", day=day))["until"])
    assert until.astimezone(ZoneInfo(zone)).isoformat()[:16] == (
        f"{date.fromisoformat(day) + timedelta(days=1)}T00:00"
    )


def test_a_look_is_the_same_whatever_servers_add_after_its_day(
    world: Rolling, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="csrm")
    world.config = CONFIG.model_copy(update={"schedule": Schedule(timezone="Asia/Seoul")})
    release = world.begin()
    control = world.opened().control  # type: ignore[union-attr]
    day = world.day(1)  # ends at 15:00 UTC
    one = {"requests": 2, "errors": 0, "buckets": {"3": 2}}
    looks = []
    for names in (["14:45/1"], ["14:45/1", "15:00/1"], ["14:30/1", "14:45/1", "15:00/1"]):
        report = {r: {"windows": dict.fromkeys(names, one)} for r in (release, control)}
        path = Path(world.settings.routing) / MARKET / "serving" / f"{day}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report))
        caplog.clear()
        ref = world.step("rollout_evaluate", day=day).ref
        looks.append((ref, "running for" in caplog.text))
    assert [made for _, made in looks] == [True, False, True]
    assert looks[0] == (looks[1][0], True)


def test_a_look_needs_a_rollout_and_a_published_day(world: Rolling) -> None:
    with pytest.raises(RefusedError, match="nothing of tiny is being rolled out"):
        world.step("rollout_evaluate", day="2026-01-01")
    world.begin()
    with pytest.raises(DataError, match="2026-01-01 is not published"):
        world.step("rollout_evaluate", day="2026-01-01")


def test_a_tampered_look_moves_nothing(world: Rolling) -> None:
    world.begin()
    look = world.step("rollout_evaluate", day=world.day(1))
    path = look.file("verdict.json")
    path.write_text(path.read_text().replace("INCONCLUSIVE", "SUCCESS"))
    before = manage.history(world.settings, MARKET)
    with pytest.raises(Exception, match="changed after"):
        world.step("rollout_apply", {"look": look.ref})
    assert manage.history(world.settings, MARKET) == before


def test_a_task_that_rolls_back_twice_goes_back_once(world: Rolling) -> None:
    releases = []
    for key in ("one", "two", "three"):
        releases.append(world.release(key))
        world.promote(releases[-1])
    given = {"reason": "bad", "actor": "ann", "run": "manual__1"}
    first = world.step("roll_back", **given)
    assert world.step("roll_back", **given).facts == first.facts
    assert world.live() == releases[1].id
    with pytest.raises(RefusedError, match=f"ann has left {releases[2].id} already"):
        world.step("roll_back", **{**given, "actor": "ben", "run": "manual__2"})
    assert world.live() == releases[1].id
    world.step("roll_back", **{**given, "run": "manual__2", "leaving": releases[1].id})
    assert world.live() == releases[0].id
    world.agrees()


def test_nothing_waits_is_no_candidate(world: Rolling) -> None:
    state = world.step("rollout_state")
    assert (state.facts["candidate"], state.facts["open"]) == (None, None)
    with pytest.raises(RefusedError, match="no release of tiny waits"):
        world.step("rollout_start", {"state": state.ref})
    with pytest.raises(ConfigError, match="needs input"):
        world.step("rollout_start")


INTERLEAVING = market(
    rollout=Rollout(
        steps=(Step(weight=0, interleave=20, sessions=100), Step(weight=50, margin=0.5)),
        error_margin=None, latency_ratio=None, adjust_conversion=True,
    )
)  # fmt: skip


def credited(world: Rolling, day: str, credits_: dict[str, int], each: int = 600) -> None:
    """Store so many interleaved sessions, with credits by release."""
    began = datetime.fromisoformat(world.opened().windows[0].since) + timedelta(hours=1)  # type: ignore[union-attr]
    rows = [
        {"market": MARKET, "day": day, "locale": LOCALE, "session_id": f"i{n}", "release": release,
         "credits": number, "first_at": began.astimezone(UTC)}
        for n in range(each)
        for release, number in credits_.items()
    ]  # fmt: skip
    with writing(open_store(world.settings.db_url), MARKET) as connection:
        connection.execute(sa.insert(INTERLEAVED), rows)


def test_a_release_that_shoppers_prefer_in_one_list_goes_on_to_its_own_sessions(
    world: Rolling,
) -> None:
    world.config = INTERLEAVING
    two, one = world.begin(), str(world.live())
    document = world.doc()
    assert (document["version"], document["weights"]["interleaved"]) == (3, 20)
    facts, move = world.look(world.day(0))
    assert (facts["outcome"], move) == ("ERROR", "wait")  # nothing was logged
    credited(world, world.day(0), {two: 2, one: 1})
    facts, move = world.look(world.day(1))
    assert (facts["outcome"], move) == ("SUCCESS", "advance"), facts
    document = world.doc()
    assert (document["version"], document["weights"]["next"]) == (2, 50)
    day = world.day(1)
    sessions(world, day, {two: 640, one: 600})
    assert world.look(world.day(2))[1] == "advance"
    assert world.live() == two
    world.agrees()


def test_a_release_that_shoppers_do_not_prefer_is_rolled_back(world: Rolling) -> None:
    world.config = INTERLEAVING
    two, one = world.begin(), str(world.live())
    credited(world, world.day(0), {two: 1, one: 3})
    facts, move = world.look(world.day(1))
    assert (facts["outcome"], move) == ("FAILURE", "abort")
    assert facts["reasons"][0].startswith("preference: -0.5000")
    document = world.doc()
    assert (document["version"], document["next"], world.live()) == (2, None, one)
    world.agrees()


def test_without_steps_what_waits_is_promoted_at_once(world: Rolling) -> None:
    one = world.release("one")  # nothing is live yet: there is nothing to compare with
    state = world.step("rollout_state")
    assert (state.facts["candidate"], state.facts["approved"]) == (one.id, True)
    assert world.step("rollout_start", {"state": state.ref}).facts["did"] == "promoted"
    assert world.live() == one.id


@pytest.fixture
def by_strata(world: Rolling, monkeypatch: pytest.MonkeyPatch) -> Rolling:
    """A rollout whose audits are drawn by strata from all queries, between releases that differ."""
    steps = tuple(step.model_copy(update={"audits": 10}) for step in PLAN.steps)
    plan = {"audit_draw": "strata", "audit_queries": 8, "steps": steps}
    world.config = market(rollout=PLAN.model_copy(update=plan))
    monkeypatch.setattr(stratified, "DAYS", 4)  # of 80 queries: a frame of 20 a day
    monkeypatch.setattr(stratified, "LEAST", 4)
    scored = ReleaseScorer.score

    def score(self: ReleaseScorer, *pairs: Any) -> Any:
        """The second release ranks half of the products the other way round."""
        found = scored(self, *pairs)
        if self.manifest["note"] == "one":
            return found
        shift = np.array([int(p[1:]) % 2 for p in pairs[1]], np.float32)
        return found._replace(rank_score=found.rank_score - shift)

    monkeypatch.setattr(ReleaseScorer, "score", score)
    return world


def test_audits_by_strata_draw_what_may_differ_and_decide_by_weights(by_strata: Rolling) -> None:
    world, two = by_strata, by_strata.begin()
    day = world.day(1)
    drawn = audit(world, day)
    frame = pl.read_parquet(drawn.file("frame.parquet"))
    asked = frame.drop_nulls("chance")
    assert (drawn.facts["draw"], frame.height) == ("strata", 20)
    assert 0 < asked.height == drawn.facts["queries"] <= 8
    assert asked["stratum"].min() > 0 and asked["chance"].is_between(0, 1).all()  # type: ignore[operator]
    pages = pl.read_parquet(drawn.file("key.parquet"))
    assert set(pages["query_id"]) == set(asked["query_id"])
    give_answers(world, day)
    take(world, day)
    assert audit(world, day).ref == drawn.ref  # what was asked is not drawn again
    (row,) = [e for e in ledger.history(world.settings, MARKET) if e.action == "audited"]
    assert row.payload["queries"] == str(asked.height)
    assert float(row.payload["em_total"]) == float(row.payload["defect_squares"]) == 0.0
    assert float(row.payload["defect_one"]) > 0

    day = world.day(2)
    other = audit(world, day)
    assert other.ref != drawn.ref
    give_answers(world, day, grade="1")
    take(world, day)
    look = world.step("rollout_evaluate", day=day)
    sealed = json.loads(look.file("verdict.json").read_text())
    assert sealed["outcome"] == "SUCCESS", sealed["reasons"]
    helped = sealed["helped_estimate"]
    assert "never judged" in helped["note"] and helped["EM@1"]["lo"] <= 0 <= helped["EM@1"]["hi"]
    entries = ledger.verified(world.settings, MARKET)
    known = online_evidence.audits(entries, world.opened(), "rater")  # type: ignore[arg-type]
    assert known is not None and known.em is not None
    assert known.queries == asked.height + other.facts["queries"]
    assert world.opened().release == two  # type: ignore[union-attr]


def test_a_draw_by_strata_stands_still_once_it_was_asked_for_though_the_send_was_killed(
    by_strata: Rolling, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = by_strata
    world.begin()
    days = [world.day(1), world.day(2)]
    audit(world, days[0])
    state = world.step("rollout_state")
    drawn = world.step("audit_tasks", {"state": state.ref}, day=days[1])
    with monkeypatch.context() as m:
        m.setattr(LocalBlobs, "put_if_absent", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            world.step("audit_send", {"audit": drawn.ref})
    give_answers(world, days[0])
    take(world, days[0])  # would draw the second day otherwise
    assert audit(world, days[1]).ref == drawn.ref
    tasks = world.settings.landing / MARKET / "audits" / f"{days[1]}.tasks.csv"
    assert tasks.read_bytes() == drawn.file("tasks.csv").read_bytes()
    later = world.step("audit_tasks", {"state": world.step("rollout_state").ref}, day=world.day(9))
    assert later.facts["queries"] == 0  # every query of the market was asked
