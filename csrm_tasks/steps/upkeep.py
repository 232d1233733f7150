"""Upkeep of releases: the monthly rehearsal of the way back, and what may be thrown away."""

from __future__ import annotations

from csrm_tasks import tracking
from csrm_tasks.json_files import write_json
from csrm_tasks.release import drill as rehearsal
from csrm_tasks.release.views import few_retries
from csrm_tasks.steps.declaration import Context, Metadata, step


@step("drill", side_effect=True)
@few_retries()
def drill(ctx: Context, *, run: str) -> Metadata:
    """Go back through every predecessor that must be loadable, on copies of ledger and views."""
    rehearsed = rehearsal.rehearse(
        ctx.settings, ctx.market, tracking.client(ctx.settings), ctx.work
    )
    write_json(ctx.out / "drill.json", rehearsed, sort_keys=False)
    return {"run": run, **rehearsed}
