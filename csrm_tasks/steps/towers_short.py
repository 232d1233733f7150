"""The step that gives the query tower fewer layers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from csrm_tasks import tracking
from csrm_tasks.errors import ConfigError
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.towers import load_towers, tables_of
from csrm_tasks.steps.towers_publish import publish_towers, taught_for

if TYPE_CHECKING:
    from csrm_tasks.towers.tables import TowerTables

log = logging.getLogger("csrm")


@step("shorten_query_tower", inputs=["towers", "snapshot"], optional=["scored"],
      config=["towers", "seed"])  # fmt: skip
def shorten_query_tower(ctx: Context) -> Metadata:
    """Teach a query tower of ``towers.query_layers`` layers the full one's vectors (A34).

    What it makes stands in for its input ``towers``, with thresholds of its own; the product tower
    is the same. A short tower that loses too much on dev is dropped, and the full one passed on.
    ``scored`` is what the towers learned, for thresholds by the teacher.
    """
    import torch

    from csrm_tasks.towers import measure, shorten
    from csrm_tasks.towers.train import TrainPlan

    torch.set_num_threads(ctx.settings.threads)
    config, full = ctx.market.towers, ctx.input("towers").facts
    if config.query_layers is None:
        raise ConfigError("shorten_query_tower: set towers.query_layers in the market's file")
    model, reader = load_towers(ctx)
    tables = tables_of(ctx)
    texts = _texts_to_distil(tables)
    _write_learnt(ctx, texts)
    table = reader.queries(texts)
    wanted = measure.embed(model.query, table)
    model.shorten_query(config.query_layers)
    plan = TrainPlan.of(config, ctx.market.seed, products=1)
    done = shorten.distil(model.query, table, wanted, plan, ctx.work / "checkpoint.safetensors")
    taught = taught_for(ctx, tables)
    facts = publish_towers(ctx, model, reader, tables, taught)
    lost = max(full[name] - facts[name] for name in ("dev_em_f1", "dev_defect_f1"))
    admitted = lost <= shorten.MAX_LOSS  # not a number is not
    if not admitted:
        log.warning(
            "the query tower of %d layers loses %.4f of F1 on dev (at most %.2f): the full one "
            "serves", config.query_layers, lost, shorten.MAX_LOSS,
        )  # fmt: skip
        facts = publish_towers(ctx, *load_towers(ctx), tables, taught)
    facts |= {name: full.get(name) for name in ("taught_by", "teacher") if name in full}
    facts |= {"admitted": admitted, "lost_f1": lost, "queries": len(table), "steps": plan.steps}
    metrics = {k: float(v) for k, v in facts.items() if isinstance(v, int | float)}
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref, params={"query_layers": config.query_layers},
        metrics=metrics, curves={"one_minus_cosine": done.curve},
    )  # fmt: skip
    return facts


def _write_learnt(ctx: Context, texts: list[str]) -> None:
    """Say what both towers have learnt: what the full one has, and its vectors of ``texts``."""
    import polars as pl

    from csrm_tasks.towers.learnt import FILE, write_learnt

    write_learnt(ctx.out, texts, ctx.market.target_locale)
    both = [pl.read_parquet(p) for p in (ctx.out / FILE, ctx.input("towers").file(FILE))]
    pl.concat(both).unique().sort("query_id").write_parquet(ctx.out / FILE)


def _texts_to_distil(tables: TowerTables) -> list[str]:
    """Return the distinct queries of all locales, judged or not, without dev and gold."""
    barred = tables.barred()
    return [text for text in tables.queries["norm"].unique().sort() if text not in barred]
