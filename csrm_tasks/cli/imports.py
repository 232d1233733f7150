"""``csrm import``: public data sets as a market's deliveries."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from csrm_tasks.cli.options import Command
from csrm_tasks.settings import load_settings

if TYPE_CHECKING:
    from csrm_tasks.layouts.landing import Landing

FIRST_DAY = "2025-01-06"  # a Monday; fixed, for the same import is the same files


class Asked(TypedDict):
    """The options of every import."""

    market: str
    sources: tuple[str, ...]
    target: str
    day: str


@click.group("import")
def imports() -> None:
    """Land a public data set as a market; docs/IMPORT.md says what becomes of its rows."""


def layout_options(layout: str, target: str) -> Callable[[Command], Command]:
    """Return what adds the options of an import to a command; ``target``: their default."""

    def add(command: Command) -> Command:
        for option in reversed((
            click.option("--data-dir", "folder", required=True, metavar="FOLDER",
                         type=click.Path(path_type=Path), help="Where the data set's files lie."),
            click.option("--market", default=layout, show_default=True, help="Market to land as."),
            click.option("--source", "sources", default=("en-US",), show_default=True,
                         multiple=True, metavar="LOCALE",
                         help="Language with labels; may be repeated."),
            click.option("--target", default=target, show_default=True, metavar="LOCALE",
                         help="Language to start in."),
            click.option("--day", default=FIRST_DAY, show_default=True, metavar="YYYY-MM-DD",
                         help="Of the first split; each further one is a week later."),
        )):  # fmt: skip
            command = option(command)
        return command

    return add


def land(
    layout: str,
    read: Callable[[Landing], None],
    given: Asked,
) -> None:
    """Import a layout as a market, and say what landed."""
    from csrm_tasks.ingest.reading.landing import check_day
    from csrm_tasks.layouts import run

    day = date.fromisoformat(check_day(given["day"]))
    asked = run.Asked(layout, given["market"], given["sources"], given["target"], day)
    for line in run.import_layout(asked, load_settings(market=asked.market), read):
        click.echo(line)


@imports.command()
@layout_options("cikm2025", "ko-KR")
def cikm2025(folder: Path, **asked: Unpack[Asked]) -> None:
    """CIKM AnalytiCup 2025: {train,dev,test}_{QC,QI}.txt."""
    from csrm_tasks.layouts import cikm2025

    land("cikm2025", lambda into: cikm2025.read(folder, into), asked)


@imports.command()
@layout_options("esci", "ja-JP")
@click.option(
    "--version", type=click.Choice(("small", "large")), default="large", show_default=True,
    help="small is task 1's, large tasks 2's and 3's.",
)  # fmt: skip
def esci(folder: Path, version: str, **asked: Unpack[Asked]) -> None:
    """Amazon's Shopping Queries Data Set: examples and products as Parquet."""
    from csrm_tasks.layouts import esci

    land("esci", lambda into: esci.read(folder, into, version), asked)


@imports.command()
@layout_options("wands", "en-GB")
def wands(folder: Path, **asked: Unpack[Asked]) -> None:
    """WANDS of Wayfair: query.csv, product.csv, label.csv; English only."""
    from csrm_tasks.layouts import wands

    land("wands", lambda into: wands.read(folder, into), asked)


@imports.command()
@layout_options("trec", "en-GB")
@click.option(
    "--grades", "scale", metavar="GRADE=MEANING,…",
    help="What the qrels' grades mean: exact, substitute, complement, irrelevant.",
)  # fmt: skip
def trec(folder: Path, scale: str | None, **asked: Unpack[Asked]) -> None:
    """TREC product search: qrels, queries and collection; English only."""
    from csrm_tasks.layouts import trec

    grades = None if scale is None else _scale(scale)
    land("trec", lambda into: trec.read(folder, into, grades), asked)


@imports.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--kind", metavar="KIND", help="What the file is, as docs/DATA.md calls it; default: by names.",
    type=click.Choice(
        ("catalogue", "translations", "labels", "query_categories", "ubi_queries", "ubi_events")
    ),
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE",
    help="Where the mapping is written; default FILE.columns.yaml.",
)  # fmt: skip
def propose(path: Path, kind: str | None, out: Path | None) -> None:
    """Propose which column of a file is which of ours, for a person to confirm."""
    from csrm_tasks.ingest.proposal.propose import propose as propose_columns
    from csrm_tasks.ingest.proposal.propose import write_proposal

    out = out or path.with_name(f"{path.name}.columns.yaml")
    found = propose_columns(path, kind)
    write_proposal(out, found)
    for one in found.found:
        state = "" if one.sure else "unsure: "
        click.echo(
            f"{state}{one.column} = {one.name!r}, {one.confidence:.2f} ({'; '.join(one.reasons)})"
        )
    asked = ", ".join(found.missing)
    click.echo(f"{found.kind}: written to {out}; " + (f"yours to say: {asked}" if asked else
               "read it and set confirmed: true"))  # fmt: skip


def _scale(given: str) -> dict[int, str]:
    from csrm_tasks.errors import ConfigError

    found: dict[int, str] = {}
    for part in given.split(","):
        grade, _, meaning = (p.strip() for p in part.partition("="))
        if not grade.isdecimal() or meaning not in (
            "exact", "substitute", "complement", "irrelevant"
        ):  # fmt: skip
            raise ConfigError(
                f"--grades: {part!r} is no GRADE=MEANING; as 0=irrelevant,1=substitute,2=exact"
            )
        found[int(grade)] = meaning
    return found
