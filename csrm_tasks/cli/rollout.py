"""``csrm rollout``: how far a release has come, and what a person decides about it."""

from __future__ import annotations

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.cli.release import decision_options
from csrm_tasks.settings import load_settings


@click.group()
def rollout() -> None:
    """Rollouts: where one stands, decide a held one, simulate."""


@rollout.command()
@market_option
def status(market: str) -> None:
    """Print what is served to whom, and how the release under way was judged."""
    from csrm_tasks.markets import load_market
    from csrm_tasks.release import ledger
    from csrm_tasks.release import rollout as room

    settings = load_settings(market=market)
    config, entries = load_market(market, settings.markets), ledger.verified(settings, market)
    state, next_up = (
        room.current_rollout(entries),
        room.next_candidate(entries, config.release.approval),
    )
    click.echo(f"live: {ledger.live(entries) or 'nothing'}")
    if state is not None:
        share = f"{state.plan.holdout} % held out" if state.launched else f"{state.weight} %"
        asks = "; held: a person decides" if state.held else ""
        asks += "; held by a person: csrm rollout resume lets it go on" if state.paused else ""
        click.echo(f"{state.release} against {state.control}: step {state.step}, {share}{asks}")
        if not config.rollout.steps and not state.launched:
            click.echo("  the market's file has no rollout steps any more: it will be given up")
        for row in (e for e in entries if e.seq >= state.turn and e.action == "judged"):
            click.echo(f"  {row.payload['day']} {row.payload['outcome']}: {row.reason}")
    if next_up is not None:
        click.echo(f"candidate awaiting rollout: {next_up.release_id}")


@rollout.command()
@decision_options
def advance(market: str, reason: str, actor: str) -> None:
    """Take a held rollout to its next step; csrm release rollback gives it up."""
    from csrm_tasks.release import manage

    state = manage.advance(load_settings(market=market), market, actor, reason)
    click.echo(f"{state.release} has passed step {state.step}")


@rollout.command()
@decision_options
def hold(market: str, reason: str, actor: str) -> None:
    """Hold the rollout that is under way at its step, whatever the evidence.

    Failures in a row still end it.
    """
    from csrm_tasks.release import manage

    row = manage.hold(load_settings(market=market), market, actor, reason)
    click.echo(f"{row.release_id} is held at step {row.payload['step']}, row {row.seq}")


@rollout.command()
@decision_options
def resume(market: str, reason: str, actor: str) -> None:
    """Let a rollout that a person holds go on by its evidence."""
    from csrm_tasks.release import manage

    row = manage.resume(load_settings(market=market), market, actor, reason)
    click.echo(f"{row.release_id} goes on at step {row.payload['step']}, row {row.seq}")


@rollout.command()
@click.option("--number", default=200, show_default=True, help="Rollouts of each kind.")
@click.option("--seed", default=0, show_default=True)
def simulate(number: int, seed: int) -> None:
    """Print what the default plan does with good, equal and bad releases, on made-up traffic."""
    from csrm_tasks.demo.study import rollouts

    found = rollouts.rollouts(number, seed)
    tables = (
        rollouts.rollout_rows(found),
        rollouts.false_rows(found),
        rollouts.conversion_rows(number, seed),
    )
    click.echo("\n\n".join(map(rollouts.markdown, tables)))
