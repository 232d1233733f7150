"""The board on a real Airflow: who gets in where, what a form may do, and what no page shows."""

from __future__ import annotations

import json
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from csrm_tasks.board import forms
from csrm_tasks.board.actions import ACTIONS
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger, manage, rollout_moves
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings, load_settings
from tests.board_fixtures import (
    PREFIX,
    ROLES,
    SECRET,
    Airflow,
    airflow,
    gets,
    routes,
    write_market,
)
from tests.release_fixtures import MARKET, market, publish
from tests.release_world import World

pytestmark = [pytest.mark.airflow, pytest.mark.slow]
PLAN = Rollout(steps=(Step(weight=0), Step(weight=10), Step(weight=50)), max_days=5)
CONFIG = market(rollout=PLAN)
REPORT = "<h1>a report</h1><style>h1 { color: red }</style>"
NOBODY, DECIDERS = ("", "nemo"), ("uli", "olga", "adam")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("board")
    return load_settings({"CSRM_HOME": str(home / "home")})


@pytest.fixture(scope="module")
def ui(installation: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    with airflow(installation, tmp_path_factory.mktemp("airflow"), CONFIG) as found:
        yield found


@pytest.fixture
def world(installation: Settings, ui: Airflow) -> World:
    """One release is live, one in shadow."""
    write_market(ui.markets, CONFIG)
    world = World(installation)
    world.clear()
    world.promote(world.release("one"))
    world.start(world.release("two"), CONFIG)
    return world


def rows(world: World) -> list[ledger.Entry]:
    return manage.history(world.settings, MARKET)


GETS, ROUTES = gets(MARKET), routes(MARKET)


@pytest.mark.parametrize(("name", "status"), [("", 401), ("nemo", 403)])
def test_without_login_or_permission_every_route_says_so_and_nothing_else(
    ui: Airflow, world: World, name: str, status: int
) -> None:
    before, browser = rows(world), ui.browser(name)
    form = {"token": forms.token(SECRET, name, MARKET, time.time()), "reason": "let me in"}
    for method, path in ROUTES:
        found = browser.request(method, path, data=form, headers={"Origin": ui.origin})
        assert found.status_code == status, (method, path, found.status_code)
        assert MARKET not in found.text and "tiny-" not in found.text
    assert rows(world) == before


@pytest.mark.parametrize("credential", ["forged", "bearer", "cookie of nobody"])
def test_a_token_that_is_none_is_no_login(ui: Airflow, world: World, credential: str) -> None:
    signed = ui.browser("adam").cookies["_token"]
    forged = signed[:-6] + ("AAAAAA" if not signed.endswith("AAAAAA") else "BBBBBB")
    with httpx.Client(base_url=f"{ui.url}/csrm") as client:
        if credential == "bearer":  # a header wins over a cookie, as everywhere in Airflow
            client.headers["Authorization"] = f"Bearer {forged}"
            client.cookies.set("_token", signed)
        else:
            client.cookies.set("_token", forged if credential == "forged" else "")
        assert [client.get(path).status_code for path in GETS[:3]] == [401] * 3
    header = {"Authorization": f"Bearer {signed}"}
    assert httpx.get(f"{ui.url}/csrm/", headers=header).status_code == 200


@pytest.mark.parametrize("name", ["vera", *DECIDERS])
def test_who_may_look_finds_the_pages_that_there_are(ui: Airflow, world: World, name: str) -> None:
    browser = ui.browser(name)
    found = {path: browser.get(path).status_code for path in GETS}
    there = {"/", f"/markets/{MARKET}", "/static/board.css"}
    assert {path for path, status in found.items() if status == 200} == there
    assert set(found.values()) <= {200, 404, 405}
    assert browser.get(f"/markets/{MARKET}/hold").status_code == 405  # a link decides nothing
    assert ("<form" in ui.page(name)) == (name != "vera")


def test_a_viewer_decides_nothing_even_with_a_form(ui: Airflow, world: World) -> None:
    before, seen = rows(world), rows(world)[-1]
    token = forms.token(SECRET, "vera", MARKET, time.time())
    for action in ACTIONS:
        form = {"token": token, "seen": seen.hash, "release": seen.release_id, "reason": "I may"}
        assert ui.send("vera", action, form).status_code == 403
    assert rows(world) == before


@pytest.mark.parametrize("name", DECIDERS)
def test_decisions_go_into_the_ledger_by_name(ui: Airflow, world: World, name: str) -> None:
    two = rows(world)[-1].release_id
    for action in ("hold", "resume", "hold", "advance", "roll_back"):
        found = ui.send(name, action, ui.form(name, action, f"{action} it"))
        assert found.status_code == 303, found.text
        page = ui.browser(name).get(found.headers["location"].removeprefix(f"{PREFIX}/csrm"))
        assert f"was {rows(world)[-1].action} by {name}." in page.text
    said = [(e.action, e.release_id, e.actor, e.reason) for e in rows(world)[4:]]
    assert said == [
        ("held", two, name, "hold it"), ("resumed", two, name, "resume it"),
        ("held", two, name, "hold it"), ("advanced", two, name, "advance it"),
        ("aborted", two, name, "roll_back it"),
    ]  # fmt: skip
    assert world.doc()["next"] is None  # what servers follow went with it


def test_a_waiting_release_is_rejected_and_approved(ui: Airflow, world: World) -> None:
    three = world.release("three")
    for name, action in (("uli", "reject"), ("adam", "approve")):
        assert ui.send(name, action, ui.form(name, action)).status_code == 303
    said = [(e.action, e.release_id, e.actor) for e in rows(world)[-2:]]
    assert said == [("rejected", three.id, "uli"), ("approved", three.id, "adam")]


def asked_in_airflow(ui: Airflow, *releases: str) -> dict[str, str]:
    """Park a run of csrm_rollout for each release, as its question does; returns its task ids."""
    engine = sa.create_engine(f"sqlite:///{ui.log.parent / 'airflow' / 'airflow.db'}")
    tables = sa.MetaData()
    names = ("dag_run", "task_instance", "hitl_detail")
    tables.reflect(engine, only=names)
    now, ids = datetime.now(UTC), {release: uuid.uuid4().hex for release in releases}
    with engine.begin() as connection:
        for release, ti in ids.items():
            known = {
                "id": ti, "ti_id": ti, "dag_id": f"csrm_rollout__{MARKET}", "run_id": release,
                "task_id": "ask", "map_index": -1, "run_type": "manual", "run_after": now,
                "options": ["Approve", "Reject"], "subject": "?", "multiple": 0,
                "body": f"`{release}`. The gate let it pass: x", "created_at": now,
            }  # fmt: skip
            for name in names:
                table = tables.tables[name]
                row = {c.name: known[c.name] for c in table.columns if c.name in known}
                row |= {
                    c.name: {} if isinstance(c.type, sa.JSON) else 0
                    for c in table.columns
                    if not c.nullable and c.name not in row and c.server_default is None
                }
                state = {"dag_run": "running", "task_instance": "awaiting_input"}.get(name)
                row |= {"state": state} if state else {}
                row |= {"id": int(ti[:7], 16)} if name == "dag_run" else {}
                connection.execute(sa.insert(table).values(row))
    return ids


def answers_in_airflow(ui: Airflow, ids: dict[str, str]) -> dict[str, Any]:
    """Return release → state of the task that asks, who answered, and what."""
    path = ui.log.parent / "airflow" / "airflow.db"
    statement = (
        "select t.state, h.responded_by, h.chosen_options from hitl_detail h "
        "join task_instance t on t.id = h.ti_id where t.id = ?"
    )
    with closing(sqlite3.connect(path)) as connection:
        found = {r: connection.execute(statement, (ti,)).fetchone() for r, ti in ids.items()}
    return {
        r: (state, json.loads(by)["name"] if by and by != "null" else None, chosen)
        for r, (state, by, chosen) in found.items()
    }


def test_a_question_that_waits_in_airflow_is_answered_by_the_board(
    ui: Airflow, world: World
) -> None:
    """Otherwise the run that asks, and the next behind it, would wait until its time is over."""
    three = world.release("three")
    ids = asked_in_airflow(ui, three.id, "another-release")
    assert answers_in_airflow(ui, ids)[three.id][:2] == ("awaiting_input", None)
    assert ui.send("adam", "approve", ui.form("adam", "approve")).status_code == 303
    found = answers_in_airflow(ui, ids)
    assert found[three.id][:2] == ("scheduled", "adam") and "Approve" in found[three.id][2]
    assert found["another-release"][:2] == ("awaiting_input", None)
    before = rows(world)
    assert before[-1].action == "approved"
    approved = rollout_moves.record_answer(  # as the run does then
        world.settings, CONFIG, world.api, three.id, approved=True, actor="adam", run="r",
        said=datetime.now(UTC).isoformat(),
    )  # fmt: skip
    assert approved and rows(world) == before


def test_only_approvers_approve_where_the_market_names_some(ui: Airflow, world: World) -> None:
    named = CONFIG.rollout.model_copy(update={"approvers": ("olga",)})
    write_market(ui.markets, CONFIG.model_copy(update={"rollout": named}))
    three = world.release("three")
    form = ui.form("olga", "approve")
    assert f"{MARKET}/approve" not in ui.page("adam") and f"{MARKET}/hold" in ui.page("adam")
    stolen = form | {"token": forms.token(SECRET, "adam", MARKET, time.time())}
    assert ui.send("adam", "approve", stolen).status_code == 403
    assert ui.send("olga", "approve", form).status_code == 303
    assert (rows(world)[-1].release_id, rows(world)[-1].actor) == (three.id, "olga")


OTHER = "https://evil.example"


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Origin": "null"}, {"Origin": OTHER}, {"Origin": f"{OTHER}/127.0.0.1"},
        {"Origin": "http://127.0.0.1:1"}, {"Origin": "", "Referer": "SELF"},
        {"Origin": "SELF", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "SELF", "Sec-Fetch-Site": "same-site"},
        {"Origin": f"{OTHER}", "X-Forwarded-Host": "evil.example"},
    ],
)  # fmt: skip
def test_a_form_of_another_site_does_nothing(
    ui: Airflow, world: World, headers: dict[str, str]
) -> None:
    before, form = rows(world), ui.form("uli", "hold")
    sent = {k: ui.origin if v == "SELF" else v for k, v in headers.items()}
    assert ui.send("uli", "hold", form, sent).status_code == 403
    assert rows(world) == before


def test_a_form_of_another_user_market_or_day_does_nothing(ui: Airflow, world: World) -> None:
    before, form, now = rows(world), ui.form("uli", "hold"), time.time()
    tokens = [
        ui.form("adam", "hold")["token"], forms.token(SECRET, "uli", "other", now),
        forms.token(SECRET, "uli", MARKET, now - forms.LIFETIME - 5),
        forms.token("another secret", "uli", MARKET, now), "", "1.2", "٣.x",
        form["token"].replace(form["token"][0], "9", 1),
    ]  # fmt: skip
    for token in tokens:
        assert ui.send("uli", "hold", form | {"token": token}).status_code == 403, token
    no_token = {k: v for k, v in form.items() if k != "token"}
    assert ui.send("uli", "hold", no_token).status_code == 403
    assert rows(world) == before
    assert ui.send("uli", "hold", form).status_code == 303


@pytest.mark.parametrize("action", ["hold", "roll_back", "approve", "reject"])
def test_a_form_that_is_sent_often_at_once_is_one_row(
    ui: Airflow, world: World, action: str
) -> None:
    world.release("three")
    before, form = len(rows(world)), ui.form("uli", action)
    ui.browser("uli")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ui.send("uli", action, form), range(4)))
    assert {f.status_code for f in found} == {303}, [f.text for f in found]
    assert len(rows(world)) == before + 1
    assert {f.headers["location"] for f in found} == {
        f"{PREFIX}/csrm/markets/{MARKET}?row={before + 1}"
    }


def test_a_form_that_is_out_of_date_is_refused_in_a_line(ui: Airflow, world: World) -> None:
    old = {action: ui.form("uli", action) for action in ("hold", "roll_back")}
    world.settle(world.judgement(), CONFIG)  # the morning's run
    after = rows(world)
    for action, form in old.items():
        found = ui.send("uli", action, form)
        assert found.status_code == 409
        assert "the page is out of date" in found.text and "look again" in found.text
    assert rows(world) == after


@pytest.mark.parametrize("reason", ["", "  ", "no", "x" * 501, "\x00\x1b"])
def test_a_decision_needs_a_reason(ui: Airflow, world: World, reason: str) -> None:
    before = rows(world)
    found = ui.send("uli", "hold", ui.form("uli", "hold", reason))
    assert (found.status_code, "say why, in 3 to 500 characters" in found.text) == (409, True)
    assert rows(world) == before
    assert ui.send("uli", "hold", {"reason": "y" * 20_000}).status_code == 413


class Page(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))


HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(2)> {{ 7 * 7 }} ' onfocus=x"""


def test_what_people_and_models_write_is_text(ui: Airflow, world: World) -> None:
    two = rows(world)[-1].release_id
    ledger.append(
        world.settings, MARKET, "audited", two, actor=HOSTILE, reason=HOSTILE,
        payload={"by": HOSTILE},
    )  # fmt: skip
    look = world.judgement() | {"reasons": [HOSTILE]}
    world.settle(look, CONFIG)
    assert ui.send("uli", "hold", ui.form("uli", "hold", HOSTILE)).status_code == 303
    page = Page(ui.page("uli"))
    tags = {tag for tag, _ in page.tags}
    assert tags & {"script", "img", "style", "iframe", "object"} == set()
    names = {name for _, attributes in page.tags for name in attributes}
    assert not any(name.startswith("on") or name == "style" for name in names)
    assert ui.page("uli").count("&lt;script&gt;alert(1)") >= 3 and "{{ 7 * 7 }}" in ui.page("uli")


@pytest.mark.parametrize("name", ["", "nemo", "uli"])
def test_every_answer_has_a_strict_policy(ui: Airflow, world: World, name: str) -> None:
    for path in GETS:
        headers = ui.browser(name).get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "same-origin"


def test_all_links_and_forms_lie_below_the_prefix(ui: Airflow, world: World) -> None:
    for text in (ui.page("uli"), ui.browser("uli").get("/").text):
        tags = Page(text).tags
        found = [a[n] for _, a in tags for n in ("href", "action", "src") if a.get(n)]
        assert found and all(str(u).startswith((f"{PREFIX}/", "#")) for u in found)
    header = {"Authorization": f"Bearer {ui.browser('adam').cookies['_token']}"}
    plugins = httpx.get(f"{ui.url}/api/v2/plugins", headers=header).json()["plugins"]
    [ours] = [p for p in plugins if p["name"] == "csrm_board"]
    assert {view["href"] for view in ours["external_views"]} == {f"{PREFIX}/csrm/"}


def test_in_airflow_s_frame_no_link_leads_out_of_the_board(ui: Airflow, world: World) -> None:
    """One to a run would draw Airflow within Airflow; the frame opens no window either."""
    for dest, out in (("document", True), ("iframe", False)):
        headers = {"Sec-Fetch-Dest": dest}
        text = ui.browser("uli").get(f"/markets/{MARKET}", headers=headers).text
        links = [str(a["href"]) for tag, a in Page(text).tags if tag == "a"]
        assert any(f"{PREFIX}/dags/" in link for link in links) == out
        assert out or all(link.startswith((f"{PREFIX}/csrm/", "#")) for link in links)
        assert ("This frame lets no link out" in text) != out and "csrm_retrain__" in text


def test_mlflows_webhook_needs_a_signature_and_no_login(ui: Airflow) -> None:
    for who in ("", "adam"):
        browser = ui.browser(who)
        found = browser.post(f"{ui.url}/csrm-mlflow/aliases", content=b"{}")
        assert (found.status_code, found.text) == (401, "not signed")


def test_a_report_comes_in_a_sandbox(ui: Airflow, world: World) -> None:
    bundle = publish(world.settings, "bundle", "rep", lambda f: (f / "note").write_text("r"))
    sealed = {"digest": "d", "outcome": "FAIL"}
    gate = publish(world.settings, "gate", "rep", lambda f: (f / "report.html").write_text(REPORT))
    world.register(bundle, sealed, gate.ref)
    release = rows(world)[-1].release_id
    for name, status in (("", 401), ("nemo", 403), ("vera", 200)):
        found = ui.browser(name).get(f"/markets/{MARKET}/reports/{release}")
        assert found.status_code == status and (found.text == REPORT) == (status == 200)
    assert found.headers["content-security-policy"].endswith("sandbox")
    assert ui.browser("vera").get(f"/markets/{MARKET}/reports/tiny-none").status_code == 404


def test_a_damaged_market_file_is_a_line_and_the_rest_stands(ui: Airflow, world: World) -> None:
    (ui.markets / f"{MARKET}.yaml").write_text("market: tiny\nnonsense: [")
    page = ui.page("uli")
    assert "cannot be read as YAML" in page and rows(world)[-1].release_id in page
    assert "<form" not in page and "Traceback" not in page
    form = {"token": forms.token(SECRET, "uli", MARKET, time.time()), "reason": "all the same"}
    found = ui.send("uli", "roll_back", form)
    assert (found.status_code, "Traceback" in found.text) == (500, False)
    assert "cannot be read as YAML" in found.text


def test_no_page_and_no_log_holds_a_secret_or_a_trace(ui: Airflow, world: World) -> None:
    (Path(world.settings.routing) / f"{MARKET}.json").write_text("{")
    store = Path(world.settings.artifacts) / MARKET / "gate"
    for manifest in store.rglob("manifest.json"):
        manifest.write_text("{")
    text = ui.page("uli")
    for manifest in store.rglob("manifest.json"):  # of made-up releases: made again by others
        manifest.unlink()
    assert "manifest.json is not JSON" in text and "Traceback" not in text
    assert SECRET not in text and SECRET not in ui.log.read_text()
    assert "Traceback" not in ui.log.read_text()
    assert not re.search(r"File &#34;|site-packages", text)


def test_there_is_a_role_for_every_browser() -> None:
    assert {*NOBODY, "vera", *DECIDERS} == {"", *ROLES}
    assert isinstance(CONFIG, MarketConfig)
