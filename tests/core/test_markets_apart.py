"""Several markets on one installation: each as if it were alone (docs/MARKETS.md)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import MarketConfig, load_markets
from csrm_tasks.release import ledger, retention
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.digest import store_digest
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.models import Base
from tests.data_fixtures import DAY0, DAY1, KO, ZH, ingest, label, land_lines, product, snapshot
from tests.data_fixtures import market as data_market
from tests.release_fixtures import store_of

ONE, TWO = "tiny", "tiny_two"  # one name begins with the other
MINI = Path(__file__).resolve().parents[1] / "markets" / "mini.yaml"


def config(name: str) -> MarketConfig:
    return data_market(market=name)


def land(settings: Settings, name: str) -> None:
    """The same deliveries for every market, under the same identifiers; two nights."""
    for n, day in enumerate((DAY0, DAY1)):
        for locale, title in ((KO, "상품"), (ZH, "商品")):
            rows = [product(k, f"{title} {k}") for k in range(4)]
            land_lines(settings, day, f"{locale}/catalogue.jsonl", rows, market=name)
        grades = [label(10 * n + k, f"우유 {k}", f"p{k}", k % 3) for k in range(3)]
        land_lines(settings, day, f"{KO}/labels.jsonl", grades, market=name)


def digest(settings: Settings, name: str) -> str:
    with reading(open_store(settings.db_url)) as connection:
        return store_digest(connection, Lake(settings.lake, name), name)


def alone(settings: Settings, folder: Path) -> Settings:
    return replace(
        settings, home=folder, db_url=f"sqlite:///{folder}.db", lake=str(folder / "lake"),
        artifacts=str(folder / "made"),
    )  # fmt: skip


def test_markets_that_share_everything_end_as_each_alone_in_any_order(
    settings: Settings, tmp_path: Path
) -> None:
    for name in (ONE, TWO):
        land(settings, name)
    # The nights of both in turns, the second market's in the other order.
    for name, day in ((ONE, DAY0), (TWO, DAY1), (TWO, DAY0), (ONE, DAY1)):
        ingest(settings, day, config(name))
    made = {name: snapshot(settings, 1, DAY1, config(name)) for name in (ONE, TWO)}
    single = alone(settings, tmp_path / TWO)
    for day in (DAY0, DAY1):
        ingest(single, day, config(TWO))
    assert digest(settings, TWO) == digest(single, TWO)
    assert snapshot(single, 1, DAY1, config(TWO)).digest == made[TWO].digest
    assert made[ONE].ref.split("/")[2] != made[TWO].ref.split("/")[2]  # nor found by each other


def test_a_market_that_comes_or_goes_changes_nothing_of_another(
    settings: Settings, tmp_path: Path
) -> None:
    land(settings, ONE)
    ingest(settings, DAY0, config(ONE))
    before, made = digest(settings, ONE), snapshot(settings, 1, DAY0, config(ONE))
    land(settings, TWO)
    ingest(settings, DAY0, config(TWO))
    row = ledger.append(
        settings, TWO, "registered", "r", actor="t", reason="", payload={"verdict": "v"}
    )
    assert row.seq == 1 and ledger.history(settings, ONE) == []
    assert digest(settings, ONE) == before
    assert snapshot(settings, 1, DAY0, config(ONE)).ref == made.ref

    # All that may go of the one goes, years later; the other keeps every artifact.
    kept = {ref for ref, _ in store_of(settings).published(TWO)}
    plan = retention.plan(settings, config(ONE), datetime.now(UTC) + timedelta(days=999))
    retention.prune(settings, [*plan.delete])
    assert plan.delete and all(ref.startswith(f"{ONE}/") for ref in plan.delete)
    assert {ref for ref, _ in store_of(settings).published(TWO)} == kept
    assert store_of(settings).published(ONE) == []


def test_every_row_of_the_database_is_some_markets() -> None:
    for table in Base.metadata.tables.values():
        of_market = "market" in table.c
        of_file = any(key.column.table.name == "files" for key in table.foreign_keys)
        assert of_market or of_file, table.name


@pytest.mark.parametrize(
    "fault", ["market: [", "", "market: other\n", "{}", "\x00", "market: two\ncolour: red\n"]
)
def test_a_file_that_is_wrong_costs_no_other_market_anything(tmp_path: Path, fault: str) -> None:
    text = MINI.read_text(encoding="utf-8")
    for name in ("one", "three"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("market: mini", f"market: {name}"))
    (tmp_path / "two.yaml").write_text(fault)
    found, wrong = load_markets(tmp_path)
    assert [m.market for m in found] == ["one", "three"]
    assert len(wrong) == 1 and "two.yaml" in wrong[0] and "\n" not in wrong[0]
    (tmp_path / "two.yaml").write_text(text.replace("market: mini", "market: two"))  # mended
    assert [m.market for m in load_markets(tmp_path)[0]] == ["one", "three", "two"]
    assert load_markets(tmp_path)[1] == []


@pytest.mark.airflow
def test_a_market_that_cannot_be_told_of_costs_no_other_its_dags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib
    import sys

    root = MINI.parents[2]
    monkeypatch.syspath_prepend(str(root / "dags"))
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    monkeypatch.setenv("CSRM_MARKETS", str(tmp_path))
    text = MINI.read_text(encoding="utf-8")
    (tmp_path / "one.yaml").write_text(text.replace("market: mini", "market: one"))
    told = text.replace("market: mini", "market: two") + "notify: {connection: ops}\n"
    (tmp_path / "two.yaml").write_text(told)
    limits = importlib.import_module("csrm_limits")
    monkeypatch.setitem(sys.modules, "csrm_notify", None)  # no plugins folder
    found, wrong = limits.examined()
    assert [m.market for m in found] == ["one"]
    assert len(wrong) == 1 and "market two has notify.connection" in wrong[0]
    with pytest.raises(ConfigError, match=r"market two has notify\.connection"):
        importlib.import_module("csrm_market_files")
    sys.modules.pop("csrm_market_files", None)
