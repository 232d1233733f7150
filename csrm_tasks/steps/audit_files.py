"""What the steps of audits keep: files of an audit, and reading them with raters' answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from csrm_tasks.artifacts import Artifact
from csrm_tasks.release.ledger import Entry
from csrm_tasks.steps.declaration import Context

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.release.online.stratified import Audited

KEY, ITEMS = "key.parquet", "items.parquet"
FRAME = "frame.parquet"  # of audits by strata: every query that was ranked, and its chance


def answered(entries: Sequence[Entry], release: str) -> list[Entry]:
    """Return the ledger rows of what raters answered about ``release``, the newest per audit."""
    rows = [e for e in entries if e.release_id == release and e.action == "audited"]
    return list({e.payload["audit"]: e for e in rows if e.payload["by"] == "rater"}.values())


def answered_before(entries: Sequence[Entry], release: str, day: str) -> list[Entry]:
    """Return the same of the time when ``day``'s audit was asked for, or now where it was not yet:
    what was drawn is not drawn otherwise when answers come in.
    """
    asked = [e for e in entries if (e.action, e.release_id) == ("asked", release)]
    first = min((e.seq for e in asked if e.payload["day"] == day), default=len(entries) + 1)
    return answered([e for e in entries if e.seq < first], release)


def read_audits(ctx: Context, rows: Sequence[Entry]) -> list[Audited]:
    """Read audits by strata with what raters answered; ``rows``: of :func:`answered`."""
    import polars as pl

    from csrm_tasks.release.online import audits

    found = []
    for row in rows:
        audit = ctx.store.open(row.payload["audit"])
        items = pl.read_parquet(audit.file(ITEMS))
        found.append(
            read_audit(audit, audits.agreed(answers_of(ctx, row.payload["grades"]), items))
        )
    return found


def read_audit(audit: Artifact, grades: pl.DataFrame) -> Audited:
    """Read an audit by strata with grades: query_id, product_id, grade."""
    import polars as pl

    from csrm_tasks.release.online import audits
    from csrm_tasks.release.online.stratified import Audited, judged

    frame, pages = (pl.read_parquet(audit.file(name)) for name in (FRAME, KEY))
    compared = audits.compared(pages, grades, audit.facts["open"], audit.facts["control"])
    return Audited(frame, judged(frame, compared))


def answers_of(ctx: Context, ref: str) -> pl.DataFrame:
    """Read the answers that one row of the ledger names."""
    import polars as pl

    return pl.read_parquet(ctx.store.open(ref).file("answers.parquet"))
