"""``csrm export judgements`` and ``csrm import judgements`` (docs/JUDGEMENTS.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csrm_tasks.cli.imports import imports
from csrm_tasks.cli.options import market_option
from csrm_tasks.settings import load_settings

# As judgements/formats/registry.py has them, which would load polars for every --help
FORMATS = (
    "opensearch", "quepid", "quepid-csv", "rre", "trec", "rank-eval", "label-studio", "argilla",
)  # fmt: skip
FILE = click.Path(path_type=Path)
locale_option = click.option(
    "--locale", metavar="LOCALE", help="Language of the queries; default the market's target."
)


@click.group()
def export() -> None:
    """Write what other tools read."""


@export.command("judgements")
@market_option
@click.option("--to", type=click.Choice(FORMATS), required=True, help="Tool that is to read them.")
@click.option(
    "--what", type=click.Choice(("consensus", "gold", "soft", "audits")), default="consensus",
    show_default=True, help="What raters agree on, gold, the live LLM's grades, answers to audits.",
)  # fmt: skip
@click.option("--out", type=FILE, required=True, metavar="FOLDER", help="Where files are written.")
@locale_option
@click.option("--snapshot", metavar="REF", help="Of consensus or gold; default the newest.")
@click.option("--release", metavar="ID", help="Must be live; default of soft and audits: what is.")
@click.option(
    "--grades", metavar="RATING=MEANING,…",
    help="How exact, substitute and irrelevant are written; default 2, 1, 0.",
)  # fmt: skip
@click.option("--index", metavar="NAME", help="Search index, of rank-eval and rre.")
@click.option("--allow-gold", is_flag=True, help="Gold may leave: nothing will learn from it.")
def export_them(market: str, locale: str | None, **asked: Any) -> None:  # noqa: ANN401
    """Write judgements of a market as files of a search or annotation tool."""
    from csrm_tasks.judgements.writing import Export, export_judgements
    from csrm_tasks.markets import load_market

    settings = load_settings(market=market)
    config = load_market(market, settings.markets)
    wanted = Export(locale=locale or config.target_locale, **asked)
    for line in export_judgements(wanted, config, settings):
        click.echo(line)


@imports.command("judgements")
@market_option
@click.option(
    "--from", "form", type=click.Choice(FORMATS), required=True, help="Tool that wrote the files."
)
@click.option("--day", required=True, metavar="YYYY-MM-DD", help="Day to land the labels on.")
@locale_option
@click.option(
    "--grades", metavar="RATING=MEANING,…",
    help="What ratings mean: exact, substitute, complement, irrelevant, unrateable.",
)  # fmt: skip
@click.option("--rater", metavar="NAME", help="Who judged, where files do not say; default FROM.")
@click.option(
    "--as", "become", type=click.Choice(("labels", "gold")), default="labels", show_default=True,
    help="What they become: votes to learn from, or gold that is held out.",
)  # fmt: skip
@click.option(
    "--adjudicator", metavar="NAME", help="Rater who decides where others of gold differ."
)
@click.option("--question", metavar="NAME", help="Which question is the grade, of annotations.")
@click.option("--queries", type=FILE, metavar="FILE", help="Queries of qrels: number, tab, query.")
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE…")
def import_them(market: str, form: str, day: str, files: tuple[Path, ...], **said: Any) -> None:  # noqa: ANN401
    """Land judgements that a search or annotation tool exported; ingest takes them in."""
    from csrm_tasks.ingest.reading.landing import check_day
    from csrm_tasks.judgements import scales
    from csrm_tasks.judgements.formats.book import Asked
    from csrm_tasks.judgements.landing import Import, import_judgements
    from csrm_tasks.judgements.reading import Wanted
    from csrm_tasks.markets import load_market

    settings = load_settings(market=market)
    config = load_market(market, settings.markets)
    wanted = Wanted(
        form, Asked(said["question"], said["queries"]),
        None if said["grades"] is None else scales.parse(said["grades"]), said["rater"],
        config.ingest.complement,
    )  # fmt: skip
    asked = Import(
        wanted, check_day(day), said["locale"] or config.target_locale, said["become"] == "gold",
        said["adjudicator"],
    )  # fmt: skip
    for line in import_judgements(files, asked, config, settings):
        click.echo(line)
