"""``csrm market``: a market's file begun, checked, and explained key by key."""

from __future__ import annotations

from pathlib import Path

import click

from csrm_tasks.cli.options import market_file
from csrm_tasks.settings import load_settings


@click.group()
def market() -> None:
    """A market's file: begin one, check one, say what every key means."""


@market.command()
@click.argument("name")
@click.option(
    "--source", "sources", required=True, multiple=True, metavar="LOCALE",
    help="Language with labels, as ko-KR; may be repeated.",
)  # fmt: skip
@click.option("--target", required=True, metavar="LOCALE", help="Language to start in, as zh-TW.")
@click.option("--timezone", default="UTC", show_default=True, help="Of its days, as Asia/Taipei.")
@click.option("--llm", metavar="BASE", help="Causal base model; default a tiny one to try out.")
@click.option("--encoder", metavar="BASE", help="Encoder; default a tiny one to try out.")
def new(
    name: str,
    sources: tuple[str, ...],
    target: str,
    timezone: str,
    llm: str | None,
    encoder: str | None,
) -> None:
    """Write a minimal file of market NAME; nothing is overwritten."""
    from csrm_tasks.errors import ConfigError
    from csrm_tasks.market_files.new import new_market, write_market

    if (llm is None) != (encoder is None):
        raise ConfigError("give --llm and --encoder together, or neither to try out")
    text = new_market(name, sources, target, timezone, llm, encoder)
    path = load_settings(market=name).markets / f"{name}.yaml"
    write_market(path, text)
    click.echo(f"{path}\nnext: csrm market check {name}; docs/OWN_MARKET.md says how to go on")


@market.command()
@click.argument("name")
def check(name: str) -> int:
    """Say every fault of market NAME (or a file), what surprises, and what is in effect."""
    from csrm_tasks.errors import ConfigError
    from csrm_tasks.market_files import check as checks

    is_file = name.endswith((".yaml", ".yml")) or "/" in name
    settings = load_settings(market=Path(name).stem if is_file else name)
    path = Path(name) if is_file else market_file(name)
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    checked = checks.check(path, settings)
    for fault in checked.faults:
        click.echo(f"fault: {path}: {fault}")
    for surprise in checked.surprises:
        click.echo(f"note: {surprise}")
    for key, value, default in checked.differs:
        click.echo(f"{key}: {value}" + ("" if default == "required" else f"  (default {default})"))
    click.echo(f"{path}: {len(checked.faults)} faults, {len(checked.surprises)} notes")
    return 2 if checked.faults else 0


@market.command()
def reference() -> None:
    """Print every key with its type, default, unit and effect (docs/MARKET.md)."""
    from csrm_tasks.market_files.reference import reference as text

    click.echo(text(), nl=False)
