"""``csrm base``: base models added by name, checked, cut to a market's vocabulary."""

from __future__ import annotations

from pathlib import Path

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.settings import bases_folder, load_settings


@click.group()
def base() -> None:
    """Base models of this machine: add, list, show, check, trim (docs/BASES.md)."""


@base.command()
@click.argument("name")
@click.option(
    "--from", "given", metavar="SOURCE",
    help="A folder, a .gguf file, or org/name@commit; not for gemma-270m and e5-small.",
)  # fmt: skip
@click.option("--accept-terms", is_flag=True, help="The terms shown are read and accepted.")
def add(name: str, given: str | None, accept_terms: bool) -> None:
    """Keep a base as NAME, for base:NAME in a market file; added twice, it is as it was."""
    from csrm_tasks.bases.adding import add_base
    from csrm_tasks.bases.models import quietly
    from csrm_tasks.bases.packages import known_bases
    from csrm_tasks.bases.sources import source_of
    from csrm_tasks.errors import ConfigError

    source = source_of(given) if given else known_bases().get(name)
    if source is None:
        known = ", ".join(known_bases())
        raise ConfigError(f"{name!r} is no base that is known by name ({known}); say --from SOURCE")
    terms = source.terms()
    if terms is not None:
        click.echo(terms)
    with quietly():
        added = add_base(bases_folder(), name, source, accept_terms=accept_terms)
    click.echo(f"{bases_folder() / name}: {'added' if added else 'is there already'}")
    click.echo(f"market file: base:{name}; next: csrm base check {name} --market MARKET")


@base.command("list")
def list_bases() -> None:
    """List the bases that are kept, with kind, size and origin."""
    from csrm_tasks.bases.record import kept_bases

    for name, record in kept_bases(bases_folder()).items():
        of = f", trimmed for {record.trimmed.market}" if record.trimmed else ""
        click.echo(
            f"base:{name}  {record.kind}  {record.parameters / 1e6:,.1f} M {record.dtype}  "
            f"{record.vocabulary:,} tokens{of}  {record.origin.source}"
        )


@base.command()
@click.argument("name")
def show(name: str) -> None:
    """Print what base NAME is: origin, revision, licence, digests, dtype, parameters."""
    from csrm_tasks.base_models import KEPT, base_digest
    from csrm_tasks.bases.record import LICENCE, read_record

    folder = _folder(name)
    record = read_record(folder)
    lines = {
        "folder": folder, "kind": record.kind, "origin": record.origin.source,
        "revision": record.origin.revision, "licence": record.origin.licence,
        "licence texts": ", ".join(sorted(p.name for p in folder.glob(f"{LICENCE}/*"))) or "none",
        "dtype": record.dtype, "parameters": f"{record.parameters:,}",
        "vocabulary": f"{record.vocabulary:,}",
        "bytes": f"{sum(f['size'] for f in record.files):,}",
        "digest of its files": record.digest, "identity": base_digest(f"{KEPT}{name}"),
    }  # fmt: skip
    if record.trimmed:
        lines |= {f"trimmed, {key}": value for key, value in vars(record.trimmed).items()}
    for key, value in lines.items():
        click.echo(f"{key}: {value}")


def _folder(name: str) -> Path:
    from csrm_tasks.base_models import KEPT, pretrained

    return Path(pretrained(f"{KEPT}{name}")["pretrained_model_name_or_path"])


@base.command()
@click.argument("name")
@market_option
def check(name: str, market: str) -> None:
    """Load base NAME and say what it is worth to a market; refused ones in one line, exit code 2.

    Labels and attention are those that training needs; tokens, perplexity, memory and speed are on
    the market's own titles.
    """
    import torch

    from csrm_tasks.bases.check import checked
    from csrm_tasks.bases.models import quietly
    from csrm_tasks.bases.texts import market_texts
    from csrm_tasks.markets import load_market

    settings = load_settings(market=market)
    torch.set_num_threads(settings.threads)
    config = load_market(market, settings.markets)
    with quietly():
        for line in checked(_folder(name), config, market_texts(settings, market)):
            click.echo(line)


@base.command()
@click.argument("name")
@market_option
@click.option("--as", "new", metavar="NAME", help="Name of the trimmed base; default NAME-MARKET.")
@click.option(
    "--layers", type=click.IntRange(min=1), help="Keep the first so many layers; default all."
)
def trim(name: str, market: str, new: str | None, layers: int | None) -> None:
    """Cut base NAME to the tokens that a market's texts use, as a base of its own (A61)."""
    from csrm_tasks.bases.models import quietly
    from csrm_tasks.bases.texts import encoder_prefixes, market_texts
    from csrm_tasks.bases.trim import trim_base
    from csrm_tasks.markets import load_market

    new, settings = new or f"{name}-{market}", load_settings(market=market)
    prefixes = encoder_prefixes(load_market(market, settings.markets))
    texts = market_texts(settings, market)
    with quietly():
        cut = trim_base(
            _folder(name), bases_folder() / new, market, texts, prefixes=prefixes, layers=layers
        )
        for line in cut:
            click.echo(line)
    click.echo(f"market file: base:{new}; next: csrm base check {new} --market {market}")
