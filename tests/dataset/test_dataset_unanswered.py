"""Searches without results and without clicks, counted by query and by shopper."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from csrm_tasks.cli.main import main
from csrm_tasks.dataset.unanswered import COLUMNS, by_query
from csrm_tasks.json_files import write_json
from csrm_tasks.settings import load_settings
from tests.data_fixtures import DAY0, KO, ZH, land_lines, market, product, search, session

SEARCHES = [
    # search, query, client, session, products that it says it showed
    ("s1", "milk", "c1", "v1", []), ("s2", "Milk", "c1", "v2", []), ("s3", "milk ", "c2", "", []),
    ("s4", "milk", "c3", "", ["p1"]), ("s5", "milk", "c4", "", ["p1"]),
    ("s6", "tea", "", "v6", None), ("s7", "tea", "", "v6", None), ("s8", "tea", "", "", None),
    ("s9", "rice", "c9", "", None), ("s0", "", "c9", "", []), ("sa", "rice", "c9", "", ["p1"]),
]  # fmt: skip
EVENTS = [("s5", "click"), ("s6", "impression"), ("s7", "impression"), ("s8", "impression"),
          ("s8", "purchase"), ("sa", "add_to_cart")]  # fmt: skip


def test_each_query_says_how_many_shoppers_found_nothing_or_left_it() -> None:
    searches = pl.DataFrame(
        SEARCHES,
        {"search_id": pl.String, "query": pl.String, "client_id": pl.String,
         "session_id": pl.String, "hits": pl.List(pl.String)},
        orient="row",
    )  # fmt: skip
    events = pl.DataFrame(EVENTS, ["search_id", "action"], orient="row")
    # milk: one shopper twice and another found nothing, one clicked, one did not; of tea nothing is
    # known but that it was shown; a search for rice that says nothing is no finding
    assert by_query(searches, events).rows() == [("milk", 5, 3, 2, 1, 1), ("tea", 3, 0, 0, 2, 1)]


def test_the_command_writes_what_the_lake_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(tmp_path))
    write_json(tmp_path / "tiny.yaml", market().model_dump(mode="json", exclude_defaults=True))
    settings = load_settings()
    goods = [product(n, f"우유 {n}") for n in range(2)]
    for locale in (KO, ZH):
        land_lines(settings, DAY0, f"{locale}/catalogue.jsonl", goods)
    found, events = session("1", "우유", ["p0", "p1"])
    nothing = search("2", "두유") | {"query_response_hit_ids": []}
    land_lines(settings, DAY0, f"{KO}/ubi_queries.jsonl", [found, nothing])
    land_lines(settings, DAY0, f"{KO}/ubi_events.jsonl", events)
    assert main(["ingest", "--market", "tiny", "--day", DAY0]) == 0
    out = tmp_path / "searches.csv"
    asked = ["data", "searches", "--market", "tiny", "--since", DAY0, "--until", DAY0]
    assert main([*asked, "--locale", KO, "--out", str(out)]) == 0
    rows = out.read_text(encoding="utf-8-sig").splitlines()
    assert rows == [",".join(COLUMNS), "두유,1,1,1,0,0", "우유,1,0,0,1,1"]
    capsys.readouterr()
    assert main([*asked, "--locale", ZH, "--out", str(tmp_path / "none.csv")]) == 0
    assert "0 queries" in capsys.readouterr().out
    wrong = ["data", "searches", "--market", "tiny", "--since", DAY0, "--until", "2026-01-01"]
    assert main([*wrong, "--locale", KO, "--out", str(out)]) == 2
