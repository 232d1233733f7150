"""Every writer of CSV that users have: each row is read as it was meant, or lies in quarantine.

What was written is known, so no reader of ours takes part in the judgement: a row that was read
must be one that was written, every byte delivered must be the bytes of some row, and the
identifier of a row that was not read must be in the bytes of a refused one.
"""

from __future__ import annotations

import csv
import io
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow.csv as pa_csv
import pytest

from csrm_tasks.ingest.contract.contracts import CONTRACTS, Reason
from csrm_tasks.ingest.reading import readers
from csrm_tasks.ingest.reading.readers import read_batches, read_raw
from csrm_tasks.ingest.reading.records import FAULT
from csrm_tasks.sections import Ingest
from csrm_tasks.store.lake_engines import open_engine
from tests.ingest.test_ingest_aggregates import LOCAL

CATALOGUE = CONTRACTS["catalogue"]
Row = tuple[str, ...]
Table = list[Row]
Writer = Callable[[Table], bytes]
PIECES = [
    '27"', '"', '""', '"Best"', '5" x 7"', ",", ", ", "a", "LED", "燈", "우유", " ", "S,M", "x,y,z",
    "\n", "\n", "\r\n", "\\", '\\"', "1,000", "'", ";", "red, green", '",', ',"', "C:\\new", "\t",
]  # fmt: skip
HEADERS = [
    ("product_id", "title"), ("title", "product_id"), ("product_id", "title", "brand"),
    ("product_id", "brand", "title"), ("brand", "product_id", "title", "category"),
    ("product_id", "category", "brand", "title", "description"),
]  # fmt: skip


def tables(seed: int, count: int, pieces: Sequence[str] = PIECES) -> Iterator[Table]:
    """Draw tables of up to 14 rows below their header, texts in every column but the identifier."""
    draw = random.Random(seed)
    for _ in range(count):
        header = draw.choice(HEADERS)
        odd = draw.choice([0.1, 0.4, 0.9])
        yield [header, *(row_of(draw, header, i, odd, pieces) for i in range(draw.randint(1, 14)))]


def row_of(draw: random.Random, header: Row, number: int, odd: float, pieces: Sequence[str]) -> Row:
    """Draw a row; the share ``odd`` of its texts is not plain."""
    texts = ("".join(draw.choices(pieces, k=draw.randint(1, 5))) if draw.random() < odd else
             draw.choice(["plain", "Lamp 7", "電視", "a b"]) for _ in header)  # fmt: skip
    return tuple(
        f"id{number:03}" if name == "product_id" else text
        for name, text in zip(header, texts, strict=True)
    )


def by_csv(end: str = "\n", **dialect: object) -> Writer:
    def write(table: Table) -> bytes:
        target = io.StringIO()
        csv.writer(target, lineterminator=end, **dialect).writerows(table)  # type: ignore[arg-type]
        return target.getvalue().encode()

    return write


def by_polars(style: str) -> Writer:
    def write(table: Table) -> bytes:
        return frame_of(table).write_csv(quote_style=style).encode()  # type: ignore[arg-type]

    return write


def by_pandas(**options: object) -> Writer:
    def write(table: Table) -> bytes:
        frame = pd.DataFrame(table[1:], columns=list(table[0]))
        return frame.to_csv(index=False, **options).encode()  # type: ignore[call-overload, no-any-return]

    return write


def by_pyarrow(style: str) -> Writer:
    def write(table: Table) -> bytes:
        target = io.BytesIO()
        options = pa_csv.WriteOptions(quoting_style=style)
        pa_csv.write_csv(frame_of(table).to_arrow(), target, options)
        return target.getvalue()

    return write


def by_excel(table: Table) -> bytes:
    """As Excel saves "CSV UTF-8": a mark, CR LF, quotes where needed, two columns too many."""
    quoted = re.compile(r'[",\r\n]')

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if quoted.search(text) else text

    lines = [",".join([*map(cell, row), "", ""]) for row in table]
    return ("\ufeff" + "\r\n".join(lines) + "\r\n").encode()


def frame_of(table: Table) -> pl.DataFrame:
    return pl.DataFrame(table[1:], schema=dict.fromkeys(table[0], pl.String), orient="row")


ESCAPED = {"doublequote": False, "escapechar": "\\"}
TO_THE_LETTER: dict[str, Writer] = {
    "csv": by_csv(), "csv crlf": by_csv("\r\n"), "csv all": by_csv(quoting=csv.QUOTE_ALL),
    "csv nonnumeric": by_csv("\r\n", quoting=csv.QUOTE_NONNUMERIC),
    "polars": by_polars("necessary"), "polars always": by_polars("always"),
    "polars non numeric": by_polars("non_numeric"),
    "pandas": by_pandas(), "pandas all": by_pandas(quoting=csv.QUOTE_ALL, lineterminator="\r\n"),
    "pyarrow": by_pyarrow("needed"), "pyarrow all": by_pyarrow("all_valid"), "excel": by_excel,
}  # fmt: skip
BY_BACKSLASH: dict[str, Writer] = {
    "csv none": by_csv(quoting=csv.QUOTE_NONE, escapechar="\\"),
    "csv none crlf": by_csv("\r\n", quoting=csv.QUOTE_NONE, escapechar="\\"),
    "csv escaped": by_csv(**ESCAPED),
    "csv all escaped": by_csv(quoting=csv.QUOTE_ALL, **ESCAPED),
    "pandas none": by_pandas(quoting=csv.QUOTE_NONE, escapechar="\\"),
    "pandas escaped": by_pandas(**ESCAPED),
}
WRITERS = TO_THE_LETTER | BY_BACKSLASH


class Found:
    """What was read of a delivery of some rows, checked against what was written."""

    def __init__(self, data: bytes, table: Table, path: Path) -> None:
        path.write_bytes(data)
        header, *rows = table
        key = header.index("product_id")
        batches = list(read_batches(path, "csv", "", CATALOGUE))
        frame = pl.concat(b.frame for b in batches)
        raws = [r for b in batches for r in b.raw_of(b.frame["row"].to_list())]
        again = [r for n, raw_of in read_raw(path, "csv", "") for r in raw_of(n)]
        assert raws == again
        assert frame["row"].to_list() == list(range(1, len(raws) + 1))
        body = data.removeprefix(b"\xef\xbb\xbf")[len(batches[0].header) :]
        assert bare(b"".join(raws)) == bare(body), "bytes are missing"
        good = frame[FAULT].is_null()
        self.read = [tuple(v or "" for v in r) for r in frame.filter(good).select(header).rows()]
        self.refused = dict(zip(
            frame.filter(~good)["row"], zip(frame.filter(~good)[FAULT], (
                raw for raw, is_good in zip(raws, good, strict=True) if not is_good
            ), strict=True), strict=True,
        ))  # fmt: skip
        wrong = [r for r in self.read if r not in rows]
        assert not wrong, "nobody wrote this"
        ids = [r[key] for r in self.read]
        assert len(set(ids)) == len(ids)
        lost = b"\n".join(raw for _, raw in self.refused.values())
        assert all(r[key].encode() in lost for r in rows if r[key] not in ids), "a row is missing"
        self.rows = rows


def bare(data: bytes) -> bytes:
    """Without line ends, and without blanks: a line of nothing else is no row."""
    return re.sub(rb"\s", b"", data)


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_is_read_as_it_was_meant_or_refused(name: str, tmp_path: Path) -> None:
    written = read = 0
    for number, table in enumerate(tables(14, 150)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readers, "BATCH", (1 << 20, 150, 40)[number % 3])
            found = Found(WRITERS[name](table), table, tmp_path / "f.csv")
        written, read = written + len(found.rows), read + len(found.read)
        if name in TO_THE_LETTER:
            assert {r for r, _ in found.refused.values()} <= {Reason.QUOTES, Reason.MALFORMED}
    print(name, written, read)


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., bytes]]:
    """Write tables with one JVM."""
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    scratch = tmp_path_factory.mktemp("spark")
    with open_engine(Ingest(engine="spark", spark=LOCAL), scratch, 1):
        from pyspark.sql import SparkSession

        session = SparkSession.builder.getOrCreate()

        def write(table: Table, **options: str) -> bytes:
            folder = scratch / "written"
            frame = session.createDataFrame(table[1:], list(table[0])).coalesce(1)
            frame.write.mode("overwrite").options(header="true", **options).csv(str(folder))
            return next(folder.glob("*.csv")).read_bytes()

        yield write


@pytest.mark.parametrize(
    "options", [{}, {"quoteAll": "true"}, {"escape": '"'}], ids=["default", "all", "doubled"]
)
def test_what_spark_wrote(
    options: dict[str, str], spark: Callable[..., bytes], tmp_path: Path
) -> None:
    draw = random.Random(3)
    header = HEADERS[2]
    drawn = [row_of(draw, header, i, 0.5, PIECES) for i in range(500)]
    rows = [tuple(text.strip() for text in row) for row in drawn]  # Spark does so when it writes
    found = Found(spark([header, *rows], **options), [header, *rows], tmp_path / "f.csv")
    assert len(found.read) > 0.6 * len(rows)
    inches = [r for r in rows if '"' in r[1] and not re.search(r"[\\\n]", "".join(r))]
    assert sum(r in found.read for r in inches) > 0.9 * len(inches) > 40


def unquoted(table: Table) -> bytes:
    return "".join(",".join(row) + "\n" for row in table).encode()


PLAIN = [p for p in PIECES if not re.search(r"[\\\r\n]", p)]
SIGNS = {"titles": PLAIN, "any column": [p for p in PLAIN if "," not in p]}


@pytest.mark.parametrize("where", SIGNS)
def test_signs_in_unquoted_fields_cost_their_rows_at_most(where: str, tmp_path: Path) -> None:
    """Feeds that know no quoting: any number of quotes in titles with commas, or in any column.

    Not those that make a quoted field to the letter, for nobody can tell them.
    """
    draw = random.Random(5)
    plain = lost = 0
    for number in range(400):
        header = draw.choice([h for h in HEADERS if h[-1] not in ("product_id", "title")])
        odd = draw.choice([0.02, 0.1, 0.3])
        table = [header]
        for i in range(draw.randint(2, 60)):
            row = row_of(draw, header, i, odd, SIGNS[where])
            texts = ["x" + t if len(t) > 1 and t[0] == t[-1] == '"' else t or "x" for t in row]
            if where == "titles":
                texts = [t if n in ("title", "product_id") else "LG"
                         for n, t in zip(header, texts, strict=True)]  # fmt: skip
            table.append(tuple(texts))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readers, "BATCH", (1 << 20, 150, 40)[number % 3])
            found = Found(unquoted(table), table, tmp_path / "f.csv")
        sure = [r for r in found.rows if not re.search('[",]', "".join(r))]
        plain, lost = plain + len(sure), lost + len([r for r in sure if r not in found.read])
    assert plain > 5_000
    assert lost < 0.03 * plain
