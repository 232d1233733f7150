"""Data steps: a day's files go in once, and published days become a frozen snapshot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from csrm_tasks.artifacts import Artifact, file_digest
from csrm_tasks.dataset.describe import describe, facts, health_document
from csrm_tasks.dataset.sides import add_sides, first_sides, keep_sides, known_sides, sides_of
from csrm_tasks.dataset.snapshot import Built, build
from csrm_tasks.dataset.source import positions, published_days
from csrm_tasks.dataset.tables import SCHEMAS
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.ingest.reading.landing import Delivery, check_day, list_landing
from csrm_tasks.ingest.reading.records import RawOf
from csrm_tasks.ingest.storage.days import day_state, publish, quarantine_counts
from csrm_tasks.ingest.storage.load import Receipt, load_file
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.ingest.validation.files import Source, sort_file
from csrm_tasks.ingest.validation.ignored import Notes
from csrm_tasks.ingest.validation.validate import REJECTED, ValidationResult
from csrm_tasks.json_files import write_json
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import write_table
from csrm_tasks.settings import Settings
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.running import ChangedInputError
from csrm_tasks.store.engine import open_store, reading, writing
from csrm_tasks.store.lake import Lake
from csrm_tasks.text import normalised


def _landed(
    market: MarketConfig, settings: Settings, params: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What lies in the landing folder is what ``land`` depends on."""
    return [d.as_json() for d in _list(market, settings, params["day"])]


def _list(market: MarketConfig, settings: Settings, day: str) -> list[Delivery]:
    return list_landing(settings.landing, market.market, day, market.locales)


@step("land", external_inputs=_landed)
def land(ctx: Context, *, day: str) -> Metadata:
    """List the day's delivered files, with their digests."""
    files = _list(ctx.market, ctx.settings, day)
    if not files:
        raise DataError(f"{ctx.settings.landing}/{ctx.market.market}/{day}: no file was delivered")
    write_json(ctx.out / "files.json", {"day": day, "files": [f.as_json() for f in files]})
    return {"day": day, "files": len(files), "bytes": sum(f.size for f in files)}


# those of a market's terms that a row's verdict depends on
TERMS = (
    "ingest.complement", "ingest.late_days", "ingest.category_separator", "ingest.applications",
    "ingest.grades", "ingest.columns", "schedule.timezone",
)  # fmt: skip


@step("validate", inputs=("land",), config=TERMS)
def validate(ctx: Context) -> Metadata:
    """Split every file's rows into those that keep the contract and those that do not."""
    day, files = _files(ctx.input("land").file("files.json"))
    rejected: list[pl.DataFrame] = []
    counts: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        name = f"clean/{number:03d}.parquet"
        (ctx.out / "clean").mkdir(exist_ok=True)
        result = sort_file(
            _source(ctx.settings, file), day, ctx.market.ingest, ctx.out / name,
            ctx.market.schedule.timezone,
        )  # fmt: skip
        rejected.append(result.rejected.with_columns(pl.lit(file.name).alias("file")))
        counts.append({
            "file": file.as_json(), "clean": name, "rows": result.rows,
            "rejected": result.rejected.height, "fault": result.fault,
            "header": result.header.decode(), "ignored": result.ignored,
            "notes": result.notes.as_json(),
        })  # fmt: skip
    quarantine = pl.concat(rejected)
    quarantine.write_parquet(ctx.out / "quarantine.parquet")
    write_json(ctx.out / "counts.json", {"day": day, "files": counts})
    rows = sum(c["rows"] + c["rejected"] + c["ignored"] for c in counts)
    return {"day": day, "rows": rows, "rejected": quarantine.height}


@step("store", inputs=("validate",), side_effect=True)
def store(ctx: Context) -> Metadata:
    """Store each file in one transaction, once; what refers to nothing known is quarantined."""
    counts = json.loads(ctx.input("validate").file("counts.json").read_text())
    rejected = pl.read_parquet(ctx.input("validate").file("quarantine.parquet"))
    window = _window(ctx, counts["day"])
    receipts: list[Receipt] = []
    for entry in counts["files"]:
        file = Delivery(**entry["file"])
        clean = pl.read_parquet(ctx.input("validate").file(entry["clean"]))
        bad = rejected.filter(pl.col("file") == file.name).select(list(REJECTED))
        notes = Notes()
        notes.add(entry["notes"])
        header = entry["header"].encode()
        judged = ValidationResult(clean, bad, entry["fault"], header, entry["ignored"], notes)
        raw_of = _raw_of(ctx.settings, file)
        receipts.append(load_file(window, file, judged, raw_of, _landed_now(ctx.settings, file)))
    write_json(
        ctx.out / "receipt.json",
        {"day": counts["day"], "files": [r.as_json() for r in receipts]},
    )
    totals = {
        c: sum(getattr(r, c) for r in receipts)
        for c in ("rows_in", "stored", "quarantined", "known", "ignored")
    }
    return {"day": counts["day"], **totals}


@step("aggregate", inputs=("store",), config=("ingest",), side_effect=True)
def aggregate(ctx: Context, *, day: str) -> Metadata:
    """Sum the day's events up per query and product, per position and per session."""
    from csrm_tasks.ingest.aggregates.sums import refresh_day

    window = _window(ctx, day)
    scratch = ctx.work / "scratch"
    return {"day": day, **refresh_day(window, ctx.market.ingest, scratch, ctx.settings.threads)}


def _day_digest(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """What the store holds of the day is what its publication depends on."""
    with reading(open_store(settings.db_url)) as connection:
        return day_state(connection, market.market, check_day(params["day"])).digest


@step(
    "publish_day",
    inputs=("aggregate",),
    config=("ingest",),
    side_effect=True,
    external_inputs=_day_digest,
)
def publish_day(ctx: Context, *, day: str) -> Metadata:
    """Let snapshots use the day, unless more of it is in quarantine than the market tolerates.

    Days that this one changed (it came late, or was corrected) are summed up and published again.
    So is this one, where another run has stored a file of it since it was summed up.
    """
    from csrm_tasks.ingest.aggregates.sums import follow_corrections, summed_up

    window = _window(ctx, day)
    terms, threads = ctx.market.ingest, ctx.settings.threads
    summed = ctx.input("aggregate").facts.get("summed")
    try:
        with summed_up(window, terms, ctx.work / "sums", threads, summed) as connection:
            state = publish(connection, window.market, day, terms.tolerance)
            reasons = quarantine_counts(connection, window.market, day)
    finally:  # what this day changed elsewhere it changed, whether it may be published or not
        follow_corrections(window, terms, ctx.work / "scratch", threads)
    return {
        "day": day, "digest": state.digest, "rows_in": state.rows_in,
        "quarantined": state.quarantined, "ignored": state.ignored, "notes": state.notes,
        "reasons": [{"reason": r, "kind": k, "rows": n} for r, k, n in reasons],
    }  # fmt: skip


def _window(ctx: Context, day: str) -> LakeWindow:
    market, zone = ctx.market.market, ctx.market.schedule.timezone
    lake = Lake(ctx.settings.lake, market)
    return LakeWindow(open_store(ctx.settings.db_url), lake, market, check_day(day), zone)


def _published(
    market: MarketConfig, settings: Settings, params: Mapping[str, Any]
) -> dict[str, str]:
    """What the store has published up to the window's end is what a snapshot depends on."""
    with reading(open_store(settings.db_url)) as connection:
        return published_days(connection, market.market, check_day(params["until"]))


@step(
    "snapshot",
    config=("seed", "snapshot", "health", "schedule.timezone", "tasks"),
    external_inputs=_published,
)
def snapshot(ctx: Context, *, stage: int, until: str) -> Metadata:
    """Freeze the days published up to ``until`` into the training tables of stage 1 or 2."""
    if stage not in (1, 2):
        raise ConfigError(f"step snapshot: parameter 'stage' is 1 or 2, not {stage}")
    lake = Lake(ctx.settings.lake, ctx.market.market)
    _recall_sides(ctx)
    with reading(open_store(ctx.settings.db_url)) as connection:
        placed = partial(positions, connection, lake, ctx.market.market, ctx.market.target_locale)
        built = build(connection, ctx.market, stage, until, placed, lake)
    digests = {}
    for name, schema in SCHEMAS.items():
        path = ctx.out / f"{name}.parquet"
        write_table(getattr(built.tables, name), schema, path)
        digests[name] = file_digest(path)
    write_json(ctx.out / "health.json", health_document(built))
    write_json(ctx.out / "raters.json", built.judged.raters)
    about = describe(built, ctx.market, stage, until, digests)
    write_json(ctx.out / "snapshot.json", about)
    _keep_sides(ctx, built)
    return facts(about, built)


def _recall_sides(ctx: Context) -> None:
    """Fill an empty register from the market's earlier snapshots: it is new, or was lost."""
    with writing(open_store(ctx.settings.db_url), ctx.market.market) as connection:
        if known_sides(connection, ctx.market.market).height:
            return
        refs = [ref for ref, _ in ctx.store.published(f"{ctx.market.market}/snapshot")]
        sides = first_sides((ref, _sides_in(ctx.store.open(ref))) for ref in refs)
        add_sides(connection, ctx.market.market, sides)


def _sides_in(snapshot: Artifact) -> pl.DataFrame:
    pairs = pl.read_parquet(snapshot.file("pairs.parquet"), columns=["query_id", "split"])
    queries = pl.read_parquet(snapshot.file("queries.parquet"), columns=["query_id", "norm"])
    texts = pairs.join(queries, on="query_id").select("norm", "split")
    if not (snapshot.path / "task_pairs.parquet").is_file():  # of an earlier version
        return sides_of(texts)
    others = pl.read_parquet(snapshot.file("task_pairs.parquet"), columns=["query", "split"])
    named = others.select(normalised(others["query"]).alias("norm"), "split")
    return sides_of(pl.concat([texts, named]))


def _keep_sides(ctx: Context, built: Built) -> None:
    """Say for good which side each judged query is on, before anything can learn from it."""
    with writing(open_store(ctx.settings.db_url), ctx.market.market) as connection:
        if not keep_sides(connection, ctx.market.market, sides_of(built.judged.sided), ctx.ref):
            raise ChangedInputError(
                "another snapshot has put one of these queries on another side meanwhile; run this "
                "one again"
            )


def _files(path: Path) -> tuple[str, list[Delivery]]:
    landed = json.loads(path.read_text())
    return landed["day"], [Delivery(**f) for f in landed["files"]]


def _source(settings: Settings, file: Delivery) -> Source:
    path = settings.landing / file.path
    if not path.exists() or file_digest(path) != file.digest:
        raise DataError(f"{path}: changed or gone since it was listed; run land again")
    return Source(path, file.kind, file.format, file.compression)


def _landed_now(settings: Settings, file: Delivery) -> Callable[[], bool]:
    """Tell whether the landing zone still holds the delivery that was listed."""
    path = settings.landing / file.path
    return lambda: path.exists() and file_digest(path) == file.digest


def _raw_of(settings: Settings, file: Delivery) -> RawOf:
    """Read the file again for the bytes of rows that only the store could refuse; rarely needed."""
    return lambda rows: _source(settings, file).raw_of(rows) if rows else []
