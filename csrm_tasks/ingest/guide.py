"""``docs/DATA.md``, what a market may deliver, written from the contracts.

``python -m csrm_tasks.ingest.guide`` rewrites it; a test compares it with what the code says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from csrm_tasks.ingest.contracts import CONTRACTS, EARLIEST, GRADES, REASONS, Column, Contract
from csrm_tasks.ingest.csv_records import QUOTED_LIMIT
from csrm_tasks.ingest.files import HEAD_BYTES
from csrm_tasks.ingest.readers import BATCH, PARQUET_ROWS, RECORD_LIMIT
from csrm_tasks.ingest.shoppers import LEAST_SHOWN
from csrm_tasks.sections import Ingest
from csrm_tasks.settings import PROJECT_ROOT

DATA_MD = PROJECT_ROOT / "docs" / "DATA.md"
MIB = 1 << 20

LANDING = f"""\
# What a market may deliver

Written by `python -m csrm_tasks.ingest.guide` from `csrm_tasks/ingest/contracts.py`; do not edit.

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
- Byte order marks at the beginning are dropped. UTF-16 is refused.
- gzip and zstd may consist of several members or frames. A file that breaks off (truncated,
  damaged, wrong check sum) is refused as a whole, for nobody knows what its sender had to say; its
  first {HEAD_BYTES:,} bytes are kept as row 0 with the reason `unreadable_file`.
- In every other case each row is judged by itself: a bad line costs that line. Blank lines are no
  rows. A quote that is never closed costs the lines it stands in.
- Values lose white space and invisible characters at their ends; an empty value is a missing one.
- Memory: `validate` takes text {BATCH // MIB} MiB at a time and Parquet {PARQUET_ROWS:,} rows at
  a time, so it does not grow with the file; only rejected rows are kept until the file is done.
  A CSV record with a quote open for more than {QUOTED_LIMIT // MIB} MiB is cut at its lines; a file
  with a record longer than {RECORD_LIMIT // MIB} MiB is unreadable.
- **Times**: ISO 8601 with an offset, `Z`, or neither (UTC); a date alone is its first moment; or
  an epoch in seconds (decimals allowed) or milliseconds.
  From {EARLIEST:%Y-%m-%d} to the end of the delivery's day anywhere on Earth (UTC-12).
"""

BELOW = """\
## What happens to a row

rows in = stored + quarantined + known, for every file. A row is **known** when it says again what
is stored. An identifier that is stored with other content is a conflict and the first one stays; a
correction is another file under the same name, which replaces the earlier one (decision record 6).
Products are an exception: another content is a new version, and the latest day wins. An event has
no identifier: one that equals a stored one in all it says is that one again.

A day whose share of quarantined rows exceeds the market's `ingest.tolerance`, or with a file that
could not be read, is not published; everything stays stored. `csrm quarantine list|show|replay`.

A late event is taken in with the day of its delivery. One that is more than `ingest.late_days`
older than its delivery (default {late_days}, the length of the behaviour window: it could not count
any more) is `too_old`: it stands for a clock that runs wrong or a file of another time. To take in
history, deliver it in folders of its own days, or raise the bound for that market.

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
printed as escapes. The one CSV that is written for people, an audit's tasks, puts an apostrophe
before a text that a spreadsheet would execute;
`csrm quarantine show --raw` gives the bytes as delivered, to be mended in a text editor, not opened
in a spreadsheet.
"""


def data_guide() -> str:
    """Return the text of ``docs/DATA.md``."""
    reasons = _table(("reason", "meaning"), ((f"`{r}`", text) for r, text in REASONS.items()))
    bounds = Ingest().behaviour.model_dump()
    below = BELOW.format(reasons=reasons, late_days=Ingest().late_days, shown=LEAST_SHOWN, **bounds)
    return "\n".join([LANDING, *map(_section, CONTRACTS.values()), below])


def _section(contract: Contract) -> str:
    heads = ("column", "what it is", "type", "required", "values", "found as")
    parts = [f"## `{contract.kind}`", contract.about, _table(heads, map(_row, contract.columns))]
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
        return ", ".join(f"`{word}`" for word in column.vocabulary)
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
        "phone.\nAnother setting holds for files delivered from then on."
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
