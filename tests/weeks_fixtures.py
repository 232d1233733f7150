"""Ten nights of two weeks, as they should have come and as they did; steps without Airflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from csrm_tasks.artifacts import ArtifactStore, json_digest
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger
from csrm_tasks.release.bundle.manifest import release_id
from csrm_tasks.sections import Ingest, Schedule, WeekOfDays
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.digest import store_digest
from csrm_tasks.store.lake import Lake
from tests.data_fixtures import KO, ZH, label, land_lines, land_sessions, market, product, session

ROOT = Path(__file__).resolve().parent
MARKET = "tiny"
WEEK_1 = tuple(f"2026-01-{n:02d}" for n in range(7, 12))  # Wednesday to Sunday, as long as a
WEEK_2 = tuple(f"2026-01-{n:02d}" for n in range(14, 19))  # week of this market has deliveries
NIGHTS = WEEK_1 + WEEK_2
FIVE = WeekOfDays(at_least=5, wait_days=0)
MONDAYS = ("2026-01-05 (W02)", "2026-01-12 (W03)")


def of_days(rule: WeekOfDays | str = FIVE) -> MarketConfig:
    """Return the tiny market, retrained when its days say so."""
    return market(schedule=Schedule(ingest=None, retrain=rule), ingest=Ingest(tolerance=0.0))


def installed(folder: Path, rule: WeekOfDays | str = FIVE) -> Settings:
    """Write the market's file, and return an installation in which a release is live."""
    markets = folder / "markets"
    markets.mkdir(parents=True)
    text = yaml.safe_dump(of_days(rule).model_dump(mode="json", exclude_defaults=True))
    (markets / f"{MARKET}.yaml").write_text(text)
    settings = load_settings({"CSRM_HOME": str(folder / "home"), "CSRM_MARKETS": str(markets)})
    make_live(settings)
    return settings


def make_live(settings: Settings) -> None:
    """Have a first release live, as a cold start would."""
    ledger.append(
        settings, MARKET, "promoted", "r-first", actor="test", reason="cold start", payload={}
    )


def deliver(settings: Settings, day: str, how: str = "right") -> None:
    """Land a night's files. ``how``: right; wrong, to be corrected later; bad, which none reads."""
    n = NIGHTS.index(day)
    grade = (n + (how == "wrong")) % 3
    names = [product(i, f"상품 {i}") for i in range(4)]
    land_lines(settings, day, f"{KO}/catalogue.jsonl", names)
    land_lines(settings, day, f"{ZH}/catalogue.jsonl", [product(1, "商品")])
    rated = [label(f"k{n}", f"우유 {n}", "p1", grade)]
    path = land_lines(settings, day, f"{KO}/labels.jsonl", rated)
    rated = [label(f"g{n}{r}", f"牛奶 {n}", "p1", grade, f"r{r}") for r in range(4)]
    land_lines(settings, day, f"{ZH}/labels.jsonl", rated)
    land_sessions(settings, day, KO, [session(f"n{n}", "두유", ["p2", "p3"], day, click="p2")])
    if how == "bad":
        path.write_text('{"label_id": "cut off')


def bundled(settings: Settings, snapshot: str) -> str:
    """Publish a made-up bundle of what a snapshot taught, and return its reference."""
    return _made_up(settings, "bundle", {"snapshot": snapshot}, {})


def registered(settings: Settings, bundle: str) -> str:
    """Register a made-up bundle, once, and return the receipt's reference."""
    one = ArtifactStore(settings.artifacts, settings.cache).open(bundle)
    row = ledger.append(
        settings, MARKET, "registered", release_id(one), actor="test", reason="",
        payload={"bundle": bundle, "digest": one.digest},
    )  # fmt: skip
    return _made_up(settings, "register", {"bundle": bundle}, {"release": row.release_id})


def _made_up(settings: Settings, step: str, inputs: dict[str, str], facts: dict[str, str]) -> str:
    key = json_digest(inputs)[:20]
    folder = settings.work / "made-up" / step / key
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "note").write_text(json_digest(inputs))
    store, about = ArtifactStore(settings.artifacts, settings.cache), {"params": {}}
    ref = f"{MARKET}/{step}/{key}"
    return store.publish(ref, folder, facts=facts, inputs=inputs, about=about).ref


def train(settings: Settings, snapshot: str) -> str:
    """Register a made-up release of a snapshot, as the week's last steps do; once."""
    return registered(settings, bundled(settings, snapshot))


def trained(settings: Settings) -> list[str]:
    """Return the snapshots of the weeks that were registered, in that order."""
    store = ArtifactStore(settings.artifacts, settings.cache)
    rows = ledger.verified(settings, MARKET)
    return [
        store.open(row.payload["bundle"]).inputs["snapshot"]
        for row in rows
        if row.action == "registered"
    ]


def digest(settings: Settings) -> str:
    """Return the digest of what the store holds, as ``csrm digest``."""
    with reading(open_store(settings.db_url)) as connection:
        return store_digest(connection, Lake(settings.lake, MARKET), MARKET)


def simulate(
    settings: Settings, home: Path, plan: Sequence[Sequence[str]], **env: str
) -> list[Any]:
    """Carry out a plan (:mod:`tests.weeks_run`) in a process of its own; returns what it found."""
    dags = ROOT.parent / "dags"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "CSRM"))}
    given = clean | env | {
        "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "weeks_dags"),
        "PYTHONPATH": os.pathsep.join([str(ROOT.parent), str(dags), *filter(None, sys.path)]),
        "CSRM_HOME": str(settings.home), "CSRM_MARKETS": str(settings.markets),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "weeks_run.py"), json.dumps(plan)],
        env=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("WEEKS")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    found: list[Any] = json.loads(lines[0].removeprefix("WEEKS"))
    return found
