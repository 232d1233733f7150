"""Steps around serving: can a bundle be served, and are its catalogue's vectors of today."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csrm_tasks import tracking
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.json_files import write_json
from csrm_tasks.release import routing, snapshots
from csrm_tasks.release.bundle.manifest import SECOND_STAGE
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.second_stage import DEV_SCORES

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")


@step(
    "servability",
    inputs=["bundle", "snapshot", "towers"],
    config=["serving", "second_stage.budget_ms", "seed"],
)  # fmt: skip
def servability(ctx: Context) -> Metadata:
    """Load the bundle in a fresh process, compare scores with training, hold it to the budget."""
    from csrm_tasks.release.bundle import probe, servability

    bundle = ctx.input("bundle")
    export = ctx.store.open(bundle.inputs["export"])
    if not export.was_made_from("towers", ctx.input("towers")):
        raise ConfigError(f"servability: {bundle.ref} does not serve {ctx.input('towers').ref}")
    about = json.loads(export.file("serving.json").read_text(encoding="utf-8"))
    pairs, requests = _cases(ctx, about["product_fields"])
    budget_ms = ctx.market.second_stage.budget_ms
    ranks_twice = SECOND_STAGE in bundle.facts
    pairs = _with_cross(ctx, pairs) if ranks_twice else pairs
    pairs.write_parquet(ctx.out / probe.PAIRS)
    requests.write_parquet(ctx.out / probe.REQUESTS)
    report = ctx.out / "probe.json"
    failure = servability.run_probe(bundle.path, ctx.out, report, ctx.settings.threads)
    if failure:
        log.error("servability: %s", failure)
        return {"outcome": "FAIL", "reasons": [failure]}
    thresholds = tuple(about["heads"][head]["threshold"] for head in ("em", "defect"))
    seen = json.loads(report.read_text(encoding="utf-8"))
    verdict, figures = servability.check_probe(
        pairs, seen, thresholds, ctx.market.serving, budget_ms if ranks_twice else None
    )
    log.info("servability: %s, %s", verdict.outcome, "; ".join(verdict.reasons))
    logged = int(requests["logged"].sum())
    return {
        "outcome": verdict.outcome, "reasons": verdict.reasons, "searches": requests.height,
        "logged": logged, **figures,
    }  # fmt: skip


def _cases(ctx: Context, product_fields: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the dev pairs with training's probabilities, and the searches to replay."""
    import polars as pl

    from csrm_tasks.dataset.tables import table
    from csrm_tasks.release.bundle import servability
    from csrm_tasks.towers.examples import with_texts
    from csrm_tasks.towers.serving.texts import with_product_text

    names = ("pairs", "queries", "products", "behaviour")
    pairs, queries, products, behaviour = (table(ctx.input("snapshot").path, n) for n in names)
    trained = pl.read_parquet(ctx.input("towers").file("dev_scores.parquet")).drop("grade")
    locale = ctx.market.target_locale
    read = with_product_text(products, product_fields)
    dev = with_texts(pairs.join(trained, on="pair_id"), queries, read)
    here = pl.col("locale") == locale
    catalogue = products.filter(here)["product_id"].sort().to_list()
    return servability.judged_pairs(dev, locale), servability.searches(
        queries.filter(here), behaviour.filter(here), catalogue, ctx.market.seed
    )


def _with_cross(ctx: Context, pairs: pl.DataFrame) -> pl.DataFrame:
    """Add what the bundle's cross-encoder said of the dev pairs when dev kept it."""
    import polars as pl

    made = ctx.store.open(ctx.input("bundle").inputs[SECOND_STAGE])
    said = pl.read_parquet(made.file(DEV_SCORES))
    return pairs.join(said, on="pair_id", how="left", maintain_order="left")


ARMS = ("stable", "next", "holdout")


def _live(market: MarketConfig, settings: Settings) -> dict[str, str]:
    """Return release → bundle of who is served by one, or is about to be."""
    document = routing.read(settings, market.market)
    live = {} if document is None else {document[arm] for arm in ARMS if document[arm]}
    return {name: document["bundles"][name] for name in sorted(live)} if document else {}


def _catalogue_and_releases(
    market: MarketConfig, settings: Settings, params: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """Published days and live releases are what a refresh depends on; known vectors save work."""
    from csrm_tasks.dataset.source import published_days
    from csrm_tasks.ingest.reading.landing import check_day
    from csrm_tasks.store import open_store, reading

    with reading(open_store(settings.db_url)) as connection:
        days = published_days(connection, market.market, check_day(params["day"]))
    return {"days": days, "releases": _live(market, settings)}


@step(
    "refresh",
    external_inputs=_catalogue_and_releases,
)
def refresh(ctx: Context, *, day: str) -> Metadata:
    """Embed products that are new or changed up to ``day`` for every live release (A35)."""
    from csrm_tasks.dataset.source import catalogue, published_days
    from csrm_tasks.store import open_store, reading
    from csrm_tasks.store.lake import Lake

    market = ctx.market
    with reading(open_store(ctx.settings.db_url)) as connection:
        days = [*published_days(connection, market.market, day)]
        lake = Lake(ctx.settings.lake, market.market)
        products = catalogue(connection, lake, market.market, days, market.target_locale)
    releases = _live(market, ctx.settings)
    if releases and products.is_empty():
        raise DataError(f"{market.market} has no published product up to {day}: run ingest first")
    facts = {name: _refreshed(ctx, name, bundle, products) for name, bundle in releases.items()}
    numbers = {f"{k}_{name}": float(v) for name, one in facts.items() for k, v in one.items()}
    tracking.log_run(ctx.settings, market.market, ctx.ref, params={"day": day}, metrics=numbers)
    return {"day": day, "releases": facts}


def _refreshed(ctx: Context, name: str, ref: str, products: pl.DataFrame) -> dict[str, Any]:
    """Write one release's snapshot, from the vectors that it has now; returns its figures."""
    from csrm_tasks.release.bundle.manifest import TOWERS, read_manifest
    from csrm_tasks.towers.serving.embed import Known, embed_catalogue
    from csrm_tasks.towers.serving.product_tokens import write_tokens
    from csrm_tasks.towers.serving.runtime import TowerRuntime
    from csrm_tasks.towers.serving.second_stage import SecondStage
    from csrm_tasks.towers.serving.texts import with_product_text

    bundle = ctx.store.open(ref).path
    export = read_manifest(bundle)["parts"]["export"]
    out = ctx.out / name
    out.mkdir()
    runtime = TowerRuntime(bundle / TOWERS, threads=ctx.settings.threads)
    known = Known.load(_current(ctx, name, export) or bundle)
    read = with_product_text(products, runtime.product_fields)
    done = embed_catalogue(read, runtime.encode_products, runtime.dim, out, known, runtime.brands)
    if (bundle / SECOND_STAGE).exists():
        reader = SecondStage(bundle / SECOND_STAGE).cross.title_reader
        write_tokens(out, read["title"].to_list(), reader)
    write_json(out / snapshots.SNAPSHOT, snapshots.about(name, export))
    share = done.stale / done.products
    log.info("%s: %d of %d products embedded", name, done.encoded, done.products)
    return {
        "products": done.products, "encoded": done.encoded, "stale": share,
        "coverage": done.covered / done.products,
    }  # fmt: skip


def _current(ctx: Context, name: str, export: Mapping[str, str]) -> Path | None:
    """Return the vectors that are published for a release, if they are its towers'."""
    published = snapshots.read(ctx.settings, ctx.market.market).releases.get(name)
    if published is None:
        return None
    folder = ctx.store.open(published.ref).path / name
    about = json.loads((folder / snapshots.SNAPSHOT).read_text(encoding="utf-8"))
    return folder if about["export"] == export else None


@step("publish_refresh", inputs=["refresh"], side_effect=True)
def publish_refresh(ctx: Context) -> Metadata:
    """Let servers take the refreshed vectors; those before stay named as the way back."""
    made = ctx.input("refresh")
    day, releases = made.facts["day"], made.facts["releases"]
    new = {
        name: snapshots.Snapshot(ref=made.ref, day=day, **figures)
        for name, figures in releases.items()
    }
    if not new:
        return {"day": day, "releases": []}  # nothing is live yet
    document = routing.read(ctx.settings, ctx.market.market) or {}
    kept = document.get("predecessors", [])
    snapshots.publish(ctx.settings, ctx.market.market, new, kept)
    return {"day": day, "releases": sorted(new)}
