"""Judging: the schema's verdict on a column equals an obvious one on each row by itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pandera.config import config_context

from csrm_tasks.errors import ConfigError
from csrm_tasks.ingest.contract.contracts import CONTRACTS, GRADES, Column
from csrm_tasks.ingest.reading.readers import read_batches
from csrm_tasks.ingest.validation.times import parse_time, parse_times
from csrm_tasks.ingest.validation.validate import validate_batch
from csrm_tasks.markets import parse_market
from csrm_tasks.sections import Ingest
from csrm_tasks.settings import load_settings
from csrm_tasks.steps import run_step
from tests.data_fixtures import label, land_lines, market, open_artifact

DAY = "2026-01-04"
MIDNIGHT = datetime(2026, 1, 4, tzinfo=UTC)
EVENTS = CONTRACTS["ubi_events"]
LABELS = CONTRACTS["labels"]

TIMES = {
    "2026-01-04T10:00:00Z": "2026-01-04T10:00:00Z",
    "2026-01-04 10:00:00": "2026-01-04T10:00:00Z",
    "2026-01-04t10:00:00 z": "2026-01-04T10:00:00Z",
    "2026-01-04T10:00:00.123Z": "2026-01-04T10:00:00.123Z",
    "2026-01-04T10:00:00.5": "2026-01-04T10:00:00.500Z",
    "2026-01-04T10:00:00.123456789Z": "2026-01-04T10:00:00.123456Z",
    "2026-01-04T10:00:00+09:00": "2026-01-04T01:00:00Z",
    "2026-01-04T10:00:00-0930": "2026-01-04T19:30:00Z",
    "2026-01-04": "2026-01-04T00:00:00Z",
    "1767484800": "2026-01-04T00:00:00Z",
    "1767484800.25": "2026-01-04T00:00:00.250Z",
    "1767484800250": "2026-01-04T00:00:00.250Z",
    "0000-01-01": None,  # no year of Python's
    "0001-01-01T00:00:00+14:00": None,
    "9999-12-31T23:59:59-12:00": None,
    "17674848002501": None,
    "20260104": None,
    "2026-02-30T00:00:00Z": None,
    "2026-01-04T24:00:00Z": "2026-01-05T00:00:00Z",
    "2026-02-28 24:00": "2026-03-01T00:00:00Z",
    "2025-12-31T24:00:00.000+09:00": "2025-12-31T15:00:00Z",
    "20260104T240000Z": "2026-01-05T00:00:00Z",
    "2026-01-04T24Z": "2026-01-05T00:00:00Z",
    "2026-01-04T24:00:01Z": None,
    "2026-01-04T24:30Z": None,
    "2026-02-29T24:00:00Z": None,
    "9999-12-31T24:00:00Z": None,
    "2026-01-04T25:00:00Z": None,
    "2026-01-04T23:59:60Z": "2026-01-05T00:00:00Z",
    "10:00": None,
    "-1767484800": None,
    "now": None,
}


@given(st.lists(st.sampled_from(list(TIMES)) | st.none(), max_size=8))
@hypothesis_settings(max_examples=100, deadline=None)
def test_the_quick_spellings_change_no_time(texts: list[str | None]) -> None:
    column = pl.Series("t", texts, dtype=pl.String)
    slow = column.to_frame("t").select(parse_time(pl.col("t")))["t"]
    held = slow.dt.year().is_between(1, 9999)
    assert parse_times(column).to_list() == slow.set(~held, None).to_list()


def test_times_equal_the_standard_librarys() -> None:
    exact = [t and datetime.fromisoformat(t) for t in TIMES.values()]
    assert parse_times(pl.Series(list(TIMES))).to_list() == exact


def slow_reason(column: Column, text: str | None) -> str | None:
    """One rule after the other, as the contract reads."""
    text = (text or "").strip(" \u200b\ufeff") or None
    if text is None:
        return "missing_value" if column.required else None
    if "\0" in text:
        return "nul_byte"
    if len(text) > column.max_chars:
        return "too_long"
    if column.vocabulary is not None:
        return None if text.lower() in column.vocabulary else "unknown_value"
    if column.holds == "integer":
        return slow_integer(column, text)
    if column.holds == "list":
        return None
    return slow_time(text) if column.holds == "time" else None


def slow_other(action: str | None) -> bool:
    """Whether an event is of an action that nobody sums up: it is ignored."""
    text = (action or "").strip(" \u200b\ufeff").lower()
    return bool(text) and "\0" not in text and text not in (EVENTS.columns[0].vocabulary or {})


def slow_integer(column: Column, text: str) -> str | None:
    try:
        number = float(text)
    except ValueError:
        return None  # optional: its row says enough without
    if number != int(number):
        return None
    assert column.at_least is not None
    assert column.at_most is not None
    return None if column.at_least <= number <= column.at_most else "out_of_range"


def slow_time(text: str) -> str | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return "wrong_type"
    moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    if moment.year < 2000:
        return "out_of_range"
    if moment > MIDNIGHT + timedelta(hours=36):
        return "future_time"
    return "too_old" if moment < MIDNIGHT - timedelta(hours=14, days=30) else None


WORD = st.sampled_from([
    None, "", " ", "\u200b", "\ufeff a", "a", " click ", "CLICK", "dance", "a\0b", "x" * 200,
    "牛" * 201, "\0" * 201,
])  # fmt: skip
NUMBER = st.sampled_from([None, "", "0", "3.0", "3.5", "-1", "100000", "100001", "x", "1e3x"])
MOMENT = st.sampled_from([
    None, "2026-01-04", "2026-01-05T12:00:00Z", "2026-01-05T12:00:01Z", "2025-12-04T10:00:00Z",
    "2025-12-04T09:59:59Z", "1999-12-31T23:59:59Z", "soon", "2026-01-06T00:00:00+14:00",
])  # fmt: skip
EVENT = st.fixed_dictionaries({
    "action_name": WORD, "query_id": WORD, "object_id": WORD, "position": NUMBER,
    "client_id": WORD, "timestamp": MOMENT,
})  # fmt: skip


@given(rows=st.lists(EVENT, max_size=8))
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_row_earns_the_first_reason_in_the_order_of_columns(
    rows: list[dict[str, str | None]], tmp_path: Path
) -> None:
    rows = [*rows, {}]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (records,) = read_batches(path, "jsonl", "", EVENTS)
    judged = validate_batch(records, EVENTS, DAY, Ingest(late_days=30))
    expected: dict[int, tuple[int, str, str]] = {}
    other = {n for n, row in enumerate(rows, start=1) if slow_other(row.get("action_name"))}
    for number, row in enumerate(rows, start=1):
        for column in EVENTS.columns if number not in other else ():
            if reason := slow_reason(column, row.get(column.name)):
                expected.setdefault(number, (number, reason, column.name))
    found = judged.rejected.select("row", "reason", "detail").rows()
    assert found == list(expected.values())
    assert judged.clean["row"].to_list() == [
        n for n in range(1, len(rows) + 1) if n not in expected | dict.fromkeys(other)
    ]
    assert judged.ignored == len(other)


def judge_labels(folder: Path, grades: list[str], terms: Ingest) -> pl.DataFrame:
    path = folder / "labels.csv"
    rows = "".join(f"l{i},q,p,{g}\n" for i, g in enumerate(grades))
    path.write_text("label_id,query,product_id,grade\n" + rows)
    (records,) = read_batches(path, "csv", "", LABELS)
    judged = validate_batch(records, LABELS, DAY, terms)
    assert judged.clean.height + judged.rejected.height == len(grades)
    return judged.clean


def test_a_switched_off_pandera_still_judges(tmp_path: Path) -> None:
    with config_context(validation_enabled=False):  # as PANDERA_VALIDATION_ENABLED would
        assert judge_labels(tmp_path, ["7"], Ingest()).is_empty()


@pytest.mark.parametrize(("meaning", "grade"), [("irrelevant", 0), ("substitute", 1)])
def test_complements_mean_what_the_market_says(meaning: str, grade: int, tmp_path: Path) -> None:
    terms = Ingest.model_validate({"complement": meaning})
    clean = judge_labels(tmp_path, ["E", "S", "C", "I", "complement", "2"], terms)
    assert clean["grade"].to_list() == [2, 1, grade, 0, grade, 2]
    assert GRADES["c"] == 0  # the declaration itself stays


FOUR = {"4": "exact", "3": "exact", "2": "substitute", "1": "irrelevant", " Best ": "exact"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_scale_of_ones_own_means_what_the_market_says(kind: str, tmp_path: Path) -> None:
    given: list[str | int | float] = ["4", "3", "2", "1", "0", "E", "best", "BEST", "4.0", "5", ""]
    if kind != "csv":
        given = [4, 3, 2, 1, 0, 5, 4.0] if kind == "parquet" else [*given, 4, 2.0, 0]
    path = tmp_path / f"labels.{kind}"
    rows = [{"label_id": f"l{i}", "query": "q", "product_id": "p", "grade": g}
            for i, g in enumerate(given)]  # fmt: skip
    if kind == "parquet":
        pl.DataFrame(rows, strict=False).write_parquet(path)
    elif kind == "csv":
        pl.DataFrame(rows).write_csv(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (records,) = read_batches(path, kind, "", LABELS)
    judged = validate_batch(records, LABELS, DAY, Ingest.model_validate({"grades": FOUR}))
    means = {"exact": 2, "substitute": 1, "irrelevant": 0}
    own = {word.strip().lower(): means[meaning] for word, meaning in FOUR.items()}
    words = [str(g).lower().removesuffix(".0") for g in given]  # the slow, obvious way
    assert judged.clean["grade"].to_list() == [own[word] for word in words if word in own]
    assert judged.rejected.height == sum(word not in own for word in words)
    assert set(judged.rejected["reason"]) <= {"unknown_value", "missing_value"}


def test_a_meaning_that_is_no_grade_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    given = market().model_dump(mode="json")
    given["ingest"]["grades"] = {"4": "excellent"}
    path.write_text(json.dumps(given))
    with pytest.raises(ConfigError, match=r"ingest\.grades\.4.*'exact', 'substitute' or 'irr"):
        parse_market(path)


def test_another_meaning_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    given = market(ingest=Ingest(tolerance=0.5)).model_dump(mode="json")
    given["ingest"]["complement"] = "exact"
    path.write_text(json.dumps(given))
    with pytest.raises(ConfigError, match=r"ingest\.complement.*'irrelevant' or 'substitute'"):
        parse_market(path)


def test_validate_depends_on_the_terms_that_it_reads_and_on_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings({"CSRM_HOME": str(tmp_path)})
    land_lines(settings, DAY, "zh-TW/labels.jsonl", [label(1, "q", "p1", "C")])
    land = run_step("land", market(), {}, {"day": DAY}, settings)

    def validated(terms: Ingest) -> tuple[str, list[int]]:
        ref = run_step("validate", market(ingest=terms), {"land": land}, {}, settings)
        found = open_artifact(settings, ref).file("clean/000.parquet")
        return ref, pl.read_parquet(found)["grade"].to_list()

    first, grades = validated(Ingest())
    assert grades == [0]
    assert validated(Ingest(tolerance=0.7)) == (first, [0])
    other, grades = validated(Ingest(complement="substitute"))
    assert (other != first, grades) == (True, [1])
    caplog.set_level("INFO", logger="csrm")
    assert validated(Ingest(late_days=5))[0] == first  # what came out is the same
    assert "step validate: running for" in caplog.text
    own, grades = validated(Ingest(grades={"c": "exact"}))
    assert (own not in (first, other), grades) == (True, [2])
