"""Rows in quarantine, judged again: a step beside the nightly ones, run by hand."""

from __future__ import annotations

import logging
from dataclasses import asdict

from csrm_tasks.ingest.reading.landing import check_day
from csrm_tasks.ingest.storage.replay import replay as replay_rows
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.ingest.validation.quarantine import check_reason
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.store.engine import open_store
from csrm_tasks.store.lake import Lake

log = logging.getLogger("csrm")


@step("replay", config=("ingest",), side_effect=True)
def replay(ctx: Context, *, day: str, run: str, reason: str = "", apply: bool = False) -> Metadata:
    """Judge a day's quarantined rows again; without ``apply`` only say what would become of them.

    ``run`` names the attempt: the same one again has the same receipt.
    """
    market, settings = ctx.market.market, ctx.settings
    lake = Lake(settings.lake, market)
    zone = ctx.market.schedule.timezone
    window = LakeWindow(open_store(settings.db_url), lake, market, check_day(day), zone)
    files = replay_rows(window, ctx.market.ingest, check_reason(reason), apply)
    for file in files:
        log.info("%s%s", "" if apply else "dry run: ", file)
    return {
        "day": day, "run": run, "applied": apply,
        **{c: sum(getattr(f, c) for f in files) for c in ("rows", "stored", "known")},
        "files": [asdict(f) for f in files],
    }  # fmt: skip
