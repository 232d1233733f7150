"""``csrm study``: what each step of the LLM's recipe earns on generated markets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from csrm_tasks.settings import load_settings

if TYPE_CHECKING:
    from csrm_tasks.demo.study.data import SeedMarket


@click.group(invoke_without_command=True)
@click.option("--market", type=click.Choice(["demo"]), default="demo", show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Markets.")
@click.option("--first", default=10, show_default=True, help="Seed of the first market.")
@click.pass_context
def study(context: click.Context, market: str, seeds: int, first: int) -> None:
    """Train and compare every arm of the study; the table grows seed by seed.

    With the name of another study behind it, that one instead.
    """
    if context.invoked_subcommand is not None:
        return
    import torch

    from csrm_tasks.demo.study.data import seed_market
    from csrm_tasks.demo.study.run import Recipe, run_study
    from csrm_tasks.demo.study.table import table
    from csrm_tasks.markets import load_market

    settings, recipe = load_settings(market="study"), Recipe()
    torch.set_num_threads(settings.threads)
    base = load_market(market, settings.markets)

    def market_of(seed: int) -> SeedMarket:
        return seed_market(base, settings.home, seed, recipe.products)

    for results in run_study(market_of, range(first, first + seeds), recipe):
        text = table(results)
        (settings.home / "study.md").write_text(text, encoding="utf-8")
        click.echo(text)


@study.command()
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Markets.")
@click.option("--first", default=10, show_default=True, help="Seed of the first market.")
def curation(seeds: int, first: int) -> None:
    """Does each mechanism of paper 2 act on qc and qi, in languages without train labels?"""
    import torch

    from csrm_tasks.demo.curation.arms import Recipe
    from csrm_tasks.demo.curation.market import CurationMarket, curation_market
    from csrm_tasks.demo.curation.run import run_curation
    from csrm_tasks.demo.curation.table import table
    from csrm_tasks.markets import load_market

    settings = load_settings(market="study")
    torch.set_num_threads(settings.threads)
    base, home = load_market("multi", settings.markets), settings.home / "curation"

    def market_of(seed: int) -> CurationMarket:
        return curation_market(base, home, seed)

    for results in run_curation(market_of, range(first, first + seeds), Recipe()):
        text = table(results)
        (settings.home / "curation.md").write_text(text, encoding="utf-8")
        click.echo(text)
