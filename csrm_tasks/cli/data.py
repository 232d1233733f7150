"""``csrm data``: where a training row comes from, and doubtful labels looked at by people."""

from __future__ import annotations

from pathlib import Path

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.settings import load_settings

FILE = click.Path(dir_okay=False, path_type=Path)
filter_option = click.option(
    "--filter", "ref", required=True, metavar="REF", help="Reference of a filter_noise artifact."
)
sheet_option = click.option(
    "--filter", "--queue", "ref", required=True, metavar="REF",
    help="Reference of the filter_noise or review_queue artifact whose sheet it is.",
)  # fmt: skip
STEPS = {"filter_noise": "decisions.parquet", "review_queue": "queue.parquet"}
locale_option = click.option("--locale", required=True, help="Language, as ko-KR.")


@click.group()
def data() -> None:
    """Training rows traced, doubtful labels reviewed; searches that got nothing."""


@data.command()
@market_option
@click.option("--snapshot", metavar="REF", help="Snapshot; default: the market's newest.")
@click.argument("row")
def trace(market: str, snapshot: str | None, row: str) -> None:
    """Say where training row ROW came from and what was done to it.

    ROW is a pair_id (of a judged pair or a mined negative); QUERY_ID/PRODUCT_ID of a conversion
    example; or KIND:SOURCE TEXT of a translation, as title:라면.
    """
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.curation.trace import traced
    from csrm_tasks.store import open_store, reading

    settings = load_settings(market=market)
    store = ArtifactStore(settings.artifacts, settings.cache)
    with reading(open_store(settings.db_url)) as connection:
        for line in traced(store, connection, market, row, snapshot):
            click.echo(line)


@data.command()
@market_option
@filter_option
@locale_option
@click.option("--out", type=FILE, required=True, help="CSV to write.")
def review(market: str, ref: str, locale: str, out: Path) -> None:
    """Write the sheet of doubtful labels; fill in 0, 1 or 2 under "grade" and your "rater_id"."""
    _give(market, ref, locale, out)


@data.command("review-queue")
@market_option
@click.option("--queue", "ref", metavar="REF", help="A review_queue artifact; default: the newest.")
@click.option("--out", type=FILE, required=True, help="CSV to write.")
def review_queue(market: str, ref: str | None, out: Path) -> None:
    """Write the sheet of served pairs without a sure grade, those first that are worth most."""
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.errors import DataError

    settings = load_settings(market=market)
    store = ArtifactStore(settings.artifacts, settings.cache)
    if ref is None:
        made = store.published(f"{market}/review_queue")
        if not made:
            raise DataError(f"{market} has no review queue yet: set review.pairs, and retrain")
        ref = made[-1][0]
    _give(market, ref, str(store.open(ref).facts.get("locale")), out)


def _give(market: str, ref: str, locale: str, out: Path) -> None:
    """Copy a sheet, whole or not at all, and say what is next."""
    import shutil

    sent = _sent(market, ref, locale)
    part = out.with_name(f".{out.name}.part")
    shutil.copyfile(sent, part)
    part.replace(out)
    said = f"csrm data accept --market {market} --locale {locale} --day DAY --queue {ref} {out}"
    if ref.split("/")[1] != "review_queue":
        said = (
            f"csrm data accept --market {market} --locale {locale} --day DAY --filter {ref} {out}"
        )
    click.echo(f"{out}; next, with the day to land on and the filled-in file:")
    click.echo(said)


@data.command()
@market_option
@sheet_option
@locale_option
@click.option("--day", required=True, help="Day to land the labels on, YYYY-MM-DD.")
@click.argument("file", type=FILE)
def accept(market: str, ref: str, locale: str, day: str, file: Path) -> None:
    """Check a filled-in sheet and land its grades as labels of DAY; ingest takes them in.

    It may be half filled, and be given again: what is landed already is found again.
    """
    import polars as pl

    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.curation.review import land, read_review
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.errors import DataError
    from csrm_tasks.markets import load_market

    if not file.is_file():
        raise DataError(f"{file} is no file; give the sheet that was filled in")
    settings, sent = load_settings(market=market), _sent(market, ref, locale)
    store = ArtifactStore(settings.artifacts, settings.cache)
    found = store.open(ref)
    file_name = STEPS[ref.split("/")[1]]
    decisions = pl.read_parquet(found.file(file_name))
    answers = read_review(file, sent, decisions, locale)
    queries = table(store.open(found.inputs["snapshot"]).path, "queries")
    ingest = load_market(market, settings.markets).ingest
    asked = queries.filter(pl.col("locale") == locale).select("query_id", "query", "locale")
    path, new = land(settings.landing / market, day, answers, asked, ingest)
    click.echo(f"{len(answers)} labels {'landed' if new else 'were landed before'}: {path}")
    click.echo(f"next: csrm ingest --market {market} --day {day}")


@data.command("accept-budget")
@market_option
@click.option("--gate", "ref", required=True, metavar="REF", help="Gate whose label_budget.csv.")
@click.option("--day", required=True, help="Day to land the labels on, YYYY-MM-DD.")
@click.argument("file", type=FILE)
def accept_budget(market: str, ref: str, day: str, file: Path) -> None:
    """Check a filled-in label_budget.csv and land its grades as gold of DAY; ingest takes them in.

    It may be half filled, and be given again: what is landed already is found again.
    """
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.curation.budget import land_budget
    from csrm_tasks.errors import DataError
    from csrm_tasks.markets import load_market
    from csrm_tasks.steps.review import BUDGET

    if not file.is_file():
        raise DataError(f"{file} is no file; give the sheet that was filled in")
    settings = load_settings(market=market)
    config = load_market(market, settings.markets)
    if ref.split("/")[:2] != [market, "gate"]:
        raise DataError(f"{ref!r} is no gate of {market}: its report names it")
    sent = ArtifactStore(settings.artifacts, settings.cache).open(ref).file(BUDGET)
    folder, locale = settings.landing / market, config.target_locale
    path, new, count = land_budget(file, sent, folder, day, locale, config.ingest)
    click.echo(f"{count} gold labels {'landed' if new else 'were landed before'}: {path}")
    click.echo(f"next: csrm ingest --market {market} --day {day}")


@data.command()
@market_option
@locale_option
@click.option("--since", required=True, metavar="YYYY-MM-DD", help="First day of delivery.")
@click.option("--until", required=True, metavar="YYYY-MM-DD", help="Last day.")
@click.option("--out", type=FILE, required=True, help="CSV to write.")
def searches(market: str, locale: str, since: str, until: str, out: Path) -> None:
    """Write which queries found nothing, and of which nothing was clicked, by shoppers."""
    from datetime import date, timedelta

    from csrm_tasks.dataset.unanswered import COLUMNS, unanswered
    from csrm_tasks.errors import DataError
    from csrm_tasks.ingest.reading.landing import check_day
    from csrm_tasks.spreadsheets import write_sheet
    from csrm_tasks.store import open_store, reading
    from csrm_tasks.store.lake import Lake

    first, last = (date.fromisoformat(check_day(day)) for day in (since, until))
    if last < first:
        raise DataError(f"--until {until} is before --since {since}; turn them round")
    days = [(first + timedelta(n)).isoformat() for n in range((last - first).days + 1)]
    settings = load_settings(market=market)
    with reading(open_store(settings.db_url)) as connection:
        found = unanswered(connection, Lake(settings.lake, market), market, days, locale)
    rows = [{c: str(v) for c, v in row.items()} for row in found.iter_rows(named=True)]
    write_sheet(out, COLUMNS, rows)
    nothing = int(found["without_results"].sum())
    click.echo(
        f"{out}: {found.height:,} queries; {nothing:,} searches without results, "
        f"{int(found['without_clicks'].sum()):,} without clicks"
    )


def _sent(market: str, ref: str, locale: str) -> Path:
    """Return the sheet in the filter's artifact; raises :class:`DataError` where there is none."""
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.curation.review import sheet_path
    from csrm_tasks.errors import DataError

    made_by = ref.split("/")[:2]
    if made_by not in [[market, name] for name in STEPS]:
        raise DataError(
            f"{ref} is no filter_noise artifact of market {market}, and no review_queue one"
        )
    settings = load_settings(market=market)
    found = ArtifactStore(settings.artifacts, settings.cache).open(ref)
    path = sheet_path(found.path, locale)
    if not path.is_file() and "action" not in found.facts:
        raise DataError(
            f"{ref} has no sheet of {locale}: its queue has {found.facts['queue']} pairs of "
            f"{found.facts['locale']}"
        )
    if not path.is_file():
        raise DataError(
            f"{ref} has no sheet of {locale}: its action is {found.facts['action']!r} with "
            f"{found.facts['flagged']} pairs flagged in all; sheets are made by filter.action "
            "review, for languages with flagged pairs"
        )
    return path
