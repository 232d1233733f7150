"""``docs/DATA.md``, what a market may deliver, written from the contracts.

``python -m csrm_tasks.ingest.guide`` rewrites it; a test compares it with what the code says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from csrm_tasks.ingest.aggregates.shoppers import MIN_SHOWN
from csrm_tasks.ingest.contract.contracts import (
    CONTRACTS,
    EARLIEST,
    GRADES,
    REASONS,
    Column,
    Contract,
)
from csrm_tasks.ingest.reading.csv_quotes import FEW, QUOTED_LIMIT
from csrm_tasks.ingest.reading.readers import BATCH, PARQUET_ROWS, RECORD_LIMIT
from csrm_tasks.ingest.validation.files import HEAD_BYTES
from csrm_tasks.sections import Ingest
from csrm_tasks.settings import PROJECT_ROOT

DATA_MD = PROJECT_ROOT / "docs" / "DATA.md"
MIB = 1 << 20

LANDING = f"""\
# What a market may deliver

Written by `python -m csrm_tasks.ingest.guide` from `ingest/contract/contracts.py`; do not edit.

## Where files lie

    {{landing}}/{{market}}/{{day}}/{{locale}}/{{kind}}[-part].{{csv|jsonl|parquet}}[.gz|.zst]

`day` is YYYY-MM-DD, `locale` one of the market's two, `kind` one of
{", ".join(f"`{kind}`" for kind in CONTRACTS)};
`part` is letters, digits, `_` and `.`, 200 at most. Files are stored in that order of kinds, so
that what refers to something comes after it.
A name that begins with a dot is an upload under way and is left alone. Anything else that is not
such a file (another name or place, a link, a pipe, a file that cannot be read) stops the day before
a row is stored, with one line that names it: put it right and run the night again. Links are never
followed, so no name reaches a file outside the landing zone.

## How files are read

- **CSV**: RFC 4180, comma, header in the first line, UTF-8. **JSONL**: one object per line; of a
  key that an object has twice the first value counts. **Parquet**: any scalar types; times without
  a zone are UTC. Columns that the contract does not know are ignored.
- **Names with dots** (`event_attributes.object.object_id`) are fields of objects (JSONL objects,
  Parquet structs and maps), names that have the dots, or any mixture, in every format. A text in
  the place of an object is read as JSON: `event_attributes` may be a CSV cell with an object in it.
  Of several places that may hold a value the first that is not empty counts.
- **Values** are read alike in every format. A number is its shortest decimal writing: 7, 7.0 and
  DECIMAL 7.00 are `7`; NaN is no value. An identifier loses a `.0` also where it is text, as
  spreadsheets and pandas write one into CSV; integers of any length are kept digit by digit. An
  identifier that is a floating-point number of 2^53 or more (of a 32-bit column: 2^24), or is
  written with an exponent (`1.2E+12`), may stand for several and is `wrong_type`; so is one below
  a thousandth, which every writer writes otherwise (`0.0000001`, `1e-07`, `1.0E-7`). A list is a
  JSON list, a Parquet list, or a text with a JSON list in it; another text is none, and counted.
- An **optional** field in a shape that cannot be read (an object or list where there should be a
  value, a position that is no whole number) costs itself and not its row: it is counted by name
  under `unreadable` in the day's `notes` (facts of `publish_day`, and the files' receipts).
- **No rows today** is said by a CSV or JSONL file of nothing but white space (or of no bytes), a
  CSV with its header only, or a Parquet file without rows, compressed or not. A Parquet file of no
  bytes is damaged.
- Byte order marks at the beginning of the file, and of any record in it (files joined by `cat`,
  also when they are compressed), are dropped. A CSV header that comes again is `malformed_row`; one
  with the same columns in another order makes the file unreadable. UTF-16 is refused.
- gzip and zstd may consist of several members or frames. A file that breaks off (truncated,
  damaged, wrong check sum) is refused as a whole, for nobody knows what its sender had to say; its
  first {HEAD_BYTES:,} bytes are kept as row 0 with the reason `unreadable_file`.
- In every other case each row is judged by itself: a bad line costs that line. Blank lines are no
  rows.
- Quotes in CSV: a field over several lines is one value where its quotes keep RFC 4180 to the
  letter. A quote inside an unquoted field (27" TV) is a character. A quote that is never closed, or
  has text behind it, costs its line (`malformed_row`). Where the lines within a field look like
  rows (as many fields as the header, commas without a blank behind them), or where backslashes
  stand before quotes, commas or line ends, the file can be read in two ways: such lines are
  `ambiguous_quotes`, from the one that opens the field to the one that closes it. If more than
  {FEW} lines look like rows, they are rows, and only the first and the last are ambiguous. So is a
  field in which a line ends and the next begins as rows do before and behind that column: one row
  lost its closing quote there, and the next its opening one. What cannot be seen: quotes that were
  lost and moved so that half of a row is a good value of the one before it and the other half a
  broken line (that one is in quarantine). Of 12,000 files with one to four quotes lost, gained or
  moved at random none had a row inside another (before this rule 17); of 1,500 whose quotes
  gathered at the ends of fields, one had half of one (before, 9 had one).
  `"27\\" TV"` (MySQL, or Spark without `option("escape", '"')`) is read where nothing else in the
  line is escaped; every other escape is in quarantine: let the writer double its quotes.
- Columns without a name, and empty fields behind the last column, as spreadsheets append them, are
  ignored.
- Texts and identifiers are composed (Unicode NFC): what macOS writes decomposed is the same text.
- Values lose white space and invisible characters at their ends; an empty value is a missing one.
- Memory: `validate` takes text {BATCH // MIB} MiB at a time and Parquet {PARQUET_ROWS:,} rows at
  a time, so it does not grow with the file; only rejected rows are kept until the file is done.
  A CSV record with a quote open for more than {QUOTED_LIMIT // MIB} MiB is cut at its lines; a file
  with a record longer than {RECORD_LIMIT // MIB} MiB is unreadable.
- **Times**: ISO 8601 with an offset (with or without its colon), `Z`, `UTC`, or none of them (UTC,
  whatever the market's zone: exporters write so); year first and four digits, also with slashes, a
  blank for the `T`, a decimal comma, up to nine decimals, without seconds or minutes, or compact
  (`20260105T100000Z`); a date alone is its first moment, `24:00:00` the first of the next day, a
  leap second (`23:59:60`) too. A zone's name counts for nothing behind an offset: Java's
  `10:00+09:00[Asia/Seoul]`, Go's `10:00:00 +0900 KST`. Or a mail date (`Mon, 05 Jan 2026 10:00:00
  +0000`), or an epoch: 9 or 10 digits are seconds (decimals allowed), 13 milliseconds, 16
  microseconds, 19 nanoseconds. The same in CSV, JSONL and Parquet. What could be two times is
  `wrong_type`: a day or month first, two-digit years, zones by other letters than UTC without an
  offset, eight digits alone. So are the forms of ISO 8601 that no exporter known to us writes:
  weeks (`2026-W02-1`), days of the year (`2026-005`), months, decimals of minutes or hours
  (`10:00.5`), seconds in an offset, intervals.
  From {EARLIEST:%Y-%m-%d} to half a day after the delivery's day ends in the market's time zone.

## Days

A market's days are those of its clocks: `schedule.timezone` in its file (an IANA name such as
`Asia/Seoul`; UTC by default) says when its nights run and when its days begin and end, days of 23
or 25 hours among them. A night takes in the day on which its interval starts: at five in the
morning, yesterday. A folder's day is the market's day; the files in it may be of sessions that went
on past midnight (half a day is granted, which with UTC is the end of the day anywhere on Earth). A
session delivered on two days is one session.

Nights may come in any order, late, again, or not at all. Files have one order, whenever they came:
by day, kind and name; what a file comes to depends on those before it only. One that comes after
later ones takes its place before them, and where those say something of the same identifiers, or of
products and searches that it brings, they are judged again, summed up and published again (decision
record 6). So any order ends in one `csrm digest`, snapshot and gold.
"""

CATEGORIES = """\
A market that joins the levels of a category otherwise says so, `ingest: {category_separator: "/"}`;
they are stored joined by ' > ' all the same, without empty ones. Another setting holds for files
delivered from then on. The same holds for `query_categories`."""

CATEGORY_LABELS = """\
Read by markets whose `tasks` name `qc` ([TASKS.md](TASKS.md)); the others store them. A category
need not be one of the catalogue's. The query-item task has no file of its own: it reads
`labels`."""

BELOW = """\
## What happens to a row

rows in = stored + quarantined + known + ignored, for every file. A row is **known** when it says
again what is stored. An identifier that is stored with other content is a conflict and the first
one stays, by the order of files and rows; a correction is another file under the same name, which
replaces the earlier one (decision record 6). Products are an exception: another content is a new
version, and the latest day wins. An event has no identifier: one that equals a stored one in all it
says is that one again.

A row of UBI is **ignored** when it is about something else: an action that is not in the table
(`view`, `login`, …), a search without a text (browsing), a row that names an application other than
those of the market's `ingest: {{applications: [web]}}` (none named: all count; a row that names
none, and what our own serving writes, always do), and an event that follows an ignored search
without a text of its own. Ignored rows break no rule and stop no night: they are left out of the
share below, and counted by what they are in the day's `notes`.

A search's `query_id` may come again at another time: with the same text as another page of it,
which is one search with more impressions, or with another text as another search. An event belongs
to the last search of its `query_id` before it, its own client's where it has one. At one time two
texts are a conflict.

Of one rater's grades of a pair the last counts: by `rated_at`, then day of delivery, file and row;
where one of them has no `rated_at`, by day, file and row. Identifiers are no clock.

## When a product leaves

Two ways, for a shop's feed has one or the other:

- a row whose `deleted` is true (its `title` may be empty);
- a delivery of the whole catalogue: a file whose part begins with `full`
  (`catalogue-full.jsonl`, `catalogue-full.1.csv.gz`). All such files of a day and locale together
  are the catalogue; what neither they nor any later catalogue file names is gone. Where one of them
  is empty or has rows in quarantine for what they say themselves (they may be products), the day
  takes nothing out until the file is corrected.

It is back as soon as a later catalogue file names it, with whatever content. While it is gone it is
in no snapshot and no refresh: with the next of them it leaves BM25 and vector indexes, the vectors
that are served, and the titles that RQA adds. What was said of it (labels, events) is taken in and
kept; its pairs are left out, are counted as dropped, and count again when it is back.

A day whose share of quarantined rows, of those that are not ignored, exceeds the market's
`ingest.tolerance`, or with a file that could not be read, is not published; everything stays
stored. `csrm quarantine list|show|replay`.

A late event is taken in with the day of its delivery. One that is more than `ingest.late_days`
older than its delivery (default {late_days}, the length of the behaviour window: it could not count
any more) is `too_old`: it stands for a clock that runs wrong or a file of another time. To take in
history, deliver it in folders of its own days, or raise the bound for that market.

## What UBI leaves to be told

- **Session**: of the record, or `session_id` in its attributes; else that of another record of the
  same search; else all that a client does with no more than 30 minutes between is one session,
  named `{{client_id}}@{{beginning}}`. Records are those delivered on one day.
- **Impressions**: `query_response_hit_ids` of a search count as impressions at their ranks, from 1,
  each product once and only those of the catalogue, unless impressions of that search are delivered
  as events. It does not matter which comes first, or on which day: the day of the search is
  summed up again when such events come later.

## Whose events count, and how often

A **shopper** is a `client_id`, or the `session_id` of a row without one; rows with neither are
nobody's, are never taken for one person's, and all count. Of one shopper, {impressions}
impressions, {actions} clicks, {actions} carts and {actions} purchases of one product for one query
count in a day of delivery: the first ones by time.

A **machine** is a shopper that makes more than {per_minute} searches, or actions (clicks, carts,
purchases), in a minute or {per_day:,} in a day; that asks more than {breadth} different queries or
acts on more than {breadth} different products in a day; or that clicks on {click_share:.0%} or more
of what it is shown, from {shown} impressions on. Its rows and those of its sessions stay stored,
but are no evidence: not of pairs and positions, and not in the sessions that a rollout is judged
by, in either release. How many there were is among the facts of the step `aggregate`
(`machines`, `machine_events`, `machine_searches`, `machine_reasons`, `over_bound`), in a snapshot's
`health.json` and in the report; `health.machines` compares their share with the week before.

All bounds are a market's own (`ingest: {{behaviour: …}}`); a front end that logs a search for every
key stroke needs higher ones. Others hold for the days that are summed up from then on.

## Reasons

The first rule that a row breaks, in the order of the columns, is its reason; the detail names the
column.

{reasons}

## Texts that a program might execute

A value such as `=cmd|' /C calc'!A0`, `+1`, `@SUM(1)` or `'); DROP TABLE` is a text like any other:
it is stored as it was delivered, for a query may well begin so. Nothing ever executes it: SQL is
written with bound parameters only, the reports escape HTML, and the terminal shows what cannot be
printed as escapes. The CSV that is written for people, an audit's tasks and `csrm rqa sheet`, has
an apostrophe before a text that a spreadsheet would execute, which is taken off when it comes back;
`csrm quarantine show … --raw FOLDER` gives the bytes as delivered (CSV behind a byte order mark),
to be mended in a text editor, not opened in a spreadsheet.
"""


def data_guide() -> str:
    """Return the text of ``docs/DATA.md``."""
    reasons = _table(("reason", "meaning"), ((f"`{r}`", text) for r, text in REASONS.items()))
    bounds = Ingest().behaviour.model_dump()
    below = BELOW.format(reasons=reasons, late_days=Ingest().late_days, shown=MIN_SHOWN, **bounds)
    return "\n".join([LANDING, *map(_section, CONTRACTS.values()), below])


def _section(contract: Contract) -> str:
    heads = ("column", "what it is", "type", "required", "values", "found as")
    parts = [f"## `{contract.kind}`", contract.about, _table(heads, map(_row, contract.columns))]
    if contract.kind == "catalogue":
        parts.append(CATEGORIES)
    if contract.kind == "query_categories":
        parts.append(CATEGORY_LABELS)
    if any(c.vocabulary is GRADES for c in contract.columns):
        parts.append(_grades())
    return "\n\n".join(parts) + "\n"


def _row(column: Column) -> Sequence[str]:
    found = ", ".join(f"`{path}`" for path in column.paths)
    required = "yes" if column.required else "no"
    return f"`{column.name}`", column.about, column.holds, required, _values(column), found


def _values(column: Column) -> str:
    if column.vocabulary is GRADES:
        return "see below"
    if column.vocabulary is not None:
        return ", ".join(
            f"`{word}`" if word == value else f"`{word}` ({value})"
            for word, value in column.vocabulary.items()
        )
    if column.holds == "list":
        return "identifiers"
    if column.holds == "integer":
        return f"{column.at_least:,} to {column.at_most:,}"
    if column.holds == "time":
        return "see above; not `too_old`" if column.late else "see above"
    return f"up to {column.max_chars:,} characters"


def _grades() -> str:
    spellings: dict[str | int, list[str]] = defaultdict(list)
    for word, grade in GRADES.items():
        spellings[grade].append(f"`{word}`")
    rows = ((str(grade), ", ".join(words)) for grade, words in sorted(spellings.items()))
    table = _table(("grade", "written as (in any case)"), rows)
    return (
        f"{table}\n\nESCI's complement (`c`) is irrelevant unless the market says "
        "`ingest: {complement: substitute}`: a case for the phone that was asked for is not that "
        "phone.\nA market with another scale says what its words mean, and then no other is known: "
        "`ingest: {grades: {4: exact, 3: exact, 2: substitute, 1: irrelevant}}`.\n"
        "Another setting holds for files delivered from then on."
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def main(path: Path = DATA_MD) -> None:
    """Write the guide."""
    path.write_text(data_guide(), encoding="utf-8")


if __name__ == "__main__":
    main()
