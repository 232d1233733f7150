"""``csrm quarantine``: rows that broke their contract are counted, looked at, and replayed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.settings import load_settings

SHOWN = 200  # characters of a row on a terminal

day_option = click.option("--day", default="", help="Day, YYYY-MM-DD; default: every day.")
reason_option = click.option("--reason", default="", help="Reason code; default: every one.")


@click.group()
def quarantine() -> None:
    """Rows that broke their contract and were set aside."""


@contextmanager
def _chosen(market: str, day: str, reason: str) -> Iterator[tuple[Any, Any]]:
    from csrm_tasks.ingest.reading.landing import check_day
    from csrm_tasks.ingest.validation.quarantine import Chosen, check_reason
    from csrm_tasks.store import open_store, reading

    chosen = Chosen(market, check_day(day) if day else "", check_reason(reason))
    with reading(open_store(load_settings(market=market).db_url)) as connection:
        yield connection, chosen


@quarantine.command("list")
@market_option
@day_option
@reason_option
def list_counts(market: str, day: str, reason: str) -> None:
    """Count quarantined rows by day, kind of file and reason."""
    from csrm_tasks.ingest.validation.quarantine import counts

    with _chosen(market, day, reason) as (connection, chosen):
        for on, kind, why, rows in counts(connection, chosen):
            click.echo(f"{on}  {rows:>10,}  {kind:<13} {why}")


@quarantine.command()
@market_option
@day_option
@reason_option
@click.option("--limit", default=20, show_default=True, help="Rows to show.")
@click.option(
    "--raw", type=click.Path(path_type=Path),
    help="Folder: write all chosen rows there as delivered, for mending, and show none.",
)  # fmt: skip
def show(market: str, day: str, reason: str, limit: int, raw: Path | None) -> None:
    """Show quarantined rows: where they stood, what is wrong, and what was delivered."""
    from csrm_tasks.ingest.validation.quarantine import printable, rows, write_raw

    with _chosen(market, day, reason) as (connection, chosen):
        if raw is not None:
            for path, count in write_raw(connection, chosen, raw).items():
                click.echo(f"{count:>10,}  {path}")
            return
        for row in rows(connection, chosen, limit):
            number = f" row {row.number}" if row.number else ""
            click.echo(f"{row.day} {row.file}{number}: {row.reason} {row.detail}".rstrip())
            click.echo(f"    {_cut(printable(row.raw[: 4 * SHOWN]))}")


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


@quarantine.command()
@market_option
@click.option("--day", required=True, help="Day, YYYY-MM-DD.")
@reason_option
@click.option("--apply", is_flag=True, help="Store what is good now; else only say what would be.")
def replay(market: str, day: str, reason: str, apply: bool) -> None:
    """Judge a day's quarantined rows again; with --apply, store the good ones and publish."""
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.ingest.storage.replay import Replayed
    from csrm_tasks.steps.running import run_step

    settings = load_settings(market=market)
    given = {"day": day, "reason": reason, "apply": apply, "run": uuid.uuid4().hex}
    ref = run_step("replay", market, {}, given, settings)
    facts = ArtifactStore(settings.artifacts, settings.cache).open(ref).facts
    for file in facts["files"]:
        click.echo(Replayed(**file))
    if apply:
        ref = run_step("aggregate", market, {"store": ref}, {"day": day}, settings)
        click.echo(run_step("publish_day", market, {"aggregate": ref}, {"day": day}, settings))
    else:
        click.echo("nothing was changed; --apply does it")
