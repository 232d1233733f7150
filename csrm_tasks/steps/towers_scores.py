"""The step that scores judged pairs with exported towers, and says which queries they knew."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from csrm_tasks.errors import DataError
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.towers import tables_with

if TYPE_CHECKING:
    from csrm_tasks.towers.serving.cross import CrossRuntime
    from csrm_tasks.towers.serving.runtime import TowerRuntime

log = logging.getLogger("csrm")


@step("score_towers", inputs=["snapshot", "export"])
def score_towers(ctx: Context, *, split: str = "gold") -> Metadata:
    """Score judged pairs of ``split`` in the languages that gold is in, as serving would.

    ``export`` is of the towers, or a cross-encoder. Column ``seen`` tells which queries they were
    taught: all, where an export from before this was kept does not say and its pairs are gone.
    """
    import polars as pl

    locales = ctx.market.gold_locales
    reader = _scorer(ctx.input("export").path, ctx.settings.threads)
    tables = tables_with(ctx, reader.product_fields)
    wanted = (pl.col("split") == split) & pl.col("locale").is_in(locales)
    judged = tables.pairs.filter(wanted).sort("pair_id")
    if judged.is_empty():
        raise DataError(
            f"the snapshot has no {' or '.join(locales)} pair of split {split!r} to score"
        )
    rows = tables.texts(judged)
    scores = reader.score_texts(rows["query"].to_list(), rows["title"].to_list())
    decided = reader.decide(scores)
    taught = _taught(ctx)
    seen = (
        pl.lit(True)
        if taught is None
        else pl.col("query_id").is_in(pl.Series(sorted(taught), dtype=pl.String).implode())
    )
    made = rows.select("pair_id", "grade", "query_id", "product_id", "locale").with_columns(
        em=pl.Series(scores.em), defect=pl.Series(scores.defect),
        em_pred=pl.Series(decided.em), defect_pred=pl.Series(decided.defect),
        seen=seen,
    )  # fmt: skip
    made.write_parquet(ctx.out / "scored.parquet")
    return {
        "pairs": len(rows), "dropped": len(judged) - len(rows), "split": split,
        "seen_queries": made.filter("seen")["query_id"].n_unique(),
        "control": bool(ctx.input("export").facts.get("seen", False)),
    }  # fmt: skip


def _taught(ctx: Context) -> set[str] | None:
    """Return the queries that the scored towers learnt from; None: it cannot be known any more."""
    import polars as pl

    from csrm_tasks.errors import ArtifactError
    from csrm_tasks.towers.learnt import read_learnt

    export = ctx.input("export")
    learnt = read_learnt(export.path)
    if learnt is not None:
        return learnt
    try:  # an export from before: what its towers were distilled on is further back
        scored = ctx.store.open(ctx.store.open(export.inputs["towers"]).inputs["scored"])
    except (ArtifactError, KeyError):
        log.warning("%s does not say which queries it learnt from: all count as such", export.ref)
        return None
    return set(pl.read_parquet(scored.file("scored.parquet"), columns=["query_id"])["query_id"])


def _scorer(export: Path, threads: int) -> TowerRuntime | CrossRuntime:
    from csrm_tasks.towers.serving.cross import ONNX, CrossRuntime
    from csrm_tasks.towers.serving.runtime import TowerRuntime

    cross = (export / ONNX["fp32"]).exists()
    return CrossRuntime(export, threads=threads) if cross else TowerRuntime(export, threads=threads)
