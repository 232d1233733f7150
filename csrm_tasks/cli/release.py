"""``csrm release``: what an operator decides and looks up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from csrm_tasks.cli.options import Command, market_option
from csrm_tasks.settings import load_settings

if TYPE_CHECKING:
    from csrm_tasks.release.ledger import Entry


@click.group()
def release() -> None:
    """Releases: who was live when, and why; approve, go back."""


@release.command()
@market_option
def history(market: str) -> None:
    """Print the ledger, oldest first; a registered release with the gate's verdict."""
    from csrm_tasks.release import manage

    for e in manage.history(load_settings(market=market), market):
        said = f"{e.payload['outcome']}, " if e.action == "registered" else ""
        click.echo(
            f"{e.seq:>4}  {e.at[:19]}  {e.action:<12} {e.release_id}  {e.actor}: {said}{e.reason}"
        )


@release.command()
@market_option
@click.option("--at", help="ISO 8601 time; default now.")
def live(market: str, at: str | None) -> None:
    """Print the release that is live, or was at a time; nothing where none is."""
    from csrm_tasks.release import manage

    found = manage.live(load_settings(market=market), market, at)
    if found:
        click.echo(found)


@release.command()
@market_option
@click.argument("release_id")
def show(market: str, release_id: str) -> None:
    """Print all that was done to a release, with evidence: bundle, gate, verdict."""
    from csrm_tasks.release import manage

    for e in manage.show(load_settings(market=market), market, release_id):
        click.echo(f"{e.seq:>4}  {e.at[:19]}  {e.action} {e.release_id} by {e.actor}")
        click.echo(f"      before: {e.previous or 'nothing live'}; why: {e.reason}")
        for key, value in sorted(e.payload.items()):
            click.echo(f"      {key}: {value}")


@release.command()
@market_option
def verify(market: str) -> None:
    """Check the ledger's hash chain."""
    from csrm_tasks.release import manage

    click.echo(f"{manage.verify(load_settings(market=market), market)} rows verified")


@release.command()
@market_option
def reconcile(market: str) -> None:
    """Repair MLflow (versions, tags, aliases) and routing from the ledger."""
    from csrm_tasks.release import manage

    for repair in manage.reconcile(load_settings(market=market), market) or ["nothing to repair"]:
        click.echo(repair)


@release.command("copy")
@market_option
@click.option("--to", "target", required=True, help="Registered model of the other environment.")
@click.argument("release_id", required=False)
def copy_(market: str, target: str, release_id: str | None) -> None:
    """Copy a release (default: the live one) to another model in MLflow, as its champion."""
    from csrm_tasks.release import manage

    name, version = manage.copy(load_settings(market=market), market, target, release_id)
    click.echo(f"{name} is version {version} of {target}, its champion")


@release.command()
@click.option("--url", required=True, help="https://AIRFLOW/csrm-mlflow/aliases")
def webhook(url: str) -> None:
    """Have MLflow tell Airflow of moved aliases, signed with CSRM_MLFLOW_WEBHOOK_SECRET."""
    from csrm_tasks import tracking
    from csrm_tasks.release import alias_webhook

    api = tracking.client(load_settings())
    click.echo(alias_webhook.register(api, url, alias_webhook.read_secret()))


def decision_options(command: Command) -> Command:
    """Add who decides, and why."""
    why = click.option("--reason", required=True, help="Why, for the ledger.")
    who = click.option("--actor", required=True, envvar="USER", help="Who decides; default $USER.")
    return market_option(who(why(command)))


@release.command()
@decision_options
@click.argument("release_id")
def approve(market: str, release_id: str, actor: str, reason: str) -> None:
    """Approve a registered release whose verdict is PASS; overrules what was said before.

    A run of csrm_rollout that asks in Airflow goes on when it is answered there, too (the release
    board does both), or when the time for an answer is over.
    """
    from csrm_tasks.release import manage

    _decide(manage.approve, market, release_id, actor, reason)


@release.command()
@decision_options
@click.argument("release_id")
def reject(market: str, release_id: str, actor: str, reason: str) -> None:
    """Reject a registered release before it is rolled out; overrules what was said before."""
    from csrm_tasks.release import manage

    _decide(manage.reject, market, release_id, actor, reason)


def _decide(
    decide: Callable[..., Entry], market: str, release_id: str, actor: str, reason: str
) -> None:
    """Record a decision, let MLflow's aliases follow it, and say which row of the ledger it is."""
    from csrm_tasks.release import manage

    settings = load_settings(market=market)
    entry = decide(settings, market, release_id, actor, reason)
    manage.follow(settings, market)
    click.echo(f"{entry.release_id} {entry.action}, row {entry.seq}")


@release.command()
@decision_options
@click.option("--leaving", help="Release to leave; refused when another one is live.")
def rollback(market: str, actor: str, reason: str, leaving: str | None) -> None:
    """Give up what is being rolled out; else make the release before the live one live again.

    Right after another way back --leaving must be named: two people who see the same bad release
    go back once.
    """
    from csrm_tasks.release import manage

    settings = load_settings(market=market)
    entry = manage.rollback(settings, market, actor, reason, leaving)
    click.echo(manage.what_is_live(settings, market, entry))


@release.command()
@decision_options
@click.argument("release_id")
def restore(market: str, release_id: str, actor: str, reason: str) -> None:
    """Make a release that was rolled back live again, for everybody at once."""
    from csrm_tasks.release import manage

    settings = load_settings(market=market)
    entry = manage.restore(settings, market, release_id, actor, reason)
    click.echo(manage.what_is_live(settings, market, entry))


@release.command()
@market_option
@click.option("--apply", "really", is_flag=True, help="Delete; otherwise only say what would be.")
def prune(market: str, really: bool) -> None:
    """List artifacts that no live, previous or recent release needs, and what killed tasks and
    corrections left that nothing names; delete them if told to.
    """
    from datetime import UTC, datetime, timedelta

    from csrm_tasks.markets import load_market
    from csrm_tasks.release import retention, sweep

    settings = load_settings(market=market)
    config, now = load_market(market, settings.markets), datetime.now(UTC)
    recent = now - timedelta(days=config.retention.recent_days)
    found = retention.plan(settings, config, now)
    left = sweep.find(settings, market, recent.timestamp())
    for name, size in (*found.delete.items(), *left.lines()):
        click.echo(f"{size:>14,}  {name}")
    if really:
        retention.prune(settings, found.delete)
        sweep.sweep(settings, market, left)
    total, done = sum(found.delete.values()), "deleted" if really else "would be deleted (--apply)"
    click.echo(f"{len(found.delete)} artifacts, {total:,} bytes {done}; {len(found.keep)} stay")
    unnamed = [size for _, size in left.lines()]
    click.echo(f"{len(unnamed)} left-overs that nothing names, {sum(unnamed):,} bytes {done}")
