"""Who walks in :mod:`tests.browser_walk`, through what, and what is watched on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from csrm_tasks.demo.runner.plan import plan
from tests.board_fixtures import routes
from tests.browser_airflow import Installation
from tests.browser_pages import Browser, Person
from tests.flow_fixtures import MARKET

RUN_SECONDS = 1800.0  # that a run may take
LETTER_SECONDS = 300.0


@dataclass
class Walk:
    """Who walks through what, and where pictures go."""

    found: Installation
    browser: Browser
    pictures: Path | None
    people: dict[str, Person] = field(default_factory=dict)
    run: str = ""  # the retrain's
    token: str = ""  # of a form that somebody else was shown

    def person(self, name: str) -> Person:
        """Return a browser of ``name``'s own, in which nobody is logged in at first."""
        if name not in self.people:
            self.people[name] = Person.of(self.browser, self.found.home.url, name)
        return self.people[name]

    def enter(self, name: str) -> Person:
        """Return ``name``'s browser, logged in."""
        who = self.person(name)
        who.go("/").wait_for_url("**/auth/login**")
        who.log_in(self.found.password(name))
        return who

    def picture(self, who: Person, name: str) -> None:
        """Keep what ``who`` sees now."""
        if self.pictures is not None:
            who.picture(self.pictures / f"{name}.png")

    def tried(self, who: Person, token: str = "") -> dict[tuple[str, str], int]:
        """Try every route of the board with ``who``'s cookies; return what each answers.

        ``token``: of somebody else's form.
        """
        url = self.found.home.url
        form = {"token": token, "reason": "let me in", "release": "", "seen": ""}
        found = {}
        for method, path in routes(MARKET):
            answer = who.context.request.fetch(
                f"{url}/csrm{path}", method=method, headers={"Origin": url}, max_redirects=0,
                form=form if method == "POST" else None,
            )  # fmt: skip
            found[method, path] = answer.status
        return found

    def settled(self, who: Person, dag: str, run: str, wanted: str) -> str:
        """Watch the run's page until it has ended as ``wanted``; say what was seen on the way."""
        who.open_run(dag, run)
        seen: list[str] = []
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            state = who.run_state()
            now = f"{state} {who.done()}"
            seen += [now] if now not in seen[-1:] else []
            if state in ("Success", "Failed"):
                assert state == wanted, f"{run} of {dag} ended as {state}"
                return ", ".join(seen)
            who.page.wait_for_timeout(500)
        raise AssertionError(f"{run} of {dag} has not ended in {RUN_SECONDS:g} seconds: {seen}")

    def letter(self, subject: str) -> str:
        """Return the one letter with such a subject, as soon as it is there."""
        letters, end = self.found.mail.letters, time.monotonic() + LETTER_SECONDS
        while time.monotonic() < end:
            texts = [one.get_content() for one in letters if subject in one["Subject"]]
            if texts:
                assert len(texts) == 1, f"{len(texts)} letters say {subject!r}"
                return str(texts[0])
            time.sleep(0.5)
        told = [one["Subject"] for one in letters]
        raise AssertionError(f"no letter says {subject!r}; there are {told}")

    @property
    def week(self) -> str:
        """The week that the market's deliveries end in."""
        return str(plan(MARKET, self.found.home.settings)[-1].conf["week"])

    @property
    def day(self) -> str:
        """The last day that was delivered."""
        landed = self.found.home.settings.landing / MARKET
        return max(path.name for path in landed.glob("*-*-*"))
