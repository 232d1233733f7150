"""``csrm export vectors`` and ``csrm export search-pipeline`` (docs/ENGINES.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.settings import load_settings

# As engines/formats/registry.py and engines/pipeline.py have them, which would load numpy here
ENGINES = ("opensearch", "elasticsearch", "solr", "vespa")
RERANKING = ("opensearch", "elasticsearch")
FILE = click.Path(path_type=Path)
out_option = click.option(
    "--out", type=FILE, required=True, metavar="FOLDER", help="Where files are written."
)


@click.command()
@market_option
@click.option("--to", type=click.Choice(ENGINES), required=True, help="Engine that takes them.")
@out_option
@click.option(
    "--since", metavar="REF", help="Snapshot that the index has: only what changed is written."
)
@click.option("--release", metavar="ID", help="Must be live; default: what is.")
@click.option(
    "--field", metavar="NAME", default="csrm_vector", show_default=True, help="Vector field."
)
@click.option(
    "--mapping", type=FILE, metavar="FILE", help="Schema of the index there is, to be held to it."
)
@click.option(
    "--documents", metavar="PREFIX", help="Of document ids, for Vespa; default id:MARKET:product::."
)
def vectors(market: str, **asked: Any) -> None:  # noqa: ANN401
    """Write the live release's product vectors as a search engine takes them."""
    from csrm_tasks.engines.vectors import Wanted, export_vectors

    for line in export_vectors(Wanted(**asked), market, load_settings(market=market)):
        click.echo(line)


@click.command()
@market_option
@click.option("--to", type=click.Choice(RERANKING), required=True, help="Engine that re-ranks.")
@out_option
@click.option("--url", required=True, help="Scoring service, as https://scoring.shop.com.")
@click.option(
    "--id-field", "products", default="product_id", show_default=True, metavar="NAME",
    help="Field of a hit that names its product to /score.",
)  # fmt: skip
def search_pipeline(market: str, **asked: Any) -> None:  # noqa: ANN401
    """Write what lets a search engine rank its hits by /score."""
    from csrm_tasks.engines.pipeline import export_pipeline

    for line in export_pipeline(market, **asked):
        click.echo(line)
