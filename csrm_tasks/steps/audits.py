"""Blind audits of a rollout: tasks for raters, their answers, and an LLM's estimate beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csrm_tasks.artifacts import Artifact, file_digest
from csrm_tasks.blobs import LocalBlobs, text_digest
from csrm_tasks.errors import DataError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger
from csrm_tasks.release.ledger import Entry
from csrm_tasks.release.rollout import current_rollout
from csrm_tasks.settings import Settings
from csrm_tasks.steps.audit_files import (
    FRAME,
    ITEMS,
    KEY,
    answered_before,
    answers_of,
    read_audit,
    read_audits,
)
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    import polars as pl

TASKS = "tasks.csv"


def _known(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> list[str] | None:
    """What people have answered, by which audits by strata are allocated."""
    entries = ledger.history(settings, market.market)
    state = current_rollout(entries)
    if state is None or state.plan.audit_draw == "traffic":
        return None
    return [e.hash for e in answered_before(entries, state.release, params["day"])]


@step("audit_tasks", inputs=["state"], external_inputs=_known)
def audit_tasks(ctx: Context, *, day: str) -> Metadata:
    """Draw a day's queries and write what raters judge, without a word on which release it is."""
    import polars as pl

    from csrm_tasks.dataset.tables import table
    from csrm_tasks.records import write_table
    from csrm_tasks.release.online import audits

    state = ctx.input("state").facts
    snapshot = ctx.store.open(state["snapshot"])
    queries, products = (table(snapshot.path, n) for n in ("queries", "products"))
    here = pl.col("locale") == ctx.market.target_locale
    shown = table(snapshot.path, "behaviour").filter(here)
    asked = shown.group_by("query_id").agg(pl.col("impressions").sum())
    nth = (date.fromisoformat(day) - date.fromisoformat(state["first_day"])).days
    seed = f"{ctx.market.market}:{state['open']}"
    # Before the rollout's first day nobody was served by it; the first slice is that day's.
    drawn = audits.draw(asked, _frame(state, asked.height), nth, seed) if nth >= 0 else []
    texts = products.filter(here).select("product_id", "title", "brand", "category")
    shown = (
        shown.filter(pl.col("query_id").is_in(drawn))
        .join(queries.select("query_id", "query"), on="query_id")
        .join(texts, on="product_id")
    )
    pages = _pages(ctx, shown, day, f"{seed}:{day}")
    items = audits.items(pages, seed)
    tasks = items.join(shown, on=["query_id", "product_id"], how="left", maintain_order="left")
    audits.write_tasks(tasks.select("item", "query", "title", "brand", "category").to_dicts(),
                       ctx.out / TASKS)  # fmt: skip
    pages.write_parquet(ctx.out / KEY)
    items.write_parquet(ctx.out / ITEMS)
    pairs = items.with_columns(pl.lit(ctx.market.target_locale).alias("locale"))
    columns = dict.fromkeys(("query_id", "product_id", "locale"), pl.String)
    write_table(pairs.select(list(columns)), columns, ctx.out / "pairs.parquet")  # type: ignore[arg-type]
    kept = {k: state[k] for k in ("open", "control", "snapshot", "llm", "rqa")}
    made = {"day": day, "queries": pages["query_id"].n_unique(), "items": items.height}
    return made | {"draw": state["audit_draw"]} | kept


def _frame(state: Mapping[str, Any], queries: int) -> int:
    """Return how many queries both releases rank for the day's audit."""
    from csrm_tasks.release.online.stratified import frame_size

    number: int = state["audit_queries"]
    return frame_size(queries, number) if state["audit_draw"] == "strata" else number


def _pages(ctx: Context, shown: pl.DataFrame, day: str, seed: str) -> pl.DataFrame:
    """Rank ``shown`` by both releases; where audits are by strata, keep those to be judged."""
    import polars as pl

    from csrm_tasks.release.bundle.scorer import ReleaseScorer
    from csrm_tasks.release.bundle.served import ServedOrder
    from csrm_tasks.release.online import audits, stratified
    from csrm_tasks.release.online.expected import expected

    state = ctx.input("state").facts
    arms = {state["open"]: state["bundle"], state["control"]: state["control_bundle"]}
    scorers = {
        name: ServedOrder(ReleaseScorer(ctx.store.open(ref).path)) for name, ref in arms.items()
    }
    if state["audit_draw"] == "traffic":
        return pl.concat(audits.page(scorer, shown, name) for name, scorer in scorers.items())
    pages = stratified.ranked(scorers, shown)
    entries = ledger.verified(ctx.settings, ctx.market.market)
    rows = answered_before(entries, state["open"], day)
    before = [found.judged for found in read_audits(ctx, rows)]
    frame = stratified.draw_by_strata(
        expected(pages, state["open"], state["control"]), before, state["audit_queries"], seed
    )
    frame.write_parquet(ctx.out / FRAME)
    chosen = frame.drop_nulls("chance").select("query_id")
    return pages.join(chosen, on="query_id", how="semi").drop("exact", "irrelevant")


@step("audit_send", inputs=["audit"], side_effect=True)
def audit_send(ctx: Context) -> Metadata:
    """Put the tasks where raters fetch them: ``{landing}/{market}/audits/{day}.tasks.csv``.

    What was sent already stays: somebody may have written into it.
    """
    audit = ctx.input("audit")
    payload = {"audit": audit.ref, "day": audit.facts["day"]}
    # First: from now on the day's draw stands still, whatever answers come in (`answered_before`).
    _append(ctx, "asked", audit, f"{audit.facts['items']} results", payload)
    tasks = LocalBlobs(_folder(ctx))
    tasks.put_if_absent(f"{audit.facts['day']}.tasks.csv", audit.file(TASKS).read_bytes())
    return {"tasks": audit.facts["items"]}


def _answers(market: MarketConfig, settings: Settings, _: Mapping[str, Any]) -> list[list[str]]:
    """What raters gave back lies in the landing zone."""
    files = sorted((settings.landing / market.market / "audits").glob("*.answers.*"))
    return [[path.name, file_digest(path)] for path in files]


@step("audit_answers", inputs=["state"], external_inputs=_answers, side_effect=True)
def audit_answers(ctx: Context, *, day: str) -> Metadata:
    """Take in what raters gave back up to ``day``; a file that has changed is taken again.

    Files are ``{landing}/{market}/audits/{day of the audit}.answers.csv``. An audit stays open as
    long as its rollout: unfinished files count by what they answer, and fuller ones follow.
    Raises :class:`DataError` for those that cannot be read, after taking the others.
    """
    release = ctx.input("state").facts["open"]
    entries = ledger.verified(ctx.settings, ctx.market.market)
    rows = [e for e in entries if (e.action, e.release_id) == ("asked", release)]
    asked = [e for e in rows if e.payload["day"] <= day]
    counted = {e.payload["audit"]: e for e in entries
               if (e.action, e.release_id) == ("audited", release)
               and e.payload["by"] == "rater"}  # fmt: skip
    taken, wrong = [], []
    for row in asked:
        try:
            path = _answers_file(_folder(ctx), row.payload["day"])
            if path and _take(ctx, row, counted.get(row.payload["audit"]), path):
                taken.append(path.name)
        except DataError as e:
            wrong.append(str(e))
    if wrong:  # the other files have been taken
        raise DataError("; ".join(wrong))
    return {"day": day, "asked": len(asked), "taken": taken}


def _answers_file(folder: Path, day: str) -> Path | None:
    """Return a day's file of answers, if raters have given one; any program's ending is seen."""
    files = [p for p in sorted(folder.glob(f"{day}.answers.*"))]
    if len(files) > 1:
        names = ", ".join(p.name for p in files)
        raise DataError(f"{folder} has {names}: leave the one that counts, as {day}.answers.csv")
    return files[0] if files else None


def _take(ctx: Context, row: Entry, counted: Entry | None, path: Path) -> bool:
    """Keep a file of answers as an artifact, and what all come to in the ledger; once per content.

    Returns False for one without an answer: a template that nobody has filled in yet.
    """
    import polars as pl

    from csrm_tasks.release.online import audits

    digest = file_digest(path)[:20]
    if counted is not None and counted.payload.get("file") == digest:
        return True
    audit = ctx.store.open(row.payload["audit"])
    known = pl.read_parquet(audit.file(ITEMS))
    answers = audits.read_answers(path, known, ctx.market.target_locale, audit.file(TASKS))
    if answers.is_empty():
        return False
    ref = f"{ctx.market.market}/audit_answers/{digest}"
    inputs = {"audit": audit.ref}
    if counted is not None:
        inputs["before"] = counted.payload["grades"]
        answers = audits.newest(answers_of(ctx, inputs["before"]), answers)
        ref = f"{ctx.market.market}/audit_answers/{text_digest(digest, inputs['before'])}"
    folder = ctx.work / row.payload["day"]
    folder.mkdir(parents=True, exist_ok=True)
    answers.write_parquet(folder / "answers.parquet")
    ctx.store.publish(ref, folder, facts={"rows": answers.height}, inputs=inputs,
                      about={"file": path.name})  # fmt: skip
    _count(ctx, audit, audits.agreed(answers, known), "rater", ref, file=digest)
    return True


@step("audit_estimate", inputs=["audit", "scored"], side_effect=True)
def audit_estimate(ctx: Context) -> Metadata:
    """Grade an audit's results by the release's own LLM: an estimate, shown beside the raters'."""
    import polars as pl

    scored = pl.read_parquet(ctx.input("scored").file("scored.parquet"))
    best = pl.concat_list("p0", "p1", "p2").list.arg_max().cast(pl.Int8).alias("grade")
    grades = scored.select("query_id", "product_id", best)
    return _count(ctx, ctx.input("audit"), grades, "teacher", ctx.input("scored").ref)


def _count(
    ctx: Context, audit: Artifact, grades: pl.DataFrame, by: str, ref: str, **about: str
) -> Metadata:
    """Count an audit and write it into the ledger, once per grades; the newest row counts."""
    import polars as pl

    from csrm_tasks.release.online import audits, stratified
    from csrm_tasks.release.online.expected import COLUMNS

    pages = pl.read_parquet(audit.file(KEY))
    counted = asdict(audits.count(pages, grades, audit.facts["open"], audit.facts["control"]))
    counted = {k: n for k, n in counted.items() if n is not None}
    if audit.facts.get("draw") == "strata":
        judged = read_audit(audit, grades).judged
        counted["queries"] = judged.height
        for measure, sums in stratified.sums(judged).items():
            counted |= {f"{COLUMNS[measure]}_{k}": n for k, n in asdict(sums).items()}
    payload = {"by": by, "audit": audit.ref, "grades": ref, **about}
    payload |= {k: str(v) for k, v in counted.items()}
    _append(ctx, "audited", audit, f"by {by}: {json.dumps(counted)}", payload)
    return counted


def _append(
    ctx: Context, action: ledger.Action, audit: Artifact, reason: str, payload: dict[str, str]
) -> None:
    ledger.append(
        ctx.settings, ctx.market.market, action, audit.facts["open"],
        actor=f"csrm {ctx.ref.split('/')[1].replace('_', '-')}", reason=reason, payload=payload,
    )  # fmt: skip


def _folder(ctx: Context) -> Path:
    return ctx.settings.landing / ctx.market.market / "audits"
