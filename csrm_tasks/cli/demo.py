"""``csrm demo``: the generated market on a real Airflow, on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from csrm_tasks.cli.options import Command
from csrm_tasks.settings import load_settings


@click.group()
def demo() -> None:
    """The generated market: generate it, run everything on it, look at it."""


bases_option = click.option(
    "--bases", type=click.Choice(["real"]),
    help="real: on real base models, by the settings in markets/real (docs/BASES.md).",
)  # fmt: skip


def demo_options(command: Command) -> Command:
    """Add the options that ``run`` and ``ui`` share."""
    for option in (
        click.option("--market", default="demo", show_default=True, help="Market name."),
        bases_option,
        click.option("--port", type=int, help="Port of Airflow; else from 8080 on a free one."),
        click.option("--mlflow-port", type=int, help="Port of MLflow; else from 5000 on."),
    ):
        command = option(command)
    return command


data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of the real category and attribute names (market 'names').",
)


@demo.command("generate")
@click.option("--market", default="demo", show_default=True, help="Market name.")
@data_option
def generate_files(market: str, data: Path | None) -> None:
    """Write the market's files into its landing zone."""
    from csrm_tasks.demo.market.generate import generate

    click.echo(generate(market, load_settings(market=market), data))


@demo.command()
@demo_options
@data_option
@click.option("--accept-terms", is_flag=True, help="The terms of the real bases are accepted.")
def run(
    market: str,
    bases: str | None,
    port: int | None,
    mlflow_port: int | None,
    data: Path | None,
    accept_terms: bool,
) -> int:
    """Run everything on a real Airflow: ingest, cold start, nights, retraining."""
    from csrm_tasks.demo.runner.home import Home
    from csrm_tasks.demo.runner.run import run_demo

    home = Home.of(market, bases)
    return run_demo(home, port=port, mlflow_port=mlflow_port, data=data, accept_terms=accept_terms)


@demo.command()
@demo_options
def ui(market: str, bases: str | None, port: int | None, mlflow_port: int | None) -> int:
    """Start Airflow and MLflow for looking around; Ctrl-C ends them."""
    from csrm_tasks.demo.runner.home import Home
    from csrm_tasks.demo.runner.run import serve_ui

    return serve_ui(Home.of(market, bases), port=port, mlflow_port=mlflow_port)


@demo.command()
@click.option("--market", default="demo", show_default=True, help="Market name.")
@bases_option
def stop(market: str, bases: str | None) -> None:
    """End what a killed run or ui has left running."""
    from csrm_tasks.demo.runner.home import Home
    from csrm_tasks.demo.runner.processes import stop_leftovers

    ended = stop_leftovers(Home.of(market, bases).processes)
    click.echo(f"ended: {', '.join(ended)}" if ended else "nothing was running")
