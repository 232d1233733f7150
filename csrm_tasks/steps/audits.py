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
from csrm_tasks.settings import Settings
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    import polars as pl

KEY, ITEMS, TASKS = "key.parquet", "items.parquet", "tasks.csv"


@step("audit_tasks", inputs=["state"])
def audit_tasks(ctx: Context, *, day: str) -> Metadata:
    """Draw a day's queries and write what raters judge, without a word on which release it is."""
    import polars as pl

    from csrm_tasks.dataset.tables import table
    from csrm_tasks.records import write_table
    from csrm_tasks.release.bundle.scorer import ReleaseScorer
    from csrm_tasks.release.bundle.served import ServedOrder
    from csrm_tasks.release.online import audits

    state = ctx.input("state").facts
    snapshot = ctx.store.open(state["snapshot"])
    queries, products = (table(snapshot.path, n) for n in ("queries", "products"))
    here = pl.col("locale") == ctx.market.target_locale
    shown = table(snapshot.path, "behaviour").filter(here)
    asked = shown.group_by("query_id").agg(pl.col("impressions").sum())
    nth = (date.fromisoformat(day) - date.fromisoformat(state["first_day"])).days
    seed = f"{ctx.market.market}:{state['open']}"
    drawn = audits.draw(asked, state["audit_queries"], max(nth, 0), seed)
    texts = products.filter(here).select("product_id", "title", "brand", "category")
    shown = (
        shown.filter(pl.col("query_id").is_in(drawn))
        .join(queries.select("query_id", "query"), on="query_id")
        .join(texts, on="product_id")
    )
    arms = {state["open"]: state["bundle"], state["control"]: state["control_bundle"]}
    pages = pl.concat(
        audits.page(ServedOrder(ReleaseScorer(ctx.store.open(ref).path)), shown, release)
        for release, ref in arms.items()
    )
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
    return {"day": day, "queries": pages["query_id"].n_unique(), "items": items.height, **kept}


@step("audit_send", inputs=["audit"], side_effect=True)
def audit_send(ctx: Context) -> Metadata:
    """Put the tasks where raters fetch them: ``{landing}/{market}/audits/{day}.tasks.csv``.

    What was sent already stays: somebody may have written into it.
    """
    audit = ctx.input("audit")
    tasks = LocalBlobs(_folder(ctx))
    tasks.put_if_absent(f"{audit.facts['day']}.tasks.csv", audit.file(TASKS).read_bytes())
    payload = {"audit": audit.ref, "day": audit.facts["day"]}
    _append(ctx, "asked", audit, f"{audit.facts['items']} results", payload)
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
        answers = audits.newest(_answers_of(ctx, inputs["before"]), answers)
        ref = f"{ctx.market.market}/audit_answers/{text_digest(digest, inputs['before'])}"
    folder = ctx.work / row.payload["day"]
    folder.mkdir(parents=True, exist_ok=True)
    answers.write_parquet(folder / "answers.parquet")
    ctx.store.publish(ref, folder, facts={"rows": answers.height}, inputs=inputs,
                      about={"file": path.name})  # fmt: skip
    _count(ctx, audit, audits.agreed(answers, known), "rater", ref, file=digest)
    return True


def _answers_of(ctx: Context, ref: str) -> pl.DataFrame:
    import polars as pl

    return pl.read_parquet(ctx.store.open(ref).file("answers.parquet"))


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

    from csrm_tasks.release.online import audits

    pages = pl.read_parquet(audit.file(KEY))
    counted = asdict(audits.count(pages, grades, audit.facts["open"], audit.facts["control"]))
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
