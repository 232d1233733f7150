"""``csrm llm-cost``: FLOPs, hours, cost and memory of a market's LLM, here and on GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.errors import ConfigError, CsrmError
from csrm_tasks.settings import Settings, load_settings

if TYPE_CHECKING:
    from csrm_tasks.llm.cost.formula import Shape
    from csrm_tasks.markets import MarketConfig

BASES = ("orion-14b", "qwen3-14b")


@click.command("llm-cost")
@market_option
@click.option("--base", type=click.Choice(BASES), help="Another base than the market's.")
@click.option("--labels", default=5.5e6, show_default=True, help="Judged pairs.")
@click.option("--judged", default=8.0, show_default=True, help="Of them per query.")
@click.option("--epochs", default=1.0, show_default=True, help="Passes over them per training.")
@click.option("--queries", default=1e6, show_default=True, help="Queries to score for the towers.")
@click.option("--products", default=120.0, show_default=True, help="Products per query, M + N.")
@click.option("--tflops", default=989.0, show_default=True, help="Peak of one GPU in bf16.")
@click.option("--mfu", default=0.4, show_default=True, help="Share of it that is reached.")
@click.option("--price", default=3.0, show_default=True, help="Of a GPU-hour.")
@click.option("--here", is_flag=True, help="Only the line about this machine.")
def llm_cost(
    market: str,
    base: str | None,
    labels: float,
    judged: float,
    epochs: float,
    queries: float,
    products: float,
    tflops: float,
    mfu: float,
    price: float,
    here: bool,
) -> None:
    """Estimate what training and scoring cost, by formula (docs/SCALE.md).

    With the market's own base, hours on this machine as well, after a dry run of at most a minute.
    """
    from csrm_tasks.llm.cost.formula import ORION_14B, QWEN3_14B, Shape
    from csrm_tasks.llm.cost.job import Gpu, Volume, job, memory, table, tried_steps
    from csrm_tasks.markets import load_market

    settings = load_settings(market=market)
    config = load_market(market, settings.markets)
    llm = config.llm
    if base is None:
        from transformers import AutoConfig

        from csrm_tasks.base_models import pretrained

        shape = Shape.of(AutoConfig.from_pretrained(**pretrained(llm.base)))
    else:
        shape = dict(zip(BASES, (ORION_14B, QWEN3_14B), strict=True))[base]
    if not here:
        volume = Volume(labels, judged, epochs, queries, products)
        parts = job(shape, llm, volume, tried_steps(config), config.tasks)
        click.echo(f"{base or llm.base}: {memory(shape, llm)}\n")
        click.echo(table(parts, Gpu(tflops, mfu, price), (8, 64)))
    if base is None:
        _measure(shape, config, settings)


def _measure(shape: Shape, config: MarketConfig, settings: Settings) -> None:
    from csrm_tasks.llm.cost import job
    from csrm_tasks.llm.training.dry_run import dry_run
    from csrm_tasks.llm.training.landed import landed_texts
    from csrm_tasks.towers import dry_run as towers

    try:
        texts = landed_texts(config, settings.landing)
        speed = dry_run(config.llm, shape, settings.threads, texts)
    except ConfigError:
        raise
    except CsrmError as e:  # what is for GPUs only
        click.echo(f"\n{e}")
    else:
        click.echo(f"\n{job.here(shape, config, speed)}")
        queries, products = texts
        said = towers.here(config, [q.query for q in queries], [p.title for p in products])
        if said:
            click.echo(said)
