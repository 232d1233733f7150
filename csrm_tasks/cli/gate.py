"""``csrm gate``: past verdicts reached again, and how often a policy errs."""

from __future__ import annotations

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.settings import load_settings


@click.group()
def gate() -> None:
    """The gate: replay a verdict; simulate how often a market's policy errs."""


@gate.command()
@click.argument("ref")
def replay(ref: str) -> None:
    """Judge again from the inputs of gate artifact REF; it must come to the same verdict."""
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.release import judge

    settings = load_settings(market=ref.split("/")[0])
    store = ArtifactStore(settings.artifacts, settings.cache)
    verdict = judge.replay(store, store.open(ref))
    for reason in verdict["reasons"]:
        click.echo(f"  {reason}")
    click.echo(f"{verdict['outcome']} again for {verdict['release']}: {verdict['digest']}")


@gate.command()
@market_option
@click.option("--queries", default=300, show_default=True, help="Judged queries of a gold set.")
@click.option("--gates", default=2000, show_default=True, help="Simulated gates of each question.")
def simulate(market: str, queries: int, gates: int) -> None:
    """Judge simulated models by the market's policy and say how often each outcome comes."""
    from csrm_tasks.errors import RefusedError
    from csrm_tasks.evaluation.gate import NO_POLICY
    from csrm_tasks.evaluation.simulate import rates, scenes
    from csrm_tasks.markets import load_market

    policy = load_market(market, load_settings(market=market).markets).gate
    if policy is None:
        raise RefusedError(NO_POLICY)
    click.echo(f"alpha {policy.alpha}, margin {policy.margin}; {gates} gates each")
    for question, (scene, of) in scenes(policy, queries).items():
        found = rates(scene, of, gates)
        click.echo(
            f"{question}: pass {found.passed:.2%} (micro-F1 by itself {found.superior:.2%}), "
            f"fail {found.failed:.2%}"
        )
