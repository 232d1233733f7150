"""``csrm serve``: the reference scoring service."""

from __future__ import annotations

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.settings import load_settings


@click.command()
@market_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8090, show_default=True, help="Port to listen on.")
@click.option("--instance", help="Name of this service in its log files; default host and port.")
def serve(market: str, host: str, port: int, instance: str | None) -> None:
    """Score and rank for a search stack, by the routing document; docs/SERVING.md."""
    from csrm_tasks.serving.server import serve as run

    run(load_settings(market=market), market, host, port, instance)
