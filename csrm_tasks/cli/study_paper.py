"""``csrm study paper``: both papers' tables and figures, over seeds."""

from __future__ import annotations

import click

from csrm_tasks.settings import load_settings


@click.command()
@click.option("--market", default="demo", show_default=True,
              help="demo: generated ones; else a market whose data were taken in.")  # fmt: skip
@click.option("--only", metavar="PART,…",
              help="ladder, baselines, titles, distil, labels, curation; default all.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=7, show_default=True,
              help="Seeds at most; looked at when there are 4, 7, 14 or 28.")  # fmt: skip
@click.option("--first", default=10, show_default=True, help="First seed to run.")
@click.option("--from", "start", type=int, show_default="as --first",
              help="The study's first seed, where another process runs it.")  # fmt: skip
@click.option("--quick", is_flag=True,
              help="As small as can be, apart: tells whether it runs.")  # fmt: skip
def paper(
    market: str, only: str | None, seeds: int, first: int, start: int | None, quick: bool
) -> None:
    """Train, judge and compare what the papers have; the report grows part by part."""
    import torch

    from csrm_tasks.demo.paper.page import reported

    torch.set_num_threads(load_settings().threads)
    of = first if start is None else start
    page = reported(market, of, range(first, first + seeds), only, quick)
    click.echo(page.with_suffix(".md").read_text(encoding="utf-8"))
    click.echo(f"report: {page}")
