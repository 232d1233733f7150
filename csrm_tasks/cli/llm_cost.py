"""``csrm llm-cost``: FLOPs, GPU-hours, cost and memory of a market's LLM, before it is rented."""

from __future__ import annotations

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.settings import load_settings

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
) -> None:
    """Estimate what training and scoring cost, by formula (docs/SCALE.md)."""
    from csrm_tasks.llm.cost.formula import ORION_14B, QWEN3_14B, Shape
    from csrm_tasks.llm.cost.job import Gpu, Volume, job, memory, table
    from csrm_tasks.markets import load_market

    llm = load_market(market, load_settings(market=market).markets).llm
    if base is None:
        from transformers import AutoConfig

        from csrm_tasks.base_models import pretrained

        shape = Shape.of(AutoConfig.from_pretrained(**pretrained(llm.base)))
    else:
        shape = dict(zip(BASES, (ORION_14B, QWEN3_14B), strict=True))[base]
    parts = job(shape, llm, Volume(labels, judged, epochs, queries, products))
    click.echo(f"{base or llm.base}: {memory(shape, llm)}\n")
    click.echo(table(parts, Gpu(tflops, mfu, price), (8, 64)))
