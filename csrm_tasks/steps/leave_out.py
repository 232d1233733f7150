"""A control: each source language left out in turn."""

from __future__ import annotations

from csrm_tasks.json_files import write_json
from csrm_tasks.steps.declaration import Context, Metadata, step


@step("leave_out", inputs=["snapshot"])
def leave_out(ctx: Context) -> Metadata:
    """Train the linear baseline without each source language, and judge it on that one's dev.

    ``leave_out.json``: what :func:`csrm_tasks.evaluation.leave_out.leave_out` says.
    """
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.evaluation.gold import judgeable
    from csrm_tasks.evaluation.leave_out import leave_out as measure

    folder, market = ctx.input("snapshot").path, ctx.market
    pairs, queries, products = (table(folder, n) for n in ("pairs", "queries", "products"))
    pairs = judgeable(pairs, queries, products)
    found = measure(pairs, queries, products, market.source_locales, market.target_locale)
    write_json(ctx.out / "leave_out.json", found, sort_keys=False)
    return {one["locale"]: one.get("reason", one.get("difference")) for one in found}
