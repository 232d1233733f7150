"""One rule of reading a value: whatever carries a delivery, its rows are the same."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from csrm_tasks.errors import ConfigError
from csrm_tasks.ingest.contract.contracts import CONTRACTS
from csrm_tasks.ingest.reading import readers
from csrm_tasks.ingest.reading.records import pick
from csrm_tasks.ingest.validation.files import Source, sort_file
from csrm_tasks.markets import parse_market
from csrm_tasks.sections import Ingest
from csrm_tasks.settings import Settings
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.tables import DAYS, FILES, fetch
from tests.data_fixtures import DAY0, KO, ZH, ingest, land_lines, market, product

DAY = "2026-01-04"
TIME = f"{DAY}T09:00:00Z"
Row = dict[str, Any]


def take(
    tmp_path: Path, data: bytes, written: str, packed: str = "", kind: str = "ubi_events",
    terms: Ingest | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame, Row]:  # fmt: skip
    """Judge a delivery: its clean rows, the rejected ones, and what is noted of it."""
    path, clean = tmp_path / "delivery", tmp_path / "clean.parquet"
    path.write_bytes(data)
    found = sort_file(Source(path, kind, written, packed), DAY, terms or Ingest(), clean)
    notes: Row = found.notes.as_json()
    return pl.read_parquet(clean), found.rejected, notes | {"dropped": found.ignored}


def nested(row: Row) -> Row:
    """A row whose names have dots, as objects in objects."""
    found: Row = {}
    for path, value in row.items():
        *names, last = path.split(".")
        node = found
        for name in names:
            node = node.setdefault(name, {})
        node[last] = value
    return found


def in_cells(row: Row) -> Row:
    """The same with each object as JSON text."""
    found = nested(row).items()
    return {k: json.dumps(v, default=float) if isinstance(v, dict) else v for k, v in found}


def as_jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(r, default=float) + "\n" for r in rows).encode()


def as_csv(rows: list[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[Row]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), target)
    return target.getvalue()


def as_map(rows: list[Row]) -> bytes:
    """Attributes as Parquet's MAP of texts, as Spark writes a flat object."""
    attributes = [
        [(k.removeprefix("event_attributes."), str(v)) for k, v in r.items() if "." in k]
        for r in rows
    ]
    table = pa.Table.from_pylist([{k: v for k, v in r.items() if "." not in k} for r in rows])
    column = pa.array(attributes, pa.map_(pa.string(), pa.string()))
    target = io.BytesIO()
    pq.write_table(table.append_column("event_attributes", column), target)
    return target.getvalue()


CARRIERS: dict[str, tuple[str, Callable[[list[Row]], bytes]]] = {
    "nested objects": ("jsonl", lambda rows: as_jsonl([nested(r) for r in rows])),
    "keys with dots": ("jsonl", as_jsonl),
    "JSON text in JSON": ("jsonl", lambda rows: as_jsonl([in_cells(r) for r in rows])),
    "CSV, names with dots": ("csv", as_csv),
    "CSV, JSON in cells": ("csv", lambda rows: as_csv([in_cells(r) for r in rows])),
    "Parquet, structs": ("parquet", lambda rows: as_parquet([nested(r) for r in rows])),
    "Parquet, names with dots": ("parquet", as_parquet),
    "Parquet, JSON in cells": ("parquet", lambda rows: as_parquet([in_cells(r) for r in rows])),
    "Parquet, map": ("parquet", as_map),
}
AS_NUMBER: dict[str, Callable[[int], Any]] = {
    "text": str, "integer": int, "float": float,
    "decimal": lambda n: Decimal(n).quantize(Decimal("0.01")),
}  # fmt: skip


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["click", "Purchase", "click_through", "addToCart", "product_hover"]),
            st.integers(0, 2**53 - 1),
            st.integers(0, 100_000),
            st.sampled_from(["v1", "v 2", '5" v']),
        ),
        min_size=1,
        max_size=5,
    ),
    ids=st.sampled_from(list(AS_NUMBER)),
    places=st.sampled_from(["text", "integer", "float"]),
)
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_carrier_gives_the_same_rows(
    events: list[tuple[str, int, int, str]], ids: str, places: str, tmp_path: Path
) -> None:
    rows = [
        {
            "action_name": action, "query_id": "q", "timestamp": TIME,
            "event_attributes.object.object_id": AS_NUMBER[ids](number),
            "event_attributes.position.ordinal": AS_NUMBER[places](place),
            "event_attributes.session_id": visit, "event_attributes.bucket": "B",
        }
        for action, number, place, visit in events
    ]  # fmt: skip
    actions = {"Purchase": "purchase", "click_through": "click", "addToCart": "add_to_cart"}
    expected = [
        (n, actions.get(action, action), str(number), place, visit, "B")
        for n, (action, number, place, visit) in enumerate(events, start=1)
        if action != "product_hover"
    ]
    for name, (written, write) in CARRIERS.items():
        if name == "Parquet, map":  # its keys are one level
            flat = {"event_attributes.object.object_id": "object_id",
                    "event_attributes.position.ordinal": "position"}  # fmt: skip
            data = write([{flat.get(k, k): v for k, v in r.items()} for r in rows])
        else:
            data = write(rows)
        clean, rejected, notes = take(tmp_path, data, written)
        columns = ("row", "action_name", "object_id", "position", "session_id", "bucket")
        assert clean.select(columns).rows() == expected, name
        assert rejected.is_empty(), name
        assert notes["dropped"] == len(events) - len(expected)


WRITINGS = {  # a JSON value, and what an identifier becomes of it
    "7": "7", "7.0": "7", '"7"': "7", '"7.0"': "7", '"007"': "007", "0.5": "0.5", '"1.10"': "1.10",
    "12345678901234567890123": "12345678901234567890123", "9007199254740993": "9007199254740993",
    "-9223372036854775809": "-9223372036854775809", '"12e4567"': "12e4567", "true": "true",
    "9007199254740993.0": None, '"9007199254740993.0"': None, "1.2345678901234568e+19": None,
    "12345678901234567890.0": None, '"1.23457E+12"': None,  # several were written so
    "1e-7": None, "1e-07": None, '"1e-07"': None, "0.0000001": None, '"1.0E-7"': None,
    "0.00012": None, "0.0012": "0.0012", '"5E-10"': "5E-10", '"12e-7"': "12e-7",
    "1e20": None, "1.0E20": None, "9007199254740993.00": None, "1e5": "100000",
}  # fmt: skip


@pytest.mark.parametrize("written", WRITINGS)
def test_numbers_that_are_identifiers(written: str, tmp_path: Path) -> None:
    line = f'{{"action_name":"click","query_id":"q","object_id":{written},"timestamp":"{TIME}"}}\n'
    good = f'{{"action_name":"click","query_id":"q","object_id":"p","timestamp":"{TIME}"}}\n'
    for data in (line, good + line + good):
        clean, rejected, _ = take(tmp_path, data.encode(), "jsonl")
        found = set(clean["object_id"]) - {"p"}
        assert found == ({WRITINGS[written]} - {None})
        assert rejected.height == (WRITINGS[written] is None)
        assert set(rejected["detail"]) <= {"object_id"}


def test_parquet_numbers_that_cannot_be_told_apart_are_no_identifiers(tmp_path: Path) -> None:
    for dtype, known, lost in ((pl.Float64, 2**53 - 1, 2**53), (pl.Float32, 2**24 - 1, 2**24)):
        labels = pl.DataFrame({
            "label_id": ["a", "b", "c"], "query": ["q"] * 3, "grade": [2.0, 1.0, None],
            "product_id": pl.Series([known, lost, 7], dtype=dtype),
            "rater_id": pl.Series([lost, float("nan"), known], dtype=dtype),
        })  # fmt: skip
        target = io.BytesIO()
        labels.write_parquet(target)
        clean, rejected, notes = take(tmp_path, target.getvalue(), "parquet", kind="labels")
        assert clean.select("product_id", "rater_id").rows() == [(str(known), "")]
        reasons = [("wrong_type", "product_id"), ("missing_value", "grade")]
        assert rejected.select("reason", "detail").rows() == reasons
        assert notes["unreadable"] == {"rater_id": 1}


@pytest.mark.parametrize("number", [1e-7, 1.5e-5, 2.0**60, 1e22])
def test_a_float_with_several_writings_is_an_identifier_in_no_format(
    number: float, tmp_path: Path
) -> None:
    row = {"action_name": "click", "query_id": "q", "object_id": number, "timestamp": TIME}
    for write, written in ((as_jsonl, "jsonl"), (as_csv, "csv"), (as_parquet, "parquet")):
        _, rejected, _ = take(tmp_path, write([row]), written)
        assert rejected.select("reason", "detail").rows() == [("wrong_type", "object_id")], written


WIDE: dict[str, Callable[[list[int]], Any]] = {
    "Int128": lambda n: pl.DataFrame({"object_id": pl.Series(n, dtype=pl.Int128)}),
    "UInt128": lambda n: pl.DataFrame({"object_id": pl.Series(n, dtype=pl.UInt128)}),
    "decimal256": lambda n: pa.table({"object_id": pa.array(map(Decimal, n), pa.decimal256(60))}),
    "nested decimal256": lambda n: pa.table({
        "event_attributes": [{"object": {"object_id": Decimal(v)}} for v in n]
    }, schema=pa.schema({"event_attributes": pa.struct({
        "object": pa.struct({"object_id": pa.decimal256(60)})
    })})),
}  # fmt: skip


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("packed", ["", "gz"])
def test_whole_numbers_wider_than_64_bits_are_read_exactly(
    kind: str, packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PARQUET_ROWS", 2)
    numbers = [7, 2**53 + 1, 2**64 + 1, 2**120 + 1, 0]
    target = io.BytesIO()
    table = WIDE[kind](numbers)
    rest = {"action_name": "click", "query_id": "q", "timestamp": TIME}
    if isinstance(table, pl.DataFrame):
        table.with_columns(pl.lit(v).alias(c) for c, v in rest.items()).write_parquet(target)
    else:
        for name, value in rest.items():
            table = table.append_column(name, pa.array([value] * len(numbers)))
        pq.write_table(table, target)
    data = gzip.compress(target.getvalue()) if packed else target.getvalue()
    clean, rejected, _ = take(tmp_path, data, "parquet", packed)
    assert rejected.is_empty()
    assert clean["object_id"].to_list() == [str(n) for n in numbers]
    assert clean["row"].to_list() == [1, 2, 3, 4, 5]


ODD = {  # what stands in the place of an optional field, and what is lost by it
    "ordinal as an object": ({"position": {"ordinal": {"index": 3}}}, 3, {}),
    "position as a number": ({"position": 3}, 3, {}),
    "coordinates": ({"position": {"xy": {"x": 1, "y": 2}}}, None, {}),
    "ordinal as text": ({"position": {"ordinal": "3.0"}}, 3, {}),
    "an unknown object": ({"position": {"ordinal": {"nth": 3}}}, None, {"position": 1}),
    "a list": ({"position": [3]}, None, {"position": 1}),
    "a word": ({"position": {"ordinal": "third"}}, None, {"position": 1}),
    "null": ({"position": {"ordinal": None}}, None, {}),
    "an arm as a list": ({"bucket": ["B"]}, None, {"bucket": 1}),
    "an arm as an object": ({"bucket": {"name": "B"}, "release": [1]}, None,
                            {"bucket": 1, "release": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("written", ["jsonl", "parquet"])
def test_an_optional_field_in_another_shape_costs_itself_and_not_its_event(
    case: str, written: str, tmp_path: Path
) -> None:
    attributes, position, unread = ODD[case]
    event = {"action_name": "purchase", "query_id": "q", "timestamp": TIME, "client_id": "c",
             "event_attributes": {"object": {"object_id": "p"}} | attributes}  # fmt: skip
    data = (as_jsonl if written == "jsonl" else as_parquet)([event])
    if written == "jsonl":  # beside ordinary ones
        good = event | {"event_attributes": {"object": {"object_id": "g"}}}
        data = as_jsonl([good]) * 300 + data + as_jsonl([good])
    clean, rejected, notes = take(tmp_path, data, written)
    assert rejected.is_empty()
    [found] = clean.filter(object_id="p").to_dicts()
    assert (found["position"], found["client_id"]) == (position, "c")
    assert notes.get("unreadable", {}) == unread


def test_a_required_field_in_another_shape_is_quarantined_with_its_bytes(tmp_path: Path) -> None:
    event = {"action_name": "click", "query_id": "q", "timestamp": TIME}
    rows = [event | {"object_id": v} for v in ({"id": "p"}, ["p"], "p")]
    clean, rejected, _ = take(tmp_path, as_jsonl(rows), "jsonl")
    assert clean["object_id"].to_list() == ["p"]
    assert rejected["reason"].to_list() == ["malformed_row"] * 2
    assert [json.loads(r) for r in rejected["raw"]] == rows[:2]


def test_products_in_rank_order_in_every_carrier(tmp_path: Path) -> None:
    search = {"query_id": "q", "user_query": "milk", "timestamp": TIME}
    for hits in (["p1", 2.0, None, "p3"], [], None):
        row = search | {"query_response_hit_ids": hits}
        texts = search | {"query_response_hit_ids": json.dumps(hits) if hits is not None else ""}
        typed = hits and [None if h is None else str(h) for h in hits]
        deliveries = [
            ("jsonl", as_jsonl([row])), ("csv", as_csv([texts])), ("parquet", as_parquet([texts])),
            ("parquet", as_parquet([search | {"query_response_object_ids": typed}])),
        ]  # fmt: skip
        for written, data in deliveries:
            clean, rejected, _ = take(tmp_path, data, written, kind="ubi_queries")
            assert rejected.is_empty()
            [found] = clean["query_response_hit_ids"].to_list()
            assert (found or None) == ((hits and ["p1", "2", None, "p3"]) or None)
    pandas = as_csv([search | {"query_response_hit_ids": "['p1', 'p2']"}])
    clean, _, _ = take(tmp_path, pandas, "csv", kind="ubi_queries")
    assert clean["query_response_hit_ids"].to_list() == [["p1", "p2"]]
    odd = as_jsonl([search | {"query_response_hit_ids": v} for v in ({"p": 1}, [["p"]])])
    clean, _, notes = take(tmp_path, odd, "jsonl", kind="ubi_queries")
    assert clean["user_query"].to_list() == ["milk", "milk"]
    assert notes["unreadable"] == {"query_response_hit_ids": 2}


LISTS: dict[str, tuple[Any, list[str | None] | None, int]] = {  # what stands there; read; lost
    "a list": (["p0", "p1"], ["p0", "p1"], 0),
    "of one": (["p0"], ["p0"], 0),
    "as text": ('["p0", "p1"]', ["p0", "p1"], 0),
    "of one, as text": ('["p0"]', ["p0"], 0),
    "as Python writes it": ("['p0', 'p1']", ["p0", "p1"], 0),
    "of numbers, as text": (" [1, 2.0, null] ", ["1", "2", None], 0),
    "of long floats, as text": ("[9007199254740993.0, 7]", ["9007199254740993.0e+0", "7"], 0),
    "of none, as text": ("[]", [], 0),
    "of lists, as text": ('[["p0"]]', None, 1),
    "a name": ("p0", None, 1),
    "a number": (7, None, 1),
    "names and commas": ("p0,p1", None, 1),
    "half a list": ('["p0", "p1"', None, 1),
    "blanks": ("  ", None, 0),
    "nothing": (None, None, 0),
}
SEARCH = {"query_id": "q", "user_query": "milk", "timestamp": TIME}


@pytest.mark.parametrize("place", ["query_response_hit_ids", "query_response_objects_ids"])
@pytest.mark.parametrize("case", LISTS)
def test_a_list_is_the_same_in_every_format(case: str, place: str, tmp_path: Path) -> None:
    value, read, lost = LISTS[case]
    row = SEARCH | {place: value}
    plain = SEARCH | {place: ["g"]}
    cell = json.dumps(value) if isinstance(value, list) else value
    for data, written in (
        (as_jsonl([row]), "jsonl"), (as_jsonl([plain] * 300 + [row, plain]), "jsonl"),
        (as_csv([SEARCH | {place: cell}]), "csv"), (as_parquet([row]), "parquet"),
    ):  # fmt: skip
        clean, rejected, notes = take(tmp_path, data, written, kind="ubi_queries")
        assert rejected.is_empty()
        found = clean.filter(pl.col("query_response_hit_ids").list.first().ne_missing("g"))
        expected = read or None
        assert [h or None for h in found["query_response_hit_ids"].to_list()] == [expected]
        assert notes.get("unreadable", {}).get("query_response_hit_ids", 0) == lost


@given(
    searches=st.lists(
        st.lists(st.none() | st.text("p0123., '[]é", max_size=6) | st.integers(0, 10**20)),
        min_size=1,
        max_size=6,
    )
)
@hypothesis_settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_lists_as_text_are_read_as_lists(searches: list[list[Any]], tmp_path: Path) -> None:
    place = "query_response_hit_ids"
    typed = [[i if i is None else str(i) for i in hits] for hits in searches]
    found = [
        take(tmp_path, data, written, kind="ubi_queries")[0][place].to_list()
        for data, written in (
            (as_jsonl([SEARCH | {"query_id": f"q{n}", place: h} for n, h in enumerate(searches)]),
             "jsonl"),
            (as_jsonl([SEARCH | {"query_id": f"q{n}", place: json.dumps(h)}
                       for n, h in enumerate(searches)]), "jsonl"),
            (as_csv([SEARCH | {"query_id": f"q{n}", place: json.dumps(h)}
                     for n, h in enumerate(searches)]), "csv"),
            (as_parquet([SEARCH | {"query_id": f"q{n}", place: h} for n, h in enumerate(typed)]),
             "parquet"),
        )
    ]  # fmt: skip
    assert all(f == found[0] for f in found)


LABELS = "label_id,query,product_id,grade\n"
NOTHING = {
    "ubi_events.jsonl": b"", "ubi_events-a.jsonl.gz": gzip.compress(b""),
    "ubi_events-b.jsonl": b"\n \r\n",
    "ubi_events-c.jsonl.zst": pa.compress(b"", "zstd", asbytes=True),
    "labels.csv": b"", "labels-a.csv": LABELS.encode(), "labels-b.csv.gz": gzip.compress(b"\n"),
    "labels-c.csv.gz": gzip.compress(LABELS.encode()), "labels-d.jsonl": b"\xef\xbb\xbf",
    "ubi_queries.parquet": as_parquet([{"query_id": "q", "user_query": "q", "timestamp": TIME}]),
}  # fmt: skip


def test_files_that_say_nothing_today_make_a_quiet_day(settings: Settings) -> None:
    table = pq.read_table(io.BytesIO(NOTHING["ubi_queries.parquet"])).slice(0, 0)
    for name, data in NOTHING.items():
        path = settings.landing / "tiny" / DAY0 / KO / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if name.endswith("parquet"):
            pq.write_table(table, path)
    ingest(settings, DAY0)
    with reading(open_store(settings.db_url)) as connection:
        days = connection.execute(DAYS.select()).mappings().all()
        files = connection.execute(FILES.select()).mappings().all()
    assert [(d["day"], d["rows_in"]) for d in days] == [(DAY0, 0)]
    assert len(files) == len(NOTHING)
    assert {(f["rows_in"], f["fault"]) for f in files} == {(0, None)}


@pytest.mark.parametrize(
    ("separator", "written", "stored"),
    [
        ("/", "Food/Milk / Low fat/", "Food > Milk > Low fat"), (" > ", "A > B", "A > B"),
        ("|", "|A||B", "A > B"), ("::", "A", "A"), ("/", "/", ""), (">", "A>B", "A > B"),
    ],
)  # fmt: skip
def test_levels_of_a_category_are_joined_alike_whatever_a_market_writes(
    separator: str, written: str, stored: str, tmp_path: Path
) -> None:
    rows = [product(1, "milk", category=written), product(2, "tea")]
    terms = Ingest(category_separator=separator)
    for form, data in (
        ("jsonl", as_jsonl(rows)),
        ("csv", as_csv(rows)),
        ("parquet", as_parquet(rows)),
    ):
        clean, rejected, _ = take(tmp_path, data, form, kind="catalogue", terms=terms)
        assert rejected.is_empty()
        assert clean["category"].to_list() == [stored, ""]


@pytest.mark.parametrize("separator", ["", " ", "x" * 11])
def test_a_separator_that_separates_nothing_is_refused(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    given_ = market().model_dump(mode="json")
    given_["ingest"]["category_separator"] = separator
    path.write_text(json.dumps(given_))
    with pytest.raises(ConfigError, match=r"ingest\.category_separator"):
        parse_market(path)


def test_what_could_not_be_read_is_told_with_the_day(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{ZH}/catalogue.jsonl", [product(1, "茶") | {"brand": ["a"]}])
    made = ingest(settings, DAY0)
    assert made["publish_day"].facts["notes"] == {"unreadable": {"catalogue: brand": 1}}
    with reading(open_store(settings.db_url)) as connection:
        notes = fetch(connection, FILES.select().with_only_columns(FILES.c.stored), {"n": pl.Int64})
    assert notes["n"].to_list() == [1]


def test_contracts_name_no_column_twice() -> None:
    for contract in CONTRACTS.values():
        usual = [p for c in contract.columns for p in c.usual]
        assert len(usual) == len(set(usual))


def test_a_list_of_fixed_size_is_a_list() -> None:
    table = pl.DataFrame({"query_id": ["s1"], "user_query": ["a"], "timestamp": ["2026-01-04"]})
    hits = pl.Series("query_response_hit_ids", [["p0", "p1"]], pl.Array(pl.String, 2))
    found, missing = pick(table.with_columns(hits), CONTRACTS["ubi_queries"])
    assert found["query_response_hit_ids"].to_list() == [["p0", "p1"]] and not missing
