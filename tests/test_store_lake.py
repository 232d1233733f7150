"""The lake keeps Parquet files on a folder and on S3 alike."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from csrm_tasks.store.lake import SEARCHES, Lake, Stored
from tests.test_core_s3 import credentials, free_port, serve

FILE = Stored("ubi_queries", "2026-01-04", "zh-TW", "d" * 64)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    port = free_port()
    script = str(Path(sys.executable).with_name("moto_server"))
    yield from serve([script, "-H", "127.0.0.1", "-p", str(port)], port)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "lake")
    credentials(monkeypatch, request.getfixturevalue("moto"))
    import boto3

    boto3.client("s3").create_bucket(Bucket="lake")
    return "s3://lake/events"


def searches(query: str) -> pl.DataFrame:
    row = ("zh-TW", "s1", query, "c", "v", datetime(2026, 1, 4, 9, tzinfo=UTC), "A", "r0")
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
