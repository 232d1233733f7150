"""One person's browser on Airflow: what :mod:`tests.browser_walk` clicks, fills in and looks at.

What a page does not show is not seen: nothing here asks Airflow's interface for programs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

# Playwright's, which no lock has
Browser = BrowserContext = FrameLocator = Locator = Page = Any

SIZE = {"width": 1280, "height": 800}
LOADS = 120_000.0  # milliseconds that a page may take on a busy machine
COLOURS = 64  # of a picture; text on plain ground needs no more


@dataclass
class Person:
    """A browser of its own, in which one of Airflow's users is logged in, or nobody."""

    name: str
    url: str  # Airflow's
    context: BrowserContext
    page: Page = field(init=False)

    def __post_init__(self) -> None:
        self.context.set_default_timeout(LOADS)
        self.page = self.context.new_page()

    @classmethod
    def of(cls, browser: Browser, url: str, name: str = "") -> Person:
        """Open a browser without cookies."""
        context = browser.new_context(viewport=SIZE, color_scheme="light", locale="en-GB")
        return cls(name, url, context)

    def go(self, path: str) -> Page:
        """Open a page of Airflow's."""
        self.page.goto(f"{self.url}{path}")
        return self.page

    def log_in(self, password: str) -> None:
        """Fill in the login page, which is shown now."""
        page = self.page
        page.locator("[name=username]").fill(self.name)
        page.locator("[name=password]").fill(password)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/auth/" not in url)

    def picture(self, path: Path) -> None:
        """Write what the window shows as a small PNG."""
        image_of = import_module("PIL.Image")
        image = image_of.open(BytesIO(self.page.screenshot())).convert("RGB")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.quantize(COLOURS, dither=image_of.Dither.NONE).save(path, optimize=True)

    # The release board, in the frame that Airflow's own page has for it

    def open_board(self) -> FrameLocator:
        """Open the board by Airflow's navigation and return what its frame shows."""
        self.go("/")
        self.page.get_by_test_id("nav-sidebar").get_by_text("Plugins").click()
        self.page.get_by_text("Release board", exact=True).click()
        frame = self.page.frame_locator("iframe")
        frame.get_by_role("heading", name="Release board").wait_for()
        self.page.wait_for_url("**/plugin/release-board/csrm/")  # Airflow follows the frame
        return frame

    def open_market(self, market: str) -> FrameLocator:
        """Go on from there to a market, by its link in the frame."""
        frame = self.open_board()
        frame.get_by_role("row").get_by_role("link", name=market).click()
        frame.get_by_role("heading", name=market, level=1).wait_for()
        return frame

    def decide(self, frame: FrameLocator, label: str, reason: str) -> str:
        """Send one of the frame's forms; return what the page says then."""
        forms = frame.locator("form").filter(has=frame.get_by_role("button", name=label))
        form = forms.first
        form.get_by_label("Reason").fill(reason)
        form.get_by_role("button", name=label, exact=True).click()
        return frame.locator(".alert").inner_text()

    # Airflow's own pages of a DAG and of a run

    def trigger(self, dag: str, values: Mapping[str, str | int | bool]) -> str:
        """Fill in the form that starts a run, send it, and return the run's id."""
        self.fill_in(dag, values)
        return self.send(dag)

    def fill_in(self, dag: str, values: Mapping[str, str | int | bool]) -> Locator:
        """Open the form that starts a run, and fill in ``values``; return it."""
        self.go(f"/dags/{dag}").get_by_test_id("trigger-dag-button").click()
        form = self.page.get_by_role("dialog")
        for name, value in values.items():
            one = form.locator(f"[name=element_{name}]")
            if isinstance(value, bool):
                one.locator("xpath=ancestor::label").click()
                assert one.is_checked() == value, f"the switch of {name} is not {value}"
            else:
                one.fill(str(value))
                one.press("Tab")
        return form

    def send(self, dag: str) -> str:
        """Send the form that :meth:`fill_in` filled in; return the id of the run that it makes."""
        with self.page.expect_response(re.compile(rf"/dags/{dag}/dagRuns$")) as sent:
            self.page.get_by_test_id("trigger-dag-submit").click()
        found = sent.value
        assert found.ok, f"Airflow refused the form: {found.status} {found.text()}"
        return str(found.json()["dag_run_id"])

    def open_run(self, dag: str, run: str) -> None:
        """Open the page of a run."""
        self.go(f"/dags/{dag}/runs/{quote(run, safe='')}")
        self.page.get_by_test_id("header-card").wait_for()

    def run_state(self) -> str:
        """Return the state that the head of the page of a run shows."""
        head = self.page.get_by_test_id("header-card").get_by_test_id("state-badge")
        return head.first.inner_text().strip()

    def parts(self) -> list[str]:
        """Return the groups that the grid beside the run's page shows."""
        rows = self.page.locator("[data-task-id] [data-group-id] >> visible=true")
        named = [text.strip() for text in rows.all_inner_texts()]
        return list(dict.fromkeys(text for text in named if text))

    def done(self) -> int:
        """Return how many tasks the run's page shows as ended well."""
        rows = self.page.locator("tbody").get_by_test_id("state-badge")
        return sum(text.strip() == "Success" for text in rows.all_inner_texts())
