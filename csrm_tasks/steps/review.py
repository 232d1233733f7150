"""What people are asked to judge next: pairs without a sure grade, and the gate's label budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csrm_tasks.artifacts import Artifact
from csrm_tasks.blobs import text_digest
from csrm_tasks.errors import ConfigError
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.evaluation.budget import Spent

QUEUE, SERVED, BUDGET = "queue.parquet", "served.parquet", "label_budget.csv"
# A file of labels as ingest takes it, once grades are filled in: judged to measure by (A10).
COLUMNS = (
    "label_id", "query", "product_id", "title", "brand", "category", "grade", "rater_id",
    "held_out",
)  # fmt: skip
PER_QUERY = 8  # products of a query that the budget has judged, the most shown


@step(
    "review_queue", inputs=["snapshot", "llm", "teacher", "scored"],
    config=["review", "seed"],
)  # fmt: skip
def review_queue(ctx: Context) -> Metadata:
    """Put served pairs without a sure grade (A60) on a sheet for raters, by value of a judgement.

    ``scored``: what the towers' teacher says of the traffic. The limits are fitted on the target's
    dev; no gold query is asked. Writes ``queue.parquet``, ``served.parquet`` (all unjudged pairs)
    and the sheet ``review-{locale}.csv``, whose answers come back as labels.
    """
    import polars as pl

    from csrm_tasks.curation.review import write_sheets
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.evaluation import abstention
    from csrm_tasks.records import SCORED, read_table

    rules, locale = ctx.market.review, ctx.market.target_locale
    if not rules.pairs:
        raise ConfigError("review.pairs is 0: this market has no review queue")
    snapshot = ctx.input("snapshot").path
    pairs, behaviour = table(snapshot, "pairs"), table(snapshot, "behaviour")
    fitted = abstention.fit(_dev(ctx, pairs).filter(pl.col("locale") == locale), rules.alpha)
    said = ctx.input("scored")
    if said.facts.get("stopped"):  # dev refuses the teacher: nobody asked it about the traffic
        scored = pl.DataFrame(schema=SCORED)
    else:
        scored = read_table(said.file("scored.parquet"), SCORED)
    served = abstention.unjudged(scored, behaviour, pairs, locale)
    asked = abstention.queue(served, fitted, rules.pairs)
    unsure = abstention.queue(served, fitted, served.height)
    shown, open_ = (int(t["impressions"].sum()) for t in (served, unsure))
    served.write_parquet(ctx.out / SERVED)
    asked.with_columns(action=pl.lit("review")).write_parquet(ctx.out / QUEUE)
    write_sheets(snapshot, asked, ctx.out, ordered=True)
    return {
        "locale": locale, "alpha": rules.alpha, "limits": fitted.limits.tolist(),
        "dev_pairs": list(fitted.pairs), "covered": list(fitted.covered),
        "unsure_dev": fitted.unsure, "served": served.height, "queue": asked.height,
        "budget": rules.budget, "seed": ctx.market.seed,
        "unsure_shown": open_ / max(1, shown),
    }  # fmt: skip


def _dev(ctx: Context, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return what the towers' teacher says of dev: its own scores, or its stack's (A50)."""
    import polars as pl

    teacher = ctx.input("teacher")
    made = teacher if teacher.facts["taught_by"] == "stack" else ctx.input("llm")
    scores = pl.read_parquet(made.file("dev_scores.parquet"))
    known = scores.select("pair_id", "consensus", "p0", "p1", "p2")
    asked = pairs.select("pair_id", "query_id", "locale")
    return known.join(asked, on="pair_id", maintain_order="left")


def label_budget(
    ctx: Context, review: Artifact, snapshot: Artifact, needed: dict[str, int]
) -> list[dict[str, Any]]:
    """Write ``label_budget.csv``: queries of the traffic that decide what is open soonest.

    Returns what it does for each claim; no file where nothing is open, or nothing can be drawn.
    """
    import polars as pl

    from csrm_tasks.dataset.tables import table
    from csrm_tasks.evaluation import budget

    tables = {n: table(snapshot.path, n) for n in ("pairs", "queries", "products")}
    judged, candidates = _judged_and_candidates(review, **tables)
    members, queries = _slices(judged, candidates, **tables)
    claims = budget.open_claims(needed, queries)
    names = candidates["query_id"].unique(maintain_order=True)
    costs = candidates.group_by("query_id", maintain_order=True).len()["len"].to_list()
    most, seed = (review.facts[name] for name in ("budget", "seed"))
    drawn, spent = budget.spend(claims, members, costs, most, seed)
    if drawn:
        place = pl.DataFrame({"query_id": names[drawn], "place": range(len(drawn))})
        _write(ctx, candidates.join(place, on="query_id").sort("place"), **tables)
    return [_told(one) for one in spent]


def _told(one: Spent) -> dict[str, Any]:
    return {
        "claim": one.claim.name, "queries": one.claim.queries, "needed": one.claim.needed,
        "chosen": one.chosen, "inside": one.inside, "width": one.width, "decided": one.decided,
    }  # fmt: skip


def _judged_and_candidates(
    review: Artifact, pairs: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return gold's pairs, and those of served queries that nobody has judged a pair of.

    A query that was learnt from cannot be gold any more. The grade of a candidate is the most
    probable one.
    """
    import polars as pl

    from csrm_tasks.evaluation.gold import gold_set

    best = pl.concat_list("p0", "p1", "p2").list.arg_max().cast(pl.Int8)
    served = pl.read_parquet(review.file(SERVED)).join(
        pairs.select("query_id").unique(), on="query_id", how="anti"
    )
    most_shown = served.sort("query_id", -pl.col("impressions"), "product_id")
    candidates = most_shown.filter(pl.int_range(pl.len()).over("query_id") < PER_QUERY).select(
        "query_id", "product_id", "locale", grade=best
    )
    columns = ["query_id", "product_id", "locale", "grade"]
    return gold_set(pairs, queries, products).frame.select(columns), candidates


def _slices(
    judged: pl.DataFrame, candidates: pl.DataFrame,
    pairs: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame,
) -> tuple[dict[str, Any], dict[str, int]]:  # fmt: skip
    """Return of each slice which candidate queries are in it, and how many judged ones are."""
    import numpy as np
    import polars as pl

    from csrm_tasks.evaluation.slices import slices_of

    both = pl.concat([judged, candidates])
    masks = slices_of(both, pairs, queries, products)
    old = judged["query_id"].to_numpy()
    new = candidates["query_id"].unique(maintain_order=True).to_list()
    row = {q: k for k, q in enumerate(new)}
    at = np.array([row[q] for q in candidates["query_id"]], np.int64)
    members, counts = {}, {"": len(set(old.tolist()))}
    for name, mask in masks.items():
        members[name] = np.bincount(at[mask[len(old) :]], minlength=len(new)) > 0
        counts[name] = len(set(old[mask[: len(old)]].tolist()))
    return members, {name: n for name, n in counts.items() if n}


def _write(
    ctx: Context, chosen: pl.DataFrame,
    pairs: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame,
) -> None:  # fmt: skip
    import polars as pl

    from csrm_tasks.spreadsheets import write_sheet

    texts = products.select("product_id", "locale", "title", "brand", "category")
    rows = chosen.join(
        queries.select("query_id", "query").unique("query_id"), on="query_id", maintain_order="left"
    ).join(texts, on=["product_id", "locale"], maintain_order="left")
    name = [f"budget-{text_digest(ctx.ref, q, p)}" for q, p in
            rows.select("query_id", "product_id").iter_rows()]  # fmt: skip
    sheet = rows.with_columns(label_id=pl.Series(name, dtype=pl.String), held_out=pl.lit("1"))
    given = [{c: r[c] or "" for c in COLUMNS if c in r} for r in sheet.drop("grade").to_dicts()]
    write_sheet(ctx.out / BUDGET, COLUMNS, given, keys=("label_id", "product_id"))
