"""``csrm study names|cikm2025|esci``: studies on data that others have published."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from csrm_tasks.cli.imports import Asked, land, layout_options
from csrm_tasks.settings import load_settings

if TYPE_CHECKING:
    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.settings import Settings


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="Where the taxonomy's Parquet files lie.")  # fmt: skip
@click.option("--hold-out", "held_out", multiple=True, metavar="LOCALE",
              default=("zh-TW", "ja-JP", "fr-FR", "th-TH"), show_default=True,
              help="Language that nothing is learnt of; may be repeated.")  # fmt: skip
@click.option("--retriever", type=click.Choice(("shipped", "e5-small")), default="shipped",
              show_default=True, help="Base encoder of category retrieval.")  # fmt: skip
@click.option("--llm", type=click.Choice(("shipped", "gemma-270m")), default="shipped",
              show_default=True, help="Base model of query-category.")  # fmt: skip
@click.option("--retriever-steps", type=click.IntRange(min=1), help="Default: the recipe's.")
@click.option("--llm-steps", type=click.IntRange(min=1), help="Default: the recipe's.")
@click.option("--categories", type=click.IntRange(min=1), help="At most so many; default all.")
@click.option("--asked", type=click.IntRange(min=1), default=400, show_default=True,
              help="Test queries of a language that query-category is judged on.")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
def names(
    data: Path, held_out: tuple[str, ...], retriever: str, llm: str, retriever_steps: int | None,
    llm_steps: int | None, categories: int | None, asked: int, seed: int,
) -> None:  # fmt: skip
    """Category retrieval and query-category on real names, with languages held out."""
    import torch

    from csrm_tasks.demo.public.names import read_names
    from csrm_tasks.demo.public.names_study import Recipe, market_of, run_names

    settings = load_settings(market="study_names")
    torch.set_num_threads(settings.threads)
    found = read_names(data, held_out, seed, categories)
    market = market_of(found, Recipe(retriever, llm, retriever_steps, llm_steps), seed)
    _report(run_names(found, market, settings, asked), settings.home / "names.md")


def _report(parts: Iterable[str], path: Path) -> None:
    """Print a report part by part, and keep it."""
    told: list[str] = []
    for part in parts:
        click.echo(part)
        told.append(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(told), encoding="utf-8")


@click.command()
@layout_options("cikm2025", "ko-KR")
@click.option("--steps", type=click.IntRange(min=1), help="Of the LLM; default the market's.")
def cikm2025(folder: Path, steps: int | None, **asked: Unpack[Asked]) -> None:
    """AnalytiCup 2025: ladder, public figures beside it, and the submission's files."""
    from csrm_tasks.demo.public.cikm2025 import run_cikm2025
    from csrm_tasks.layouts import cikm2025 as layout

    land("cikm2025", lambda into: layout.read(folder, into), asked)
    settings, market = _market(asked["market"], steps)
    out = settings.home / "study" / asked["market"]
    _report(run_cikm2025(folder, market, settings, asked["day"], out), out / "study.md")


@click.command()
@layout_options("esci", "ja-JP")
@click.option("--version", type=click.Choice(("small", "large")), default="large",
              show_default=True, help="small is task 1's, large tasks 2's and 3's.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), help="Of the LLM; default the market's.")
def esci(folder: Path, version: str, steps: int | None, **asked: Unpack[Asked]) -> None:
    """Amazon ESCI: ladder with the metrics of its three tasks, public figures beside it."""
    from csrm_tasks.demo.public.esci import run_esci
    from csrm_tasks.layouts import esci as layout

    land("esci", lambda into: layout.read(folder, into, version), asked)
    settings, market = _market(asked["market"], steps)
    out = settings.home / "study" / asked["market"] / "study.md"
    _report(run_esci(folder, version, market, settings, asked["day"]), out)


def _market(name: str, steps: int | None) -> tuple[Settings, MarketConfig]:
    """Return an installation and its market, whose LLM takes ``steps`` steps; None: its own."""
    import torch

    from csrm_tasks.markets import load_market

    settings = load_settings(market=name)
    torch.set_num_threads(settings.threads)
    market = load_market(name, settings.markets)
    if steps is not None:
        llm = market.llm.model_copy(update={"steps": steps, "evaluate_every": steps})
        market = market.model_copy(update={"llm": llm})
    return settings, market
