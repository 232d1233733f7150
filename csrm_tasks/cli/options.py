"""What the commands share: options."""

from __future__ import annotations

import click

market_option = click.option("--market", required=True, envvar="CSRM_MARKET", help="Market name.")
