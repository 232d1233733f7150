"""The lake keeps Parquet files on a folder and on S3 alike."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa

from csrm_tasks.artifacts import Artifact
from csrm_tasks.blobs import open_blobs
from csrm_tasks.errors import DataError
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.lake import SEARCHES, Lake, Stored
from csrm_tasks.store.tables import AGGREGATES, SESSIONS
from tests.data_fixtures import (
    DAY0,
    KO,
    ZH,
    ingest,
    land_lines,
    land_sessions,
    product,
    session,
    snapshot,
)
from tests.object_store import credentials, new_bucket

FILE = Stored("ubi_queries", "2026-01-04", "zh-TW", "d" * 64)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "lake")
    credentials(monkeypatch, request.getfixturevalue("seaweed"))
    return new_bucket(monkeypatch)


def searches(query: str) -> pl.DataFrame:
    row = ("zh-TW", "s1", query, "c", "v", datetime(2026, 1, 4, 9, tzinfo=UTC), "A", "r0",
           1, ["p2", None, "p1"])  # fmt: skip
    return pl.DataFrame([row], schema=SEARCHES, orient="row")


def test_written_again_it_is_replaced_and_comes_back(root: str, tmp_path: Path) -> None:
    lake = Lake(root, "tiny")
    lake.write(FILE, searches("牛奶"))
    lake.write(FILE, searches("豆漿"))
    assert lake.read("ubi_queries", [FILE], ["search_id", "query"]).rows() == [("s1", "豆漿")]
    (path,) = lake.paths([FILE], tmp_path / "scratch")
    assert pl.read_parquet(path).equals(searches("豆漿"))
    assert dict(lake.read("ubi_queries", [], ["query"]).schema) == {"query": pl.String()}


def test_the_same_bytes_of_two_locales_are_two_files(root: str) -> None:
    lake = Lake(root, "tiny")
    other = Stored(FILE.kind, FILE.day, "ko-KR", FILE.digest)
    lake.write(FILE, searches("牛奶"))
    lake.write(other, searches("우유"))
    found = lake.read("ubi_queries", [FILE, other], ["query"])["query"].to_list()
    assert found == ["牛奶", "우유"]


@pytest.mark.s3
def test_a_day_is_summed_up_from_s3_as_from_a_folder(
    seaweed: str, monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> None:
    credentials(monkeypatch, seaweed)
    lake = f"{new_bucket(monkeypatch)}/lake"
    there = load_settings({"CSRM_HOME": str(tmp_path / "b"), "CSRM_LAKE": lake})
    for place in (settings, there):
        for locale in (KO, ZH):
            land_lines(place, DAY0, f"{locale}/catalogue.jsonl", [product(i, "x") for i in (1, 2)])
        land_sessions(place, DAY0, ZH, [
            session(n, "牛奶", ["p1", "p2"], click="p2", purchase="p2") for n in range(3)
        ])  # fmt: skip
        ingest(place, DAY0)
    found = [
        stored(place, table) for place in (settings, there) for table in (AGGREGATES, SESSIONS)
    ]
    assert found[:2] == found[2:]
    assert len(found[2]) == 2
    assert len(found[3]) == 3
    made = [table(snapshot(place, 2, DAY0), "behaviour") for place in (settings, there)]
    assert made[0].equals(made[1])
    assert made[0].height == 2
    assert not (tmp_path / "b" / "lake").exists()


@pytest.mark.parametrize("remote", [False, pytest.param(True, marks=pytest.mark.s3)])
def test_a_file_that_is_gone_is_named(
    remote: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = str(tmp_path / "lake")
    if remote:
        credentials(monkeypatch, request.getfixturevalue("seaweed"))
        where = new_bucket(monkeypatch)
    with pytest.raises(DataError, match=r"day=2026-01-04/zh-TW-d+\.parquet is gone: run"):
        Lake(where, "tiny").read("ubi_queries", [FILE], ["query"])


def stored(place: Settings, table: sa.Table) -> list[tuple[object, ...]]:
    with reading(open_store(place.db_url)) as connection:
        rows = connection.execute(sa.select(table).order_by(*table.primary_key))
        return [tuple(r) for r in rows]


def table(artifact: Artifact, name: str) -> pl.DataFrame:
    return pl.read_parquet(artifact.file(f"{name}.parquet"))


def test_what_somebody_else_has_left_in_a_lake_is_none_of_its_files(root: str) -> None:
    lake = Lake(root, "tiny")
    lake.write(FILE, searches("牛奶"))
    blobs = open_blobs(root)
    for key in ("README.txt", "searches/README.txt", "other/day=2026-01-04/x", "a/b/c/d/e"):
        assert blobs.put_if_absent(f"tiny/{key}", b"-")
    assert {d: [*files] for d, files in lake.entries().items()} == {
        FILE.day: [*lake.names([FILE], [])]
    }


def test_rows_kept_for_later_that_are_gone_are_one_line(root: str) -> None:
    with pytest.raises(DataError, match=r"lake file tiny/known/.* is gone.*restore it from a"):
        Lake(root, "tiny").read_unstored(FILE)
