"""``csrm rqa``: people judge what was retrieved (A26)."""

from __future__ import annotations

from pathlib import Path

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.settings import load_settings

FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def rqa() -> None:
    """Have people judge the titles that augment queries."""


@rqa.command()
@market_option
@click.option("--rqa", "ref", required=True, help="Reference of a build_rqa artifact.")
@click.option("--locale", required=True, help="Queries of this locale.")
@click.option("--out", type=FILE, required=True, help="CSV to write.")
def sheet(market: str, ref: str, locale: str, out: Path) -> None:
    """Write what was retrieved and is not judged yet; fill in yes or no under "correct".

    Whoever judges may say who he is under "rater_id": of several raters the majority decides.
    """
    import polars as pl

    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.records import RQA, read_table
    from csrm_tasks.retrieval import judged

    settings = load_settings(market=market)
    store = ArtifactStore(settings.artifacts, settings.cache)
    found = store.open(ref)
    queries = table(store.open(found.inputs["snapshot"]).path, "queries")
    rows = judged.sheet(
        read_table(found.file("rqa.parquet"), RQA),
        queries.filter(pl.col("locale") == locale),
        judged.read_judged(settings.landing, market, locale),
    )
    judged.write_judging_sheet(rows, out)
    click.echo(f"{len(rows)} titles to judge: {out}")


@rqa.command()
@market_option
@click.option("--locale", required=True, help="Locale of the sheet's queries.")
@click.argument("file", type=FILE)
def accept(market: str, locale: str, file: Path) -> None:
    """Check a filled-in sheet and put it among the judgements that the next build measures by.

    It may be saved by any spreadsheet as CSV, and be half filled. Of a rater's several answers the
    latest counts; sheets without a "rater_id" are one person's.
    """
    from csrm_tasks.errors import DataError
    from csrm_tasks.retrieval import judged

    if not file.is_file():
        raise DataError(f"{file} is no file; give the sheet that was filled in")
    target, answers = judged.accept(load_settings(market=market).landing, market, locale, file)
    click.echo(f"{answers} answers: {target}")
