"""``csrm demo``: the generated market on a real Airflow, on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from csrm_tasks.cli.options import Command
from csrm_tasks.settings import load_settings


@click.group()
def demo() -> None:
    """The generated market: generate it, run everything on it, look at it."""


def demo_options(command: Command) -> Command:
    """Add the options that ``run`` and ``ui`` share."""
    for option in (
        click.option("--market", default="demo", show_default=True, help="Market name."),
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
def run(market: str, port: int | None, mlflow_port: int | None, data: Path | None) -> int:
    """Run everything on a real Airflow: ingest, cold start, nights, retraining."""
    from csrm_tasks.demo.runner.run import run_demo

    return run_demo(market, port=port, mlflow_port=mlflow_port, data=data)


@demo.command()
@demo_options
def ui(market: str, port: int | None, mlflow_port: int | None) -> int:
    """Start Airflow and MLflow for looking around; Ctrl-C ends them."""
    from csrm_tasks.demo.runner.run import serve_ui

    return serve_ui(market, port=port, mlflow_port=mlflow_port)


@demo.command()
@click.option("--market", default="demo", show_default=True, help="Market name.")
def stop(market: str) -> None:
    """End what a killed run or ui has left running."""
    from csrm_tasks.demo.runner.home import Home
    from csrm_tasks.demo.runner.processes import stop_leftovers

    ended = stop_leftovers(Home.of(market).processes)
    click.echo(f"ended: {', '.join(ended)}" if ended else "nothing was running")
