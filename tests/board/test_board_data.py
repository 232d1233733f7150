"""What the board shows is what a slow reading of store, ledger and artifacts finds."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from csrm_tasks import tracking
from csrm_tasks.board import actions, chart, cost, forms, nights, page, releases, trend
from csrm_tasks.board import board as room
from csrm_tasks.board.notices import Notice
from csrm_tasks.errors import RefusedError
from csrm_tasks.release import ledger, manage, rollout, rollout_moves, verdicts
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, writing
from csrm_tasks.store.tables import DAYS, FILES, QUARANTINE
from tests.release_fixtures import MARKET, market, publish, store_of
from tests.release_world import Registry, World

ZONE = "Asia/Taipei"
NOW = datetime(2026, 3, 2, 20, tzinfo=UTC)  # 2026-03-03 04:00 in Taipei, so yesterday is 03-02
CONFIG = market(rollout=Rollout(steps=(Step(weight=0), Step(weight=10))))


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(settings)
    world.at_the_command_line(CONFIG, monkeypatch)
    monkeypatch.setattr(tracking, "LaterClient", lambda _: world.api)
    return world


def seen(world: World, now: datetime | None = None, mlflow: str = "") -> room.Board:
    settings = world.settings
    found = Settings(**(vars(settings) | {"markets": settings.home / "markets"}))
    return room.board(found, MARKET, now or datetime.now(UTC), mlflow)


def deliver(
    settings: Settings, day: date, number: int, rows: int, reasons: list[str], *, live: bool = True
) -> None:
    """Write down one file of a day and its quarantined rows."""
    name = f"labels-{number}.csv"
    with writing(open_store(settings.db_url), MARKET) as connection:
        made = connection.execute(sa.insert(FILES).values(
            market=MARKET, day=str(day), locale="ko-KR", kind="labels", name=name, live=live,
            digest=f"{number:064}", rows_in=rows, stored=rows - len(reasons), known=0,
            quarantined=len(reasons),
        ))  # fmt: skip
        [key] = made.inserted_primary_key or [0]
        for row, reason in enumerate(reasons, start=1):
            connection.execute(sa.insert(QUARANTINE).values(
                file_id=key, row=row, reason=reason, detail="grade", raw=b"x"
            ))  # fmt: skip


def publish_days(settings: Settings, days: dict[date, tuple[str, int]]) -> None:
    with writing(open_store(settings.db_url), MARKET) as connection:
        for day, (digest, stale) in days.items():
            connection.execute(sa.insert(DAYS).values(
                market=MARKET, day=str(day), digest=digest, rows_in=1, quarantined=0, share=0.0,
                stale=stale,
            ))  # fmt: skip


def test_the_nights_are_the_files_of_their_days(settings: Settings) -> None:
    yesterday, wanted, reasons = date(2026, 3, 2), {}, Counter[str]()
    states = {}
    for n in range(20):  # six of them are too old
        day = yesterday - timedelta(days=n)
        if n == 3:
            continue  # nothing came
        aside = ["bad_grade"] * (n % 3) + ["no_product"] * (n % 2)
        deliver(settings, day, 2 * n, 10 + n, aside)
        deliver(settings, day, 2 * n + 1, 5, [])
        deliver(settings, day, 100 + n, 1000, ["replaced"], live=False)
        states[day] = ("" if n == 4 else "digest", int(n == 5))
        state = {4: "not published", 5: "changed since"}.get(n, "published")
        if n < nights.NIGHTS:
            wanted[str(day)] = (2, 15 + n, len(aside), state)
            reasons.update(aside)
    states.pop(yesterday)  # stored, and not yet published
    wanted[str(yesterday)] = (2, 15, 0, "not published")
    wanted["2026-02-27"] = (0, 0, 0, "nothing delivered")
    publish_days(settings, states)
    found = nights.nights(settings, MARKET, ZONE, NOW)
    listed = {n.day: (n.files, n.rows_in, n.quarantined, n.state) for n in found.nights}
    assert listed == wanted and list(listed) == sorted(wanted, reverse=True)
    assert dict(found.reasons) == dict(reasons)
    assert list(found.reasons.values()) == sorted(reasons.values(), reverse=True)
    assert (found.newest, found.age) == ("2026-03-01", 1)
    assert nights.nights(settings, "other", ZONE, NOW).newest is None


def test_a_market_that_stands_still_shows_its_last_nights_and_its_age(settings: Settings) -> None:
    deliver(settings, date(2026, 1, 5), 1, 7, [])
    publish_days(settings, {date(2026, 1, 5): ("digest", 0)})
    found = nights.nights(settings, MARKET, ZONE, NOW)
    assert (found.nights[0].day, found.nights[0].rows_in, found.age) == ("2026-01-05", 7, 56)


def test_task_hours_are_what_the_manifests_say(settings: Settings) -> None:
    hours: Counter[str] = Counter()
    start = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
    for n in range(12):
        step, at = ("train_llm", "snapshot")[n % 2], start + timedelta(days=3 * n, hours=n)
        made = publish(settings, step, f"k{n}", lambda f: (f / "note").write_text("x"))
        path = Path(settings.artifacts) / made.ref / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["created_at"] = at.timestamp()
        manifest["spent"] = {"wall_seconds": 360.0 * (n + 1), "cpu_seconds": 36.0}
        path.write_text(json.dumps(manifest))
        year, week, _ = (at + timedelta(hours=8)).isocalendar()  # Taipei
        hours[f"{year}-W{week:02}"] += n + 1
    found = cost.weeks(settings, MARKET, ZONE, NOW)
    assert {w.name: round(10 * w.hours) for w in found} == dict(hours)
    assert [w.name for w in found] == sorted(hours, reverse=True)
    assert sum(w.steps for w in found) == 12
    assert all(w.dearest_hours <= w.hours + 1e-9 for w in found)
    assert cost.weeks(settings, MARKET, ZONE, NOW + timedelta(weeks=40)) == ()


def evaluation(world: World, key: str, micro: float, em: float | None) -> dict[str, str]:
    """Publish an LLM, towers and their evaluation beside those of others; return the references."""
    settings = world.settings

    def note(folder: Path) -> None:
        (folder / "note").write_text(key)

    trained = publish(settings, "train_llm", key, note)
    llm = publish(settings, "select_llm", key, note, {"chosen_ref": trained.ref})
    export = publish(settings, "export_towers", key, note)

    def figure(value: float | None) -> dict[str, float | None]:
        lo, hi = (None, None) if value is None else (value - 0.02, value + 0.03)
        return {"value": value, "lo": lo, "hi": hi}

    models = [
        {"name": "tfidf", "kind": "baseline", "source": "b", "figures": {"micro_f1": figure(0.1)}},
        {"name": "live", "kind": "llm", "source": "old", "figures": {"micro_f1": figure(0.2)}},
        {"name": "new", "kind": "llm", "source": trained.ref,
         "figures": {"micro_f1": figure(micro), "em_f1": figure(0.3)}},
        {"name": "towers", "kind": "towers", "source": export.ref,
         "figures": {"em_f1": figure(em), "defect_f1": figure(0.6)}},
    ]  # fmt: skip
    judged = publish(
        settings, "evaluate", key,
        lambda f: (f / "metrics.json").write_text(json.dumps({"models": models})),
    )  # fmt: skip
    return {"llm": llm.ref, "export": export.ref, "evaluation": judged.ref}


def register(world: World, key: str, micro: float, em: float | None) -> str:
    refs = evaluation(world, key, micro, em)
    made = world.release(key, registered=False, llm=refs["llm"], export=refs["export"])
    payload = {
        "bundle": made.bundle.ref, "digest": made.bundle.digest, "outcome": "PASS",
        "verdict": made.verdict["digest"], "gate": made.gate.ref, "evaluation": refs["evaluation"],
    }  # fmt: skip
    ledger.append(
        world.settings, MARKET, "registered", made.id, actor="t", reason="", payload=payload
    )
    return str(made.id)


def test_the_trend_is_of_a_release_s_own_models(world: World) -> None:
    one, two = register(world, "one", 0.7, 0.5), register(world, "two", 0.8, None)
    world.release("cold")  # a cold start was not judged on gold
    entries, store = ledger.verified(world.settings, MARKET), store_of(world.settings)
    found = trend.trend(store, entries, datetime.now(UTC))
    values = {j.release: {k: e.value for k, e in j.figures.items()} for j in found}
    assert values == {
        one: {"micro_f1": 0.7, "em_f1": 0.5, "defect_f1": 0.6},
        two: {"micro_f1": 0.8, "defect_f1": 0.6},
    }
    assert trend.trend(store, entries, datetime.now(UTC) + timedelta(weeks=13)) == ()
    drawn = chart.chart("EM F1", "em_f1", found)
    assert drawn is not None and [one in p.text for p in drawn.points] == [True]
    assert chart.chart("none", "kappa", found) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1,
                max_size=9))  # fmt: skip
def test_a_chart_keeps_order_and_stays_within_its_frame(
    values: list[tuple[float, float, float]],
) -> None:
    rows = [
        trend.Judged(f"r{n}", NOW + timedelta(days=n), "PASS", {
            "micro_f1": trend.Estimate(value, value - below, value + above)
        }) for n, (value, below, above) in enumerate(values)
    ]  # fmt: skip
    drawn = chart.chart("t", "micro_f1", rows)
    assert drawn is not None
    for point, (value, _, _) in zip(drawn.points, values, strict=True):
        assert 0 <= point.hi <= point.y <= point.lo <= chart.HEIGHT
        assert 0 <= point.x <= chart.WIDTH
        assert all(
            (p.y < point.y) <= (other > value)
            for p, (other, _, _) in zip(drawn.points, values, strict=True)
        )


def test_releases_rollout_and_gate_are_those_of_the_ledger(world: World) -> None:
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    found = seen(world)
    assert isinstance(found.releases, releases.Releases)
    assert found.releases.live and found.releases.live.id == one.id
    assert found.releases.next and found.releases.next.id == two.id and found.rollout is None
    world.start(two, CONFIG)
    three = world.release("three", "FAIL")
    checks = [
        {"name": "conversion", "outcome": "SUCCESS", "text": "fine",
         "found": {"value": 0.01, "lo": -0.02, "hi": 0.04}},
        {"name": "audits", "outcome": "INCONCLUSIVE", "text": "few", "found": None},
    ]  # fmt: skip
    sealed = verdicts.seal({"checks": checks})
    look = publish(
        world.settings, "rollout_evaluate", "look",
        lambda f: (f / verdicts.FILE).write_text(json.dumps(sealed)),
        {"digest": sealed["digest"]},
    )  # fmt: skip
    judged = world.judgement("INCONCLUSIVE", 1)
    rollout_moves.apply_decision(world.settings, CONFIG, world.api, judged, look.ref)
    found = seen(world)
    assert isinstance(found.releases, releases.Releases)
    assert found.releases.next and found.releases.next.id == two.id
    assert found.releases.waiting == () and found.releases.previous is None
    assert isinstance(found.rollout, releases.RolloutNow)
    assert [(k.day, k.outcome) for k in found.rollout.looks] == [(judged["day"], "INCONCLUSIVE")]
    assert not isinstance(found.rollout.checks, Notice)
    assert [(c.name, c.found) for c in found.rollout.checks] == [
        ("conversion", (0.01, -0.02, 0.04)), ("audits", None)
    ]  # fmt: skip
    assert isinstance(found.verdict, releases.Verdict)
    assert (found.verdict.release, found.verdict.outcome) == (three.id, "FAIL")
    assert {o.action for o in found.offers} == {"hold", "roll_back"}
    (Path(world.settings.artifacts) / look.ref / "manifest.json").unlink()  # pruned
    found = seen(world)
    assert isinstance(found.rollout, releases.RolloutNow) and len(found.rollout.looks) == 1
    assert isinstance(found.rollout.checks, Notice) and "does not exist" in drawn(found)


def drawn(board: room.Board) -> str:
    around = page.Around("/csrm", "", "ann", [MARKET])
    return page.market_page(board, around, page.Decisions("t", frozenset()), ())


@pytest.mark.parametrize("broken", ["gate", "ledger", "store", "artifacts", "mlflow"])
def test_what_cannot_be_read_is_a_line_and_the_rest_stands(world: World, broken: str) -> None:
    made = world.release("one")
    world.promote(world.release("zero")) if broken == "ledger" else None
    home, parts, mlflow = Path(world.settings.artifacts), set(), ""
    if broken == "gate":
        [file] = (home / made.gate.ref).rglob(verdicts.FILE)
        file.write_text("{}")
        parts = {"verdict"}
    elif broken == "ledger":
        with writing(open_store(world.settings.db_url), MARKET) as connection:
            connection.execute(sa.text("UPDATE ledger SET reason = 'edited' WHERE seq = 1"))
        parts = {"releases", "rollout", "verdict", "history", "trend"}
    elif broken == "store":
        world.settings = Settings(**(vars(world.settings) | {
            "db_url": "postgresql+psycopg2://me:hunter2@127.0.0.1:1/csrm"}))  # fmt: skip
        parts = {"releases", "rollout", "verdict", "history", "trend", "nights"}
    elif broken == "artifacts":
        world.settings = Settings(**(vars(world.settings) | {"artifacts": "gs://away"}))
        parts = {"releases", "rollout", "verdict", "trend", "weeks"}
    else:
        mlflow = "http://127.0.0.1:1"
    found = seen(world, mlflow=mlflow)
    noticed = {k for k, v in vars(found).items() if isinstance(v, Notice)}
    assert noticed == parts | {"registry"}
    text = drawn(found)
    assert "hunter2" not in text and "Traceback" not in text
    assert all("\n" not in vars(found)[k].text for k in noticed)


@pytest.fixture
def mlflow() -> Iterator[tuple[str, dict[str, Any]]]:
    """An MLflow server that answers what it is told to."""
    answers: dict[str, Any] = {}

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.split("?")[0].rsplit("/", 2)
            body = json.dumps(answers["/".join(name[1:])]).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_releases_lead_to_their_versions_in_mlflow(
    world: World, mlflow: tuple[str, dict[str, Any]]
) -> None:
    url, answers = mlflow
    made = world.release("one")
    world.promote(made)
    answers["registered-models/get"] = {
        "registered_model": {"aliases": [{"alias": "champion", "version": "3"}]}
    }
    answers["model-versions/search"] = {"model_versions": [
        {"version": "3", "tags": [{"key": "csrm.release", "value": made.id}]},
        {"version": "2", "tags": []},
    ]}  # fmt: skip
    found = seen(world, mlflow=url)
    assert not isinstance(found.registry, Notice)
    assert dict(found.registry.aliases) == {"champion": made.id}
    assert f'href="{url}/#/models/csrm-tiny/versions/3"' in drawn(found)


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_a_token_is_of_one_user_and_market(a: str, b: str, c: str, d: str) -> None:
    made = forms.token("secret", a, b, 1000.0)
    assert forms.accepts("secret", a, b, 1000.0 + forms.LIFETIME, made)
    assert not forms.accepts("secret", a, b, 1001.0 + forms.LIFETIME, made)
    assert not forms.accepts("other", a, b, 1000.0, made)
    assert forms.accepts("secret", c, d, 1000.0, made) == ((a, b) == (c, d))
    assert not forms.accepts("secret", a, b, 1000.0, c)


def test_an_older_release_waits_first_where_the_newest_is_rejected(world: World) -> None:
    world.promote(world.release("one"))
    two, three = world.release("two"), world.release("three")
    manage.reject(world.settings, MARKET, three.id, "ann", "no")
    manage.approve(world.settings, MARKET, two.id, "ann", "yes")
    entries = ledger.verified(world.settings, MARKET)
    assert [row.release_id for row in releases.waiting(entries)] == [two.id, three.id]
    decisions = [(o.action, o.release) for o in actions.offers(entries)]
    assert decisions == [("reject", two.id), ("approve", three.id)]
    for action, release in decisions:  # what is offered is possible
        head = ledger.verified(world.settings, MARKET)[-1].hash
        asked = actions.Asked(cast(actions.Action, action), release, "as offered", head)
        act(world, asked)


def act(world: World, asked: actions.Asked, actor: str = "ann") -> ledger.Entry:
    found = Settings(**(vars(world.settings) | {"markets": world.settings.home / "markets"}))
    return actions.act(found, MARKET, asked, actor)


@example(["look", "hold", "advance", "reject"])  # the last step: a promotion follows the row
@given(st.lists(st.sampled_from(["look", "failure", *actions.ACTIONS]), max_size=7))
@hypothesis_settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_whatever_is_offered_is_done_once_and_nothing_else_is(
    world: World, said: list[str]
) -> None:
    """Any sequence of runs and decisions: an offer is one row, twice sent too, and the views agree;
    what is not offered is refused and writes nothing."""
    world.api = Registry()
    world.clear()
    world.promote(world.release("one"))
    world.start(world.release("two"), CONFIG)
    world.release("three")
    world.refresh()  # as the step that registers does
    for number, word in enumerate(said):
        before = ledger.verified(world.settings, MARKET)
        state = rollout.current_rollout(before)
        if word in ("look", "failure"):
            if state is not None and not state.launched:
                world.settle(world.judgement("SUCCESS" if word == "look" else "FAILURE"), CONFIG)
            continue
        action = cast(actions.Action, word)
        offered = [o.release for o in actions.offers(before) if o.action == action]
        release = offered[0] if offered else before[-1].release_id
        asked = actions.Asked(action, release, f"turn {number}", before[-1].hash)
        if not offered:
            with pytest.raises(RefusedError, match="not possible now"):
                act(world, asked)
            assert ledger.verified(world.settings, MARKET) == before
            continue
        row = act(world, asked)
        after = ledger.verified(world.settings, MARKET)
        assert act(world, asked) == row and ledger.verified(world.settings, MARKET) == after
        assert row.actor == "ann" and row.reason == f"turn {number}"
        mine = [e for e in after[len(before) :] if e.actor == "ann"]
        assert mine == [row]
        world.agrees()
