"""``csrm doctor``: what of an installation will not work, and the cure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from csrm_tasks.cli.options import market_file

if TYPE_CHECKING:
    from csrm_tasks.doctor.findings import Finding

WORDS = {"ok": "ok     ", "skipped": "skipped", "warning": "WARNING", "fault": "FAULT  "}


def _known(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    if name is not None:
        market_file(name)
    return name


@click.command()
@click.option("--market", callback=_known, help="Only the installation of this market.")
@click.option(
    "--timeout", default=60.0, show_default=True, type=click.FloatRange(1), metavar="SECONDS",
    help="After which a check is cut off; all of them run at once.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
def doctor(market: str | None, timeout: float, as_json: bool) -> int:
    """Say what of this installation will not work, and the cure; exit code 1 if anything.

    The store (CSRM_DB_URL), artifacts, lake and routing, MLflow, Airflow (CSRM_AIRFLOW_URL), market
    files and their base models, disk, memory, threads and clock. Nothing is changed: what is
    written to try is deleted again. Run it as the user and with the environment of the workers.
    """
    from csrm_tasks.doctor.run import diagnose, jobs

    asked = jobs(market)
    of_several = len({job.markets for job in asked if job.check == "store"}) > 1
    found: list[tuple[tuple[str, ...], Finding]] = []
    for job, findings in diagnose(asked, timeout):
        found += [(job.markets, finding) for finding in findings]
        if not as_json:
            whose = f" of {', '.join(job.markets)}" if of_several else ""
            for finding in findings:
                click.echo(line(finding, whose))
    faults = sum(finding.level == "fault" for _, finding in found)
    warnings = sum(finding.level == "warning" for _, finding in found)
    if as_json:
        click.echo(document(found, faults))
    else:
        click.echo(f"{faults} faults, {warnings} warnings")
    return 1 if faults else 0


def line(finding: Finding, whose: str) -> str:
    """Return a finding as a line, and its cure below it."""
    said = f"{WORDS[finding.level]} {finding.check}{whose}: {finding.said}"
    return f"{said}\n        do: {finding.cure}" if finding.cure else said


def document(found: list[tuple[tuple[str, ...], Finding]], faults: int) -> str:
    """Return the findings as JSON."""
    rows = [
        {"check": f.check, "markets": markets, "level": f.level, "said": f.said, "cure": f.cure}
        for markets, f in found
    ]
    return json.dumps({"ok": not faults, "findings": rows}, ensure_ascii=False, indent=1)
