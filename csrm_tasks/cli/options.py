"""What the commands share: the market, and the installation that holds it."""

from __future__ import annotations

import os

import click

from csrm_tasks.settings import Settings, load_settings

market_option = click.option("--market", required=True, envvar="CSRM_MARKET", help="Market name.")


def home_settings(market: str) -> Settings:
    """Return the settings for work on ``market``: ``CSRM_HOME``, else ``.csrm/{market}``."""
    from csrm_tasks.demo.runner.home import default_home

    return load_settings({"CSRM_HOME": str(default_home(market)), **os.environ})
