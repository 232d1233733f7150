"""``csrm``: every step as a command, and what an operator or a laptop needs around them.

Each step's command is made from its declaration: one option per input (a reference; repeated for
a list) and one per parameter. It prints the reference of what it made, which is what the next step
takes. What is wrong is one line on stderr, and the exit code is 2.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from csrm_tasks.errors import ArtifactError, CsrmError
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps.registry import Step, all_steps, run_step


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 well, 1 aborted, 2 wrong or refused."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("csrm").setLevel(logging.INFO)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    try:
        code: Any = cli.main(args=args, prog_name="csrm", standalone_mode=False)
    except CsrmError as e:
        click.echo(f"csrm: {' '.join(str(e).split())}", err=True)
        return 2
    except click.ClickException as e:
        click.echo(f"csrm: {e.format_message()} (see csrm --help)", err=True)
        return 2
    except click.Abort:
        return 1
    return code if isinstance(code, int) else 0


def home_settings(market: str) -> Settings:
    """Return the settings for work on ``market``: ``CSRM_HOME``, else ``.csrm/{market}``."""
    from csrm_tasks.demo.runner_home import default_home

    return load_settings({"CSRM_HOME": str(default_home(market)), **os.environ})


class Commands(click.Group):
    """The commands below, and one for every registered step, made when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return own commands first, then the steps in the order of the pipeline."""
        own = sorted(self.commands)
        return [*own, *(n for n in map(command_name, all_steps()) if n not in own)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return an own command, or the one made from the step's declaration."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        found = {command_name(n): s for n, s in all_steps().items()}.get(cmd_name)
        return step_command(found) if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write two lists: commands, and the pipeline's steps."""
        named = [(n, self.get_command(ctx, n)) for n in self.list_commands(ctx)]
        for title, own in (("Commands", True), ("Steps", False)):
            rows = [
                (n, c.get_short_help_str()) for n, c in named if c and (n in self.commands) is own
            ]
            with formatter.section(title):
                formatter.write_dl(rows)


def command_name(step: str) -> str:
    """Return the command of a step: ``train_llm`` is ``csrm train-llm``."""
    return step.replace("_", "-")


market_option = click.option("--market", required=True, envvar="CSRM_MARKET", help="Market name.")


def step_command(spec: Step) -> click.Command:
    """Return the command of a step, with options from its declaration."""

    def invoke(market: str, **given: Any) -> None:
        inputs = {n: given[n] for n in (*spec.inputs, *spec.optional, *spec.many)}
        params = {n: given[n] for n in spec.params if given[n] is not None}
        click.echo(run_step(spec.name, market, inputs, params, home_settings(market)))

    options: list[click.Parameter] = [
        click.Option(["--market"], required=True, help="Market name.")
    ]
    options += [_input_option(n, required=n in spec.inputs) for n in (*spec.inputs, *spec.optional)]
    options += [
        click.Option([_flag(n), n], multiple=True, metavar="REF", help="Input; may be repeated.")
        for n in spec.many
    ]
    options += [_param_option(spec, n) for n in spec.params]
    return click.Command(
        command_name(spec.name), params=options, callback=invoke, help=spec.summary
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _input_option(name: str, *, required: bool) -> click.Option:
    return click.Option([_flag(name), name], required=required, metavar="REF", help="Input.")


def _param_option(spec: Step, name: str) -> click.Option:
    kind, parameter = spec.types[name], spec.params[name]
    required = parameter.default is parameter.empty
    if kind is bool:
        flags = f"{_flag(name)}/--no-{name.replace('_', '-')}"
        return click.Option([flags, name], default=None, required=required, help="Parameter.")
    shown = "Parameter." if required else f"Parameter; default {parameter.default!r}."
    return click.Option([_flag(name), name], type=kind, required=required, help=shown)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Cold-start query-product relevance: the retraining system of one or many markets."""


@cli.command()
def steps() -> None:
    """List every step with its inputs and parameters."""
    for name, spec in all_steps().items():
        optional = [f"[{n}]" for n in spec.optional]
        inputs = [*spec.inputs, *optional, *(f"{n}…" for n in spec.many)]
        params = [f"{n}: {spec.types[n].__name__}" for n in spec.params]
        click.echo(f"{name}({', '.join(params)}) ← {', '.join(inputs) or 'nothing'}")
        click.echo(f"    {spec.summary}")


@cli.command()
@click.argument("ref")
def show(ref: str) -> None:
    """Print the manifest of an artifact: its files, facts, inputs and configuration."""
    from csrm_tasks.artifacts import ArtifactStore

    settings = home_settings(ref.split("/")[0])
    manifest = ArtifactStore(settings.artifacts, settings.cache).manifest(ref)
    if manifest is None:
        raise ArtifactError(f"artifact {ref!r} does not exist under {settings.artifacts}")
    click.echo(json.dumps(manifest, indent=2, ensure_ascii=False))


@cli.command()
@market_option
@click.option("--day", required=True, help="Day, YYYY-MM-DD.")
def ingest(market: str, day: str) -> None:
    """Take one day in: land, validate, store, aggregate, publish."""
    settings = home_settings(market)
    ref = run_step("land", market, {}, {"day": day}, settings)
    ref = run_step("validate", market, {"land": ref}, {}, settings)
    ref = run_step("store", market, {"validate": ref}, {}, settings)
    ref = run_step("aggregate", market, {"store": ref}, {"day": day}, settings)
    click.echo(run_step("publish_day", market, {"aggregate": ref}, {"day": day}, settings))


@cli.group()
def quarantine() -> None:
    """Rows that broke their contract and were set aside."""


@quarantine.command("list")
@market_option
@click.option("--day", required=True, help="Day, YYYY-MM-DD.")
def quarantine_list(market: str, day: str) -> None:
    """Count a day's quarantined rows by reason and kind of file."""
    from csrm_tasks.ingest.days import quarantine_counts
    from csrm_tasks.store import open_store, reading

    with reading(open_store(home_settings(market).db_url)) as connection:
        for reason, kind, rows in quarantine_counts(connection, market, day):
            click.echo(f"{rows:>10,}  {kind:<13} {reason}")


@cli.group()
def release() -> None:
    """Releases: who was live when, and why; approve, go back."""


@release.command()
@market_option
def history(market: str) -> None:
    """Print the ledger, oldest first."""
    from csrm_tasks.release import manage

    for e in manage.history(home_settings(market), market):
        click.echo(f"{e.seq:>4}  {e.at[:19]}  {e.action:<12} {e.release_id}  {e.actor}: {e.reason}")


@release.command()
@market_option
@click.option("--at", help="ISO 8601 time; default now.")
def live(market: str, at: str | None) -> None:
    """Print the release that is live, or was at a time; nothing where none is."""
    from csrm_tasks.release import manage

    found = manage.live(home_settings(market), market, at)
    if found:
        click.echo(found)


@release.command()
@market_option
def verify(market: str) -> None:
    """Check the ledger's hash chain, and repair aliases and routing from it."""
    from csrm_tasks.release import manage

    settings = home_settings(market)
    rows = manage.verify(settings, market)
    repaired = manage.reconcile(settings, market)
    click.echo(f"{rows} rows verified; repaired: {', '.join(repaired) or 'nothing'}")


def decision_options(command: Any) -> Any:
    """Add who decides, and why."""
    why = click.option("--reason", required=True, help="Why, for the ledger.")
    who = click.option("--actor", required=True, envvar="USER", help="Who decides; default $USER.")
    return market_option(who(why(command)))


@release.command()
@decision_options
@click.argument("release_id")
def approve(market: str, release_id: str, actor: str, reason: str) -> None:
    """Approve a registered release whose verdict is PASS."""
    from csrm_tasks.release import manage

    entry = manage.approve(home_settings(market), market, release_id, actor, reason)
    click.echo(f"{entry.release_id} approved, row {entry.seq}")


@release.command()
@decision_options
@click.option("--leaving", help="Release to leave; refused when another one is live.")
def rollback(market: str, actor: str, reason: str, leaving: str | None) -> None:
    """Make the release before the live one live again."""
    from csrm_tasks.release import manage

    entry = manage.rollback(home_settings(market), market, actor, reason, leaving)
    click.echo(f"{entry.release_id} is live again, row {entry.seq}")


@cli.group()
def demo() -> None:
    """The generated market: generate it, run everything on it, look at it."""


def demo_options(command: Any) -> Any:
    """Add the options that ``run`` and ``ui`` share."""
    for option in (
        click.option("--market", default="demo", show_default=True, help="Market name."),
        click.option("--port", default=8080, show_default=True, help="Port of Airflow."),
        click.option("--mlflow-port", default=5000, show_default=True, help="Port of MLflow."),
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
    from csrm_tasks.demo.generate import generate

    click.echo(generate(market, home_settings(market), data))


@demo.command()
@demo_options
@data_option
def run(market: str, port: int, mlflow_port: int, data: Path | None) -> int:
    """Run everything on a real Airflow: ingest, cold start, nights, retraining."""
    from csrm_tasks.demo.runner import run_demo

    return run_demo(market, port=port, mlflow_port=mlflow_port, data=data)


@demo.command()
@demo_options
def ui(market: str, port: int, mlflow_port: int) -> int:
    """Start Airflow and MLflow for looking around; Ctrl-C ends them."""
    from csrm_tasks.demo.runner import serve_ui

    return serve_ui(market, port=port, mlflow_port=mlflow_port)


@demo.command()
@click.option("--market", default="demo", show_default=True, help="Market name.")
def stop(market: str) -> None:
    """End what a killed run or ui has left running."""
    from csrm_tasks.demo.runner_home import Home
    from csrm_tasks.demo.runner_processes import stop_leftovers

    ended = stop_leftovers(Home.of(market).processes)
    click.echo(f"ended: {', '.join(ended)}" if ended else "nothing was running")


if __name__ == "__main__":
    sys.exit(main())
