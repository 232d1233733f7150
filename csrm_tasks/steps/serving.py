"""Steps around serving: can a bundle be served, and are its catalogue's vectors of today."""

from __future__ import annotations

import json
import logging
from typing import Any

from csrm_tasks.errors import ConfigError
from csrm_tasks.steps.registry import Context, Facts, step

log = logging.getLogger("csrm")


@step(
    "servability",
    inputs=["bundle", "snapshot", "towers"],
    config=["serving", "seed"],
    rooms=["release.probe", "release.servability", "release.scorer", "release.bundle", "towers"],
)
def servability(ctx: Context) -> Facts:
    """Load the bundle in a fresh process, compare scores with training, hold it to the budget."""
    from csrm_tasks.release import probe, servability

    bundle = ctx.input("bundle")
    export = ctx.store.open(bundle.inputs["export"])
    if export.inputs["towers"] != ctx.input("towers").ref:
        raise ConfigError(f"servability: {bundle.ref} does not serve {ctx.input('towers').ref}")
    pairs, requests = _cases(ctx)
    pairs.write_parquet(ctx.out / probe.PAIRS)
    requests.write_parquet(ctx.out / probe.REQUESTS)
    found = ctx.out / "probe.json"
    failure = servability.run_probe(bundle.path, ctx.out, found, ctx.settings.threads)
    if failure:
        log.error("servability: %s", failure)
        return {"outcome": "FAIL", "reasons": [failure]}
    about = json.loads(export.file("serving.json").read_text(encoding="utf-8"))
    thresholds = tuple(about["heads"][head]["threshold"] for head in ("em", "defect"))
    seen = json.loads(found.read_text(encoding="utf-8"))
    verdict, figures = servability.judge(pairs, seen, thresholds, ctx.market.serving)
    log.info("servability: %s, %s", verdict.outcome, "; ".join(verdict.reasons))
    logged = int(requests["logged"].sum())
    return {
        "outcome": verdict.outcome, "reasons": verdict.reasons, "searches": requests.height,
        "logged": logged, **figures,
    }  # fmt: skip


def _cases(ctx: Context) -> Any:
    """Return the dev pairs with training's probabilities, and the searches to replay."""
    import polars as pl

    from csrm_tasks.records import BEHAVIOUR, PAIRS, PRODUCTS, QUERIES, read_table
    from csrm_tasks.release import servability
    from csrm_tasks.towers.examples import with_texts

    pairs, queries, products, behaviour = (
        read_table(ctx.input("snapshot").file(f"{name}.parquet"), schema)
        for name, schema in (("pairs", PAIRS), ("queries", QUERIES), ("products", PRODUCTS),
                             ("behaviour", BEHAVIOUR))
    )  # fmt: skip
    trained = pl.read_parquet(ctx.input("towers").file("dev_scores.parquet")).drop("grade")
    locale = ctx.market.target_locale
    dev = with_texts(pairs.join(trained, on="pair_id"), queries, products)
    here = pl.col("locale") == locale
    catalogue = products.filter(here)["product_id"].sort().to_list()
    return servability.judged_pairs(dev, locale), servability.searches(
        queries.filter(here), behaviour.filter(here), catalogue, ctx.market.seed
    )
