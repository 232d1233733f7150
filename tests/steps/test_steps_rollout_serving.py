"""A rollout judged by what its servers counted, from their documents to the move."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.blobs import open_blobs
from csrm_tasks.release.online.checks import CHECKS
from csrm_tasks.release.online.sequential import Difference, Stratum, difference
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.serving.figures import Figures
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.release_fixtures import MARKET, market, store_of
from tests.steps.test_steps_rollout import Rolling

CONFIG = market(
    rollout=Rollout(steps=(Step(weight=0), Step(weight=10)), planned_sessions=2000, max_days=9)
)


class Served(Rolling):
    """A release in shadow; days of requests as servers count them."""

    def step(self, name: str, inputs: dict[str, str] | None = None, **params: Any) -> Artifact:
        ref = run_step(name, CONFIG, inputs or {}, params, self.settings)
        return store_of(self.settings).open(ref)

    def begin(self) -> str:
        self.promote(self.release("one"))
        two = self.release("two")
        self.step("rollout_start", {"state": self.step("rollout_state").ref})
        return str(two.id)

    def serve(self, day: str, *, slower: float = 1.0, incident: bool = False) -> None:
        """Half of the requests go to the release under way from six on, few before.

        In an incident four in ten of everybody's requests fail for an hour in the evening.
        """
        state, figures = self.opened(), Figures(MARKET)
        assert state is not None
        midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
        for quarter in range(96):
            at, late = midnight + timedelta(minutes=15 * quarter), quarter >= 24
            failing = 0.4 if incident and 80 <= quarter < 84 else 0.0
            for release, share in ((state.release, 0.5 if late else 0.01), (state.control, 0.5)):
                for n in range(round(400 * share)):
                    seconds = (0.04 if n % 20 == 0 else 0.02) * (
                        slower if release == state.release else 1.0
                    )
                    figures.note(
                        at, release, seconds, failed=n < round(400 * share) * failing,
                        generation=state.turn + late, remembered=False,
                    )  # fmt: skip
        figures.flush(open_blobs(self.settings.routing))

    def by_the_day(self, day: str) -> Difference | None:
        """Compare the day's totals, as if its shares had not changed."""
        state = self.opened()
        assert state is not None
        raw = open_blobs(self.settings.routing).read(f"{MARKET}/serving/{day}.json")
        found = json.loads(raw or b"")
        both = [found[r] for r in (state.release, state.control)]
        counts = [f[name] for f in both for name in ("requests", "errors")]
        return difference([Stratum(*counts, 0.5)], 2 * state.plan.alpha / CHECKS, 2000)


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Served:
    world = Served(settings)
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    return world


def test_an_incident_that_hits_both_on_a_day_of_change_rolls_nothing_back(world: Served) -> None:
    world.begin()
    day = world.day(1)
    world.serve(day, incident=True)
    total = world.by_the_day(day)
    assert total is not None and total.lo > 0  # it looks worse beyond doubt
    facts, move = world.look(day)
    assert (facts["outcome"], move) == ("INCONCLUSIVE", "wait"), facts
    assert [r.split(":")[0] for r in facts["reasons"]] == ["errors"]


def test_a_slower_release_is_rolled_back_by_what_its_servers_counted(world: Served) -> None:
    world.begin()
    one, day = world.live(), world.day(1)
    world.serve(day, slower=3.0)
    facts, move = world.look(day)
    assert (facts["outcome"], move, world.live()) == ("FAILURE", "abort", one), facts
    assert "p99" in facts["reasons"][0]
    world.agrees()


def test_without_figures_by_the_quarter_of_an_hour_nothing_is_judged(world: Served) -> None:
    world.begin()
    day = world.day(1)
    assert world.look(day)[0]["outcome"] == "ERROR"
