"""From a public data set to a snapshot; killed anywhere, an import is the same files."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks import analyticup
from csrm_tasks.cli.main import main
from csrm_tasks.layouts import delivery, esci, landing, run
from csrm_tasks.layouts.landing import Landing
from csrm_tasks.markets import load_market
from csrm_tasks.settings import load_settings
from tests.data_fixtures import snapshot
from tests.layouts_fixtures import judged, left_out, run_import, tree, write_cikm, write_esci


def test_an_import_goes_through_the_nights_into_snapshots_split_by_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run_import("cikm2025", write_cikm(tmp_path / "data"))
    days = ["2025-01-06", "2025-01-13", "2025-01-20"]
    for day in days:
        assert main(["ingest", "--market", "cikm2025", "--day", day]) == 0
        assert " rows: 0 in quarantine, 0 ignored" in capsys.readouterr().out
    config = load_market("cikm2025", own.markets)

    first = snapshot(own, 2, days[0], config)
    pairs = pl.read_parquet(first.file("pairs.parquet"))
    assert set(pairs["split"]) <= {"train", "dev"}
    assert sorted(zip(pairs["locale"], pairs["grade"], strict=True)) == [
        ("en-US", 0), ("en-US", 2), ("en-US", 2), ("en-US", 2), ("ko-KR", 0), ("ko-KR", 2),
    ]  # fmt: skip
    # One judgement a pair is all there is: with it as gold, only what was never learnt from is.
    rules = config.snapshot.model_copy(update={"gold_raters": 1, "gold_agree": 1})
    last = snapshot(own, 2, days[-1], config.model_copy(update={"snapshot": rules}))
    pairs = pl.read_parquet(last.file("pairs.parquet"))
    gold = pairs.filter(split="gold")
    assert gold.height == 3 and set(gold["locale"]) == {"ko-KR"}  # of dev and test
    assert pairs.filter(pl.col("split") != "gold").height == 7


def test_both_tasks_are_snapshotted_and_the_public_test_split_becomes_gold(tmp_path: Path) -> None:
    def rows(task: str, first: int, n: int) -> list[dict[str, Any]]:
        return [
            judged(2 * i + yes, ("en", "ko")[i % 2], f"query {i}", f"Home, Garden,thing {i % 5}",
                   str(yes), task)
            for i in range(first, first + n) for yes in (0, 1)
        ]  # fmt: skip

    files = {
        f"{split}_{task}.txt": rows(task, *part)
        for task in ("QC", "QI")
        for split, part in {"train": (0, 40), "test": (40, 10)}.items()
    }
    for name in ("train_QI.txt", "test_QI.txt"):  # the same title may be a yes and a no: another
        for row in files[name]:
            row["item_title"] += " x" * int(row["label"])
    for name in ("train_QC.txt", "test_QC.txt"):
        for row in files[name]:
            row["category_path"] += ",more" * int(row["label"])
    own = run_import("cikm2025", write_cikm(tmp_path / "data", files))
    days = ["2025-01-06", "2025-01-20"]
    for day in days:
        assert main(["ingest", "--market", "cikm2025", "--day", day]) == 0
    rules = {"gold_raters": 1, "gold_agree": 1, "dev_share": 0.3}
    config = load_market("cikm2025", own.markets)
    before = config.snapshot.model_copy(update={"dev_share": 0.3})
    config = config.model_copy(update={"tasks": ("qc", "qi"), "snapshot": before})
    first = pl.read_parquet(snapshot(own, 2, days[0], config).file("task_pairs.parquet"))
    assert set(first["split"]) == {"train", "dev"} and first.height == 160
    after = config.model_copy(update={"snapshot": before.model_copy(update=rules)})
    last = pl.read_parquet(snapshot(own, 2, days[1], after).file("task_pairs.parquet"))
    gold = last.filter(split="gold")
    assert set(gold["query"]) == {f"query {i}" for i in range(41, 50, 2)}  # of the target
    assert set(gold["task"]) == {"qc", "qi"} and set(gold["grade"]) == {0, 1}
    assert set(gold.filter(task="qc")["item"]) <= {
        f"Home, Garden,thing {i}{more}" for i in range(5) for more in ("", ",more")
    }


def test_drawn_files_of_the_true_size_have_the_oddities_of_the_layout(tmp_path: Path) -> None:
    """What the benchmark ``import_cikm`` imports, in small: the same files every time."""
    for name in ("data", "again"):
        (tmp_path / name).mkdir()
        assert analyticup.write(tmp_path / name, 4_000, seed=3) == 4_000
    assert tree(tmp_path / "data") == tree(tmp_path / "again")
    rows = [
        json.loads(line)
        for path in sorted((tmp_path / "data").iterdir())
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert {type(r.get("label")) for r in rows} == {str, int, type(None)}
    assert all(", " in r["category_path"] for r in rows if r["task"] == "QC")
    own = run_import("cikm2025", tmp_path / "data", "--target", "de-DE")
    reasons = {"other_language", "no_label", "no_title", "not_english"}
    assert set(left_out(own, "cikm2025")) == reasons


class Killed(BaseException):
    """Nothing runs after it, not even what removes half an import."""


def test_killed_at_any_moment_and_run_again_it_is_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cikm(tmp_path / "data")
    monkeypatch.setattr(Landing, "abandon", lambda self: None)
    moments = _Moments()
    for name in ("leave_out", "_add", "_report"):
        monkeypatch.setattr(Landing, name, moments.before(getattr(Landing, name)))
    monkeypatch.setattr(landing, "show", moments.before(delivery.show))
    monkeypatch.setattr(run, "_next", moments.before(run._next))

    def fresh(number: int) -> Path:
        home = tmp_path / f"home{number}"
        monkeypatch.setenv("CSRM_HOME", str(home))
        monkeypatch.setenv("CSRM_MARKETS", str(home / "markets"))
        return home

    home = fresh(0)
    run_import("cikm2025", folder)
    whole, last = tree(home), moments.seen
    assert last > 40 and "markets/cikm2025.yaml" in whole
    catalogues = {name for name in whole if "/catalogue-" in name}
    for moment in range(1, last + 1):
        home = fresh(moment)
        moments.seen, moments.killed_at = 0, moment
        with pytest.raises(Killed):
            run_import("cikm2025", folder)
        shown = {n: b for n, b in tree(home).items() if not n.rpartition("/")[2].startswith(".")}
        assert shown.items() <= whole.items()  # what is visible is whole
        assert catalogues <= set(shown) or not any("/labels-" in name for name in shown)
        moments.killed_at = 0
        run_import("cikm2025", folder)
        assert tree(home) == whole


class _Moments:
    """Counts what an import does, and kills it before it does the thing of one number."""

    def __init__(self) -> None:
        self.seen, self.killed_at = 0, 0

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            self.seen += 1
            if self.seen == self.killed_at:
                raise Killed
            return function(*args)

        return called


def test_equal_files_are_left_alone_and_others_take_their_place(tmp_path: Path) -> None:
    own = run_import("esci", write_esci(tmp_path / "data"))
    labels = own.landing / "esci" / "2025-01-06" / "en-US" / "labels-esci_train.parquet"
    before = {p: p.stat().st_ino for p in own.landing.rglob("*.parquet")}
    run_import("esci", tmp_path / "data")
    assert {p: p.stat().st_ino for p in own.landing.rglob("*.parquet")} == before
    run_import("esci", tmp_path / "data", "--version", "small")
    assert {p for p in before if p.stat().st_ino != before[p]} == {labels}
    assert load_settings(market="esci") == own


def test_a_table_larger_than_a_row_group_is_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = delivery.DeliveryTable(tmp_path / "a" / "t.parquet", ("x", "y"))
    monkeypatch.setattr(delivery, "ROWS", 7)
    monkeypatch.setattr(delivery, "CHARS", 50)
    rows = [(f"{n}", "é" * (n % 30)) for n in range(100)]
    for row in rows:
        table.add(row)
    table.close()
    assert pl.read_parquet(delivery.hidden(table.path)).rows() == rows


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(delivery.pq.ParquetWriter, "write_table", full)
    folder = write_esci(tmp_path / "data")
    assert main(["import", "esci", "--data-dir", str(folder)]) == 2
    assert "no space left to write" in capsys.readouterr().err
    assert tree(load_settings(market="esci").landing) == {}


def test_a_second_import_of_the_market_meanwhile_is_refused_and_another_markets_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_esci(tmp_path / "data")
    started = load_settings(market="esci")
    codes: dict[str, int] = {}

    def read(into: landing.Landing) -> None:
        command = ["import", "esci", "--data-dir", str(folder), "--market"]
        codes["esci"] = main([*command, "esci"])
        codes["other"] = main([*command, "other"])
        esci.read(folder, into, "large")

    asked = run.Asked("esci", "esci", ("en-US",), "ja-JP", date(2025, 1, 6))
    run.import_layout(asked, started, read)
    assert codes == {"esci": 2, "other": 0}
    assert capsys.readouterr().err.splitlines() == [
        "csrm: another import of market esci is under way; wait for its end, then run this again"
    ]
    done = tree(started.landing / "esci")
    assert done and run_import("esci", folder) == started  # nobody holds it any more
    assert tree(started.landing / "esci") == done
    assert {n.replace("/", "-") for n in done} == {
        n.replace("/", "-") for n in tree(started.landing / "other")
    }
