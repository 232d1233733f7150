"""What the commands share: options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])  # what options are added to

market_option = click.option("--market", required=True, envvar="CSRM_MARKET", help="Market name.")
