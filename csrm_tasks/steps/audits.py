"""Blind audits of a rollout: tasks for raters, their answers, and an LLM's estimate beside them."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from csrm_tasks.artifacts import Artifact, file_digest
from csrm_tasks.release import ledger
from csrm_tasks.release.ledger import Entry
from csrm_tasks.steps.registry import Context, Facts, step

KEY, ITEMS, TASKS = "key.parquet", "items.parquet", "tasks.csv"


@step("audit_tasks", inputs=["state"], rooms=["release.audits", "release.scorer"])
def audit_tasks(ctx: Context, *, day: str) -> Facts:
    """Draw a day's queries and write what raters judge, without a word on which release it is."""
    import polars as pl

    from csrm_tasks.records import write_table
    from csrm_tasks.release import audits
    from csrm_tasks.release.scorer import ReleaseScorer

    state = ctx.input("state").facts
    snapshot = ctx.store.open(state["snapshot"])
    tables = {n: pl.read_parquet(snapshot.file(f"{n}.parquet")) for n in ("queries", "products")}
    here = pl.col("locale") == ctx.market.target_locale
    shown = pl.read_parquet(snapshot.file("behaviour.parquet")).filter(here)
    asked = shown.group_by("query_id").agg(pl.col("impressions").sum())
    nth = (date.fromisoformat(day) - date.fromisoformat(state["since"][:10])).days
    seed = f"{ctx.market.market}:{state['open']}"
    drawn = audits.draw(asked, state["audit_queries"], max(nth, 0), seed)
    texts = tables["products"].filter(here).select("product_id", "title", "brand", "category")
    shown = (
        shown.filter(pl.col("query_id").is_in(drawn))
        .join(tables["queries"].select("query_id", "query"), on="query_id")
        .join(texts, on="product_id")
    )
    arms = {state["open"]: state["bundle"], state["control"]: state["control_bundle"]}
    pages = pl.concat(
        audits.page(ReleaseScorer(ctx.store.open(ref).path), shown, release)
        for release, ref in arms.items()
    )
    found = audits.items(pages, seed)
    tasks = found.join(shown, on=["query_id", "product_id"], how="left", maintain_order="left")
    audits.write_tasks(tasks.select("item", "query", "title", "brand", "category").to_dicts(),
                       ctx.out / TASKS)  # fmt: skip
    pages.write_parquet(ctx.out / KEY)
    found.write_parquet(ctx.out / ITEMS)
    pairs = found.with_columns(pl.lit(ctx.market.target_locale).alias("locale"))
    columns = dict.fromkeys(("query_id", "product_id", "locale"), pl.String)
    write_table(pairs.select(list(columns)), columns, ctx.out / "pairs.parquet")  # type: ignore[arg-type]
    kept = {k: state[k] for k in ("open", "control", "snapshot", "llm", "rqa")}
    return {"day": day, "queries": pages["query_id"].n_unique(), "items": found.height, **kept}


@step("audit_send", inputs=["audit"], effect=True)
def audit_send(ctx: Context) -> Facts:
    """Put the tasks where raters fetch them: ``{landing}/{market}/audits/{day}.tasks.csv``."""
    audit = ctx.input("audit")
    target = _folder(ctx) / f"{audit.facts['day']}.tasks.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.write_bytes(audit.file(TASKS).read_bytes())
    part.replace(target)
    payload = {"audit": audit.ref, "day": audit.facts["day"]}
    _append(ctx, "asked", audit, f"{audit.facts['items']} results", payload)
    return {"tasks": audit.facts["items"]}


@step("audit_answers", inputs=["state"], effect=True)
def audit_answers(ctx: Context, *, day: str) -> Facts:
    """Take in what raters gave back up to ``day``, each once.

    Files are ``{landing}/{market}/audits/{day of the audit}.answers.csv``.
    """
    release = ctx.input("state").facts["open"]
    entries = ledger.verified(ctx.settings, ctx.market.market)
    rows = [e for e in entries if (e.action, e.release_id) == ("asked", release)]
    asked = [e for e in rows if e.payload["day"] <= day]
    taken = []
    for row in asked:
        path = _folder(ctx) / f"{row.payload['day']}.answers.csv"
        known = ledger.find(entries, "audited", release, by="rater", audit=row.payload["audit"])
        if known is None and path.exists():
            taken.append(_take(ctx, row, path))
    return {"day": day, "asked": len(asked), "taken": taken}


def _take(ctx: Context, row: Entry, path: Path) -> str:
    """Keep one file of answers as an artifact, and what it comes to in the ledger."""
    import polars as pl

    from csrm_tasks.release import audits

    audit = ctx.store.open(row.payload["audit"])
    known = pl.read_parquet(audit.file(ITEMS))
    answers = audits.read_answers(path, known)
    folder = ctx.work / row.payload["day"]
    folder.mkdir(parents=True, exist_ok=True)
    answers.write_parquet(folder / "answers.parquet")
    ref = f"{ctx.market.market}/audit_answers/{file_digest(path)[:20]}"
    ctx.store.publish(ref, folder, facts={"rows": answers.height}, inputs={"audit": audit.ref},
                      about={"file": path.name})  # fmt: skip
    _count(ctx, audit, audits.agreed(answers, known), "rater", ref)
    return path.name


@step("audit_estimate", inputs=["audit", "scored"], effect=True)
def audit_estimate(ctx: Context) -> Facts:
    """Grade an audit's results by the release's own LLM: an estimate, shown beside the raters'."""
    import polars as pl

    scored = pl.read_parquet(ctx.input("scored").file("scored.parquet"))
    best = pl.concat_list("p0", "p1", "p2").list.arg_max().cast(pl.Int8).alias("grade")
    grades = scored.select("query_id", "product_id", best)
    return _count(ctx, ctx.input("audit"), grades, "teacher", ctx.input("scored").ref)


def _count(ctx: Context, audit: Artifact, grades: Any, by: str, ref: str) -> Facts:
    """Count an audit and write it into the ledger, once per audit and kind of judge."""
    import polars as pl

    from csrm_tasks.release import audits

    pages = pl.read_parquet(audit.file(KEY))
    found = asdict(audits.count(pages, grades, audit.facts["open"], audit.facts["control"]))
    payload = {"by": by, "audit": audit.ref, "grades": ref}
    payload |= {k: str(v) for k, v in found.items()}
    _append(ctx, "audited", audit, f"by {by}: {json.dumps(found)}", payload)
    return found


def _append(
    ctx: Context, action: ledger.Action, audit: Artifact, reason: str, payload: dict[str, str]
) -> None:
    ledger.append(
        ctx.settings, ctx.market.market, action, audit.facts["open"],
        actor="csrm audit", reason=reason, payload=payload,
    )  # fmt: skip


def _folder(ctx: Context) -> Path:
    return ctx.settings.landing / ctx.market.market / "audits"
