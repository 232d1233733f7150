"""The steps of :mod:`tests.browser_walk`: each does one thing, and says in a line what it saw.

An assertion that fails, or a page that does not show in time what is looked for, ends the walk.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from csrm_tasks.board.actions import ACTIONS
from tests.board_fixtures import gets
from tests.browser_people import Walk
from tests.flow_fixtures import MARKET

TITLES = (
    "Week",
    "Rounds",
    "Base model",
    "Train again",
    "Reuse",
    "Reason",
    "Dry run",
    "May release",
)
PARTS = ("Data", "Retrieval", "LLM", "Rounds", "Towers", "Judgement", "Release")
RETRAIN, ROLLOUT, INGEST = (
    f"{dag}__{MARKET}" for dag in ("csrm_retrain", "csrm_rollout", "csrm_ingest")
)
BOARD = "/plugin/release-board"  # Airflow's own page around it


def nobody_gets_in(walk: Walk) -> str:
    """Without a login every address of the board says 401."""
    nobody = walk.person("")
    tried = walk.tried(nobody)
    assert set(tried.values()) == {401}, tried
    nobody.go("/csrm/")
    heading = nobody.page.get_by_role("heading").inner_text()
    assert heading == "Not logged in", heading
    assert MARKET not in nobody.page.content()
    nobody.go(BOARD)
    nobody.page.wait_for_url("**/auth/login**")
    return f"{len(tried)} routes answer 401, the page says {heading!r}, Airflow's asks for a login"


def one_without_a_role_gets_in_nowhere(walk: Walk) -> str:
    """With a login that may nothing every address says 403."""
    nemo = walk.enter("nemo")
    tried = walk.tried(nemo)
    assert set(tried.values()) == {403}, tried
    return f"{len(tried)} routes answer 403"


def an_approver_logs_in(walk: Walk) -> str:
    """The board's own page leads to Airflow's login, and that back to the board."""
    olga = walk.person("olga")
    olga.go("/csrm/").get_by_role("link", name="Log in").click()
    olga.log_in(walk.found.password("olga"))
    olga.page.get_by_role("heading", name="Release board").wait_for()
    row = olga.page.get_by_role("row").filter(has_text=MARKET).inner_text()
    assert "Approve" in row, row  # the cold start's release
    return f"back at the board; its row: {' | '.join(row.split())}"


def the_first_release_is_approved(walk: Walk) -> str:
    """In Airflow's frame: the cold start's release waits, and is approved with a reason."""
    olga = walk.person("olga")
    frame = olga.open_market(MARKET)
    assert f"{BOARD}/csrm/markets/{MARKET}" in olga.page.url, olga.page.url
    wide = frame.locator("html").evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert wide[0] <= wide[1], f"the frame is {wide[1]} px wide, its page {wide[0]}"
    waits = frame.get_by_role("region", name="Next").inner_text()
    assert "registered by" in waits, waits
    said = olga.decide(frame, "Approve", "the first one, seen by eye")
    assert "was approved by olga" in said, said
    return f"the frame says: {said}"


def the_first_release_goes_live(walk: Walk) -> str:
    """csrm_rollout, started by Airflow's form, makes it live: there was none before."""
    olga = walk.person("olga")
    seen = walk.settled(olga, ROLLOUT, olga.trigger(ROLLOUT, {"day": walk.day}), "Success")
    frame = olga.open_market(MARKET)
    live = frame.get_by_role("region", name="Live").inner_text()
    assert "Nothing is live" not in live, live
    return f"run: {seen}; live: {live.split()[1]}"


def the_form_refuses_what_is_out_of_bounds(walk: Walk) -> str:
    """A week that no calendar has is refused where it is typed in, or when it is sent."""
    olga = walk.person("olga")
    olga.fill_in(RETRAIN, {"week": "2026-W99"})
    with olga.page.expect_response(re.compile(rf"/dags/{RETRAIN}/dagRuns$")) as sent:
        olga.page.get_by_test_id("trigger-dag-submit").click()
    assert sent.value.status == 400, sent.value.status
    said = olga.page.get_by_test_id("error-alert").inner_text()
    assert "week" in said, said
    return f"the form says: {' '.join(said.split())[:160]}"


def a_retrain_is_started(walk: Walk) -> str:
    """Airflow's form with our parameters, filled in and sent; then the run's page, to its end."""
    olga = walk.person("olga")
    given = {
        "week": walk.week, "rounds": 1, "reason": "a shorter run, to look at it", "release": True,
    }  # fmt: skip
    form = olga.fill_in(RETRAIN, given)
    shown = [t for t in TITLES if form.get_by_text(re.compile(rf"^\s*{t}\s*\*?\s*$")).count()]
    assert shown == [*TITLES], shown
    walk.picture(olga, "airflow_form")
    walk.run = olga.send(RETRAIN)
    olga.open_run(RETRAIN, walk.run)
    parts = olga.parts()
    assert parts == [*PARTS], parts
    return f"form with {', '.join(shown)}; run {walk.run} in parts: {', '.join(parts)}"


def its_progress_is_seen(walk: Walk) -> str:
    """More and more tasks are done, and the run ends well."""
    olga = walk.person("olga")
    seen = walk.settled(olga, RETRAIN, walk.run, "Success")
    assert seen.count("Running") > 1, seen
    walk.picture(olga, "airflow_run")
    return seen


def a_night_fails_and_somebody_is_written_to(walk: Walk) -> str:
    """A file of a kind that there is not; the letter names it, and its link leads to the run."""
    folder = walk.found.home.settings.landing / MARKET / walk.day
    planted = next(path for path in folder.iterdir() if path.is_dir()) / "label.csv"
    planted.write_text("label_id,query\n1,x\n", encoding="utf-8")
    olga = walk.person("olga")
    run = olga.trigger(INGEST, {"day": walk.day})
    seen = walk.settled(olga, INGEST, run, "Failed")
    text = walk.letter(f"{INGEST} failed")
    planted.unlink()
    assert "label.csv" in text and "What to do:" in text, text
    olga.page.goto(link_in(text))
    olga.page.get_by_test_id("header-card").wait_for()
    assert olga.run_state() == "Failed"
    walk.picture(olga, "airflow_failed")
    first, what = text.splitlines()[:2]
    return f"run: {seen}; letter: {first[:160]} / {what[:120]}; its link shows the run"


def somebody_is_asked_and_approves(walk: Walk) -> str:
    """csrm_rollout asks by letter; the answer is given under Airflow's Required Actions."""
    olga = walk.person("olga")
    run = olga.trigger(ROLLOUT, {"day": walk.day})
    text = walk.letter("waits for approval")
    olga.page.goto(link_in(text))
    olga.go("/required_actions?response_received=false")
    olga.page.get_by_role("link", name=re.compile(f"new release of {MARKET}")).first.click()
    approve = olga.page.get_by_test_id("hitl-option-Approve")
    approve.wait_for()
    walk.picture(olga, "airflow_approval")
    approve.click()
    seen = walk.settled(olga, ROLLOUT, run, "Success")
    frame = olga.open_market(MARKET)
    rollout = frame.get_by_role("region", name="Rollout", exact=True).inner_text()
    assert "against" in rollout, rollout
    assert "approved" in frame.get_by_role("region", name="Ledger").inner_text()
    walk.picture(olga, "board_framed")
    return f"letter: {text.splitlines()[0][:100]}; run: {seen}; {rollout.splitlines()[1]}"


def a_rollout_is_advanced_to_all(walk: Walk) -> str:
    """Hold, and advance step by step, until the release is live."""
    olga = walk.person("olga")
    before = olga.open_market(MARKET).get_by_role("region", name="Live").locator("code")
    old, said = before.first.inner_text(), []
    for label in ("Hold", "Advance", "Hold", "Advance"):
        frame = olga.open_market(MARKET)
        said.append(olga.decide(frame, label, f"{label.lower()}, the figures were seen"))
        assert "by olga" in said[-1], said
    live = olga.open_market(MARKET).get_by_role("region", name="Live").locator("code")
    new = live.first.inner_text()
    assert new != old, new
    return f"{' '.join(said)} Live: {old} → {new}"


def it_is_rolled_back(walk: Walk) -> str:
    """One form, and the release before serves everybody."""
    olga = walk.person("olga")
    frame = olga.open_market(MARKET)
    new = frame.get_by_role("region", name="Live").locator("code").first.inner_text()
    walk.token = str(frame.locator("input[name=token]").first.get_attribute("value"))
    said = olga.decide(frame, "Roll back", "shoppers complain")
    old = frame.get_by_role("region", name="Live").locator("code").first.inner_text()
    assert f"{new} was rolled_back by olga" in said or "rolled_back by olga" in said, said
    assert new != old, new
    walk.picture(olga, "board_rolled_back")
    return f"the frame says: {said} Live: {new} → {old}"


def a_viewer_looks_and_decides_nothing(walk: Walk) -> str:
    """Every page that there is, no form; every decision is refused, also with a stolen token."""
    vera = walk.enter("vera")
    frame = vera.open_market(MARKET)
    assert frame.locator("form").count() == 0, "a viewer is shown forms"
    tried = walk.tried(vera, walk.token)
    there = {path for path in gets(MARKET) if tried["GET", path] == 200}
    assert there == {"/", f"/markets/{MARKET}", "/static/board.css"}, there
    decisions = {tried["POST", f"/markets/{MARKET}/{action}"] for action in ACTIONS}
    assert decisions == {403}, decisions
    assert all(status in (200, 403, 404, 405) for status in tried.values()), tried
    vera.go(f"/dags/{RETRAIN}").get_by_test_id("trigger-dag-button").click()
    vera.page.get_by_test_id("trigger-dag-submit").click()
    said = vera.page.get_by_test_id("error-alert").first.inner_text()
    return f"{len(there)} pages, no form; {len(ACTIONS)} decisions answer 403; trigger: {said!r}"


def link_in(text: str) -> str:
    """Return the address that a letter ends in."""
    found = re.search(r"See: (http\S+)", text)
    assert found, f"no link in the letter: {text}"
    return found[1]


STEPS: tuple[Callable[[Walk], str], ...] = (
    nobody_gets_in, one_without_a_role_gets_in_nowhere, an_approver_logs_in,
    the_first_release_is_approved, the_first_release_goes_live,
    the_form_refuses_what_is_out_of_bounds, a_retrain_is_started, its_progress_is_seen,
    a_night_fails_and_somebody_is_written_to, somebody_is_asked_and_approves,
    a_rollout_is_advanced_to_all, it_is_rolled_back, a_viewer_looks_and_decides_nothing,
)  # fmt: skip
