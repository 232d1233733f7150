"""What the commands share: options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])  # what options are added to


def market_file(name: str) -> Path:
    """Return the market's file; raises :class:`ConfigError` where it has none.

    A mistyped name has no rows, no releases and no quarantine: without this a command that only
    looks would say nothing, which reads as "all is well".
    """
    from csrm_tasks.errors import ConfigError
    from csrm_tasks.settings import load_settings

    folder = load_settings(market=name).markets
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise ConfigError(f"there is no market {name!r}: {path} does not exist (known: {known})")
    return path


def _known(_context: click.Context, _option: click.Parameter, name: str) -> str:
    market_file(name)
    return name


market_option = click.option(
    "--market", required=True, envvar="CSRM_MARKET", callback=_known, help="Market name."
)
