"""``csrm``: every step as a command, and what an operator or a laptop needs around them.

Each step's command is made from its declaration: one option per input (a reference; repeated for
a list) and one per parameter. It prints the reference of what it made, which is what the next step
takes. What is wrong is one line on stderr, and the exit code is 2.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import click

from csrm_tasks.cli.base import base
from csrm_tasks.cli.data import data
from csrm_tasks.cli.demo import demo
from csrm_tasks.cli.doctor import doctor
from csrm_tasks.cli.engines import search_pipeline, vectors
from csrm_tasks.cli.gate import gate
from csrm_tasks.cli.imports import imports
from csrm_tasks.cli.judgements import export
from csrm_tasks.cli.llm_cost import llm_cost
from csrm_tasks.cli.market import market
from csrm_tasks.cli.options import market_option
from csrm_tasks.cli.quarantine import quarantine
from csrm_tasks.cli.release import release
from csrm_tasks.cli.rollout import rollout
from csrm_tasks.cli.rqa import rqa
from csrm_tasks.cli.serve import serve
from csrm_tasks.cli.study import study
from csrm_tasks.cli.study_paper import paper
from csrm_tasks.cli.study_public import cikm2025, esci, names
from csrm_tasks.errors import ArtifactError, CsrmError, disk_full_as_one_line
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps.declaration import Step, all_steps
from csrm_tasks.steps.night import take_in
from csrm_tasks.steps.running import run_step
from csrm_tasks.threads import set_default


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 well, 2 wrong or refused, 130 ended."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("csrm").setLevel(logging.INFO)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    set_default()
    try:
        with disk_full_as_one_line("this command", load_settings().home):
            code: Any = cli.main(args=args, prog_name="csrm", standalone_mode=False)
    except CsrmError as e:
        click.echo(f"csrm: {' '.join(str(e).split())}", err=True)
        return 2
    except ModuleNotFoundError as e:  # an extra that this installation goes without
        if str(e.name).startswith("csrm_tasks"):
            raise
        click.echo(f"csrm: {e.name} is not installed; the extras are in docs/INSTALL.md", err=True)
        return 2
    except click.ClickException as e:
        context = getattr(e, "ctx", None)
        asked = "csrm" if context is None else context.command_path
        click.echo(f"csrm: {e.format_message()} (see {asked} --help)", err=True)
        return 2
    except click.Abort:
        click.echo("csrm: interrupted; rerun to resume", err=True)
        return 130
    except Exception as e:  # a command that only reads: what decides says so itself
        from csrm_tasks.release import away

        who = away.which(e)
        if who is None or who == away.STORAGE:  # a fault of ours, or a file's
            raise
        click.echo(f"csrm: {away.trouble(who, e)}; try again", err=True)
        return 2
    return code if isinstance(code, int) else 0


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


def step_command(spec: Step) -> click.Command:
    """Return the command of a step, with options from its declaration."""

    def invoke(market: str, **given: Any) -> None:
        inputs = {n: given[n] for n in (*spec.inputs, *spec.optional, *spec.many)}
        params = {n: given[n] for n in spec.params if given[n] is not None}
        click.echo(run_step(spec.name, market, inputs, params, load_settings(market=market)))

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

    settings = load_settings(market=ref.split("/")[0])
    manifest = ArtifactStore(settings.artifacts, settings.cache).manifest(ref)
    if manifest is None:
        raise ArtifactError(f"artifact {ref!r} does not exist under {settings.artifacts}")
    click.echo(json.dumps(manifest, indent=2, ensure_ascii=False))


@cli.command()
@market_option
@click.option("--day", required=True, help="Day, YYYY-MM-DD.")
def ingest(market: str, day: str) -> None:
    """Take one day in: land, validate, store, aggregate, publish."""
    from csrm_tasks.artifacts import ArtifactStore

    settings = load_settings(market=market)
    ref = take_in(market, settings, day)
    click.echo(ref)
    facts = ArtifactStore(settings.artifacts, settings.cache).open(ref).facts
    rows, aside, ignored = (facts[name] for name in ("rows_in", "quarantined", "ignored"))
    click.echo(f"{rows:,} rows: {aside:,} in quarantine, {ignored:,} ignored")
    click.echo(f"{_digest(settings, market, day)}  digest of {market} {day}")


@cli.command()
@market_option
@click.option("--day", help="Day, YYYY-MM-DD; default all days.")
def digest(market: str, day: str | None) -> None:
    """Print one number for all that is stored: equal stores have equal digests."""
    click.echo(
        f"{_digest(load_settings(market=market), market, day)}  digest of {market} {day or ''}"
    )


def _digest(settings: Settings, market: str, day: str | None) -> str:
    from csrm_tasks.store import open_store, reading
    from csrm_tasks.store.digest import store_digest
    from csrm_tasks.store.lake import Lake

    with reading(open_store(settings.db_url)) as connection:
        return store_digest(connection, Lake(settings.lake, market), market, day)


groups = (
    base, market, imports, export, data, quarantine, release, rollout, gate, rqa, serve, demo,
    study,
)  # fmt: skip
for group in groups:
    cli.add_command(group)
for plugged in (vectors, search_pipeline):
    export.add_command(plugged)
for public in (names, cikm2025, esci, paper):
    study.add_command(public)
cli.add_command(llm_cost)
cli.add_command(doctor)
