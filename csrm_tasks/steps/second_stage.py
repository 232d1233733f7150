"""Steps of the second stage: what dev keeps of it, and the order in which gold is served."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from csrm_tasks import tracking
from csrm_tasks.errors import ConfigError
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.towers import tables_with

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.towers.cross.stack import DevPairs
    from csrm_tasks.towers.serving.cross import CrossRuntime
    from csrm_tasks.towers.serving.runtime import TowerRuntime

log = logging.getLogger("csrm")

DEV_SCORES = "dev_scores.parquet"  # pair_id and the cross-encoder's EM probability


@step("second_stage", inputs=["snapshot", "export", "cross"], config=["second_stage.top"])
def second_stage(ctx: Context) -> Metadata:
    """Stack the cross-encoder on the exported towers, on the target's dev; keep it if it is better.

    What is kept is the folder that a bundle serves; of what is not, the figures and the reason.
    """
    import numpy as np
    import polars as pl

    from csrm_tasks.towers.cross.stack import judge
    from csrm_tasks.towers.serving.cross import CrossRuntime
    from csrm_tasks.towers.serving.runtime import TowerRuntime
    from csrm_tasks.towers.serving.second_stage import write_second_stage

    top, threads = ctx.market.second_stage.top, ctx.settings.threads
    towers = TowerRuntime(ctx.input("export").path, threads=threads)
    cross = CrossRuntime(ctx.input("cross").path, threads=threads)
    if cross.product_fields != towers.product_fields:
        raise ConfigError(
            f"second_stage: {ctx.input('cross').ref} reads {', '.join(cross.product_fields)} after "
            f"the title, the towers {', '.join(towers.product_fields)}; train both again"
        )
    dev = tables_with(ctx, towers.product_fields).dev(ctx.market.target_locale)
    both = _both(dev, towers, cross)
    judged = judge(both, top)
    said = pl.Series((1.0 / (1.0 + np.exp(-both.cross))).astype(np.float32))
    dev.select("pair_id").with_columns(cross=said).write_parquet(ctx.out / DEV_SCORES)
    if judged.kept:
        write_second_stage(ctx.input("cross").path, ctx.out, top, vars(judged.weights))
    log.info("second stage: %s: %s", "kept" if judged.kept else "not kept", judged.reason)
    facts: Metadata = {
        "kept": judged.kept, "reason": judged.reason, "top": top, "dev_pairs": len(dev),
        "weights": vars(judged.weights), "dev": dict(judged.facts),
    }  # fmt: skip
    gains = {f"dev_{k}_gain": f["difference"]["value"] for k, f in judged.facts.items()}
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref, params={"top": top},
        metrics={"kept": float(judged.kept)} | {k: v for k, v in gains.items() if v is not None},
    )  # fmt: skip
    return facts


def _both(dev: pl.DataFrame, towers: TowerRuntime, cross: CrossRuntime) -> DevPairs:
    """Return what both stages say of the dev pairs, as they are served."""
    import numpy as np

    from csrm_tasks.towers.cross.stack import DevPairs
    from csrm_tasks.towers.serving.second_stage import first_logits

    texts = dev["query"].to_list(), dev["title"].to_list()
    scores = towers.score_texts(*texts)
    queries = dev["query_id"].unique().sort()
    return DevPairs(
        queries.search_sorted(dev["query_id"]).to_numpy().astype(np.int64),
        dev["grade"].to_numpy().astype(np.int64),
        scores.em.astype(np.float64),
        towers.decide(scores).defect,
        first_logits(scores.em),
        cross.logit_texts(*texts)[:, 0].astype(np.float64),
    )


@step("score_second_stage", inputs=["snapshot", "export", "scores"], optional=["second_stage"])
def score_second_stage(ctx: Context) -> Metadata:
    """Say in what order judged pairs are served: by the towers, and the second stage if one is.

    ``scores`` are of ``score_towers`` with this ``export``; decisions are theirs. Column ``order``
    is what the products of a search are ranked by.
    """
    import numpy as np
    import polars as pl

    from csrm_tasks.evaluation.ordering import places_after
    from csrm_tasks.towers.serving.second_stage import SecondStage

    if not ctx.input("scores").was_made_from("export", ctx.input("export")):
        raise ConfigError(
            f"score_second_stage: {ctx.input('scores').ref} are not the scores of "
            f"{ctx.input('export').ref}"
        )
    scored = pl.read_parquet(ctx.input("scores").file("scored.parquet"))
    em, defect = scored["em"].to_numpy(), scored["defect_pred"].to_numpy().astype(bool)
    queries = scored["query_id"].unique().sort()
    query = queries.search_sorted(scored["query_id"]).to_numpy().astype(np.int64)
    chosen = ctx.inputs.get("second_stage")
    first, second, top = em.astype(np.float64), np.zeros(len(scored)), 0
    if chosen is not None and chosen.facts["kept"]:
        stage = SecondStage(chosen.path, ctx.settings.threads)
        texts = tables_with(ctx, stage.cross.product_fields).texts(scored)
        logits = stage.cross.logit_texts(texts["query"].to_list(), texts["title"].to_list())
        second, top = stage.combined(em, logits[:, 0]), stage.top
    place = places_after(query, first, second, defect, top)
    scored.with_columns(order=pl.Series(-place.astype(np.float64))).write_parquet(
        ctx.out / "scored.parquet"
    )
    return {"pairs": len(scored), "served": True, "second_stage": bool(top)}
