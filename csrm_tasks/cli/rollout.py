"""``csrm rollout``: how far a release has come, and what a person decides about it."""

from __future__ import annotations

import click

from csrm_tasks.cli.options import market_option
from csrm_tasks.cli.release import decision_options
from csrm_tasks.settings import load_settings


@click.group()
def rollout() -> None:
    """Rollouts: what one can detect, where one stands, decide a held one, simulate."""


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
        mixed = 0 if state.launched else state.current.interleave
        share += f", {mixed} % interleaved" if mixed else ""
        asks += "; held by a person: csrm rollout resume lets it go on" if state.paused else ""
        click.echo(f"{state.release} against {state.control}: step {state.step}, {share}{asks}")
        if not config.rollout.steps and not state.launched:
            click.echo("  the market's file has no rollout steps any more: it will be given up")
        for row in (e for e in entries if e.seq >= state.turn and e.action == "judged"):
            click.echo(f"  {row.payload['day']} {row.payload['outcome']}: {row.reason}")
    if next_up is not None:
        click.echo(f"candidate awaiting rollout: {next_up.release_id}")


@rollout.command()
@market_option
def plan(market: str) -> None:
    """Print what each step of the market's plan can detect, and in how many days it decides."""
    from csrm_tasks.errors import RefusedError
    from csrm_tasks.markets import load_market
    from csrm_tasks.release.online.planning import table
    from csrm_tasks.release.online.traffic import recent
    from csrm_tasks.store import open_store, reading

    settings = load_settings(market=market)
    config = load_market(market, settings.markets)
    if not config.rollout.steps:
        raise RefusedError(f"{market} has no rollout steps: what passes the gate goes to everybody")
    with reading(open_store(settings.db_url)) as connection:
        traffic = recent(connection, market, config.target_locale)
    click.echo("\n".join(table(config.rollout, traffic)))


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


@rollout.command()
@click.option("--quick", is_flag=True, help="Small: shows that it works, not how well.")
@click.option("--seed", default=0, show_default=True)
def sensitivity(quick: bool, seed: int) -> None:
    """Print how few sessions interleaving and how few judgements audits by strata need."""
    import json

    from csrm_tasks.demo.study import audit_world, interleaving
    from csrm_tasks.demo.study.rollouts import markdown

    sizes = (
        (interleaving.QUICK, audit_world.QUICK)
        if quick
        else (interleaving.Size(), audit_world.Size())
    )
    parts = (
        interleaving.rows(sizes[0], seed),
        interleaving.equal_rows(sizes[0], seed),
        audit_world.rows(sizes[1], seed),
    )
    click.echo("\n\n".join(markdown(rows) for rows, _ in parts))
    figures = {name: round(value, 4) for _, found in parts for name, value in found.items()}
    click.echo("\n" + json.dumps({"name": "rollout_sensitivity", "figures": figures}))
