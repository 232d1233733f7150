"""Blind audits: what both releases show for the same queries, judged by raters who cannot tell.

Queries are drawn in proportion to how often they are asked, without replacement, in an order fixed
by the rollout: the n-th audit takes the n-th slice of it, so no query is judged twice. Each release
ranks the products that shoppers were shown for a query; the five best of either are one list of
products, shuffled, without a word on which release found them. What the raters get is
``tasks.csv``; the key stays with us. The judged release's snapshot is the population: an audit
judges ranking, on queries that were asked before the rollout.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import log
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.consensus import majority
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contracts import GRADES
from csrm_tasks.release.online import Audit

TOP = 5  # Defect@5 (A43)
TASK = ("item", "query", "title", "brand", "category", "grade", "rater_id")
ANSWER = ("item", "grade", "rater_id")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet knows what to execute


class Scorer(Protocol):
    """What ranks: a release's :class:`~csrm_tasks.release.scorer.ReleaseScorer`."""

    def score(self, queries: Sequence[str], products: Any, titles: Any) -> Any:
        """Return an object with ``promotion``, one number per pair."""


def draw(queries: pl.DataFrame, number: int, nth: int, seed: str) -> list[str]:
    """Return the ``nth`` slice (from 0) of ``number`` query ids, weighted by ``impressions``.

    Sampling without replacement by Efraimidis and Spirakis (2006): the order of log(u)/weight, with
    u from a hash, so that it is the same in every process.
    """
    rows = queries.select("query_id", "impressions").iter_rows()
    keyed = [(log(_uniform(f"{seed}:{q}")) / n, q) for q, n in rows if n > 0]
    ordered = [q for _, q in sorted(keyed, reverse=True)]
    return ordered[nth * number : (nth + 1) * number]


def _uniform(text: str) -> float:
    head = int.from_bytes(sha256(text.encode()).digest()[:8], "big")
    return (head + 1) / (2**64 + 1)


def page(scorer: Scorer, shown: pl.DataFrame, release: str) -> pl.DataFrame:
    """Rank ``shown`` (query_id, query, product_id, title) and keep the top of every query.

    Returns release, query_id, rank (from 1), product_id.
    """
    scored = scorer.score(
        shown["query"].to_list(), shown["product_id"].to_list(), shown["title"].to_list()
    )
    ranked = shown.with_columns(pl.Series("score", np.asarray(scored.promotion, np.float64)))
    ranked = ranked.sort("query_id", "score", "product_id", descending=[False, True, False])
    place = pl.int_range(1, pl.len() + 1).over("query_id").alias("rank")
    top = ranked.with_columns(place, pl.lit(release).alias("release"))
    return top.filter(pl.col("rank") <= TOP).select("release", "query_id", "rank", "product_id")


def items(pages: pl.DataFrame, seed: str) -> pl.DataFrame:
    """Name each distinct pair of ``pages`` by a digest; sorted by it, which shuffles them."""
    pairs = pages.select("query_id", "product_id").unique()
    names = [text_digest(seed, q, p) for q, p in pairs.iter_rows()]
    return pairs.with_columns(pl.Series("item", names, dtype=pl.String)).sort("item")


def write_tasks(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write what raters get. A text that a spreadsheet would execute gets an apostrophe first."""
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, TASK, restval="")
        writer.writeheader()
        writer.writerows({k: _harmless(v) for k, v in row.items()} for row in rows)


def _harmless(value: str) -> str:
    return f"'{value}" if value.startswith(FORMULA) else value


def read_answers(path: Path, known: pl.DataFrame) -> pl.DataFrame:
    """Read what raters gave back: item, grade, rater_id; a row without a grade is not judged yet.

    ``known``: the audit's :func:`items`. Raises :class:`DataError` naming file, row and field.
    """
    wanted, rows = set(known["item"]), []
    with path.open(encoding="utf-8-sig", newline="") as f:
        reader = csv.DictReader(f)
        if missing := set(ANSWER) - set(reader.fieldnames or ()):
            raise DataError(f"{path}: column {sorted(missing)[0]!r} is missing; keep the header")
        for number, row in enumerate(reader, start=1):
            if row["item"] not in wanted:
                raise DataError(f"{path}: row {number}: item {row['item']!r} is not of this audit")
            word = (row["grade"] or "").strip().lower()
            if word and word not in GRADES:
                raise DataError(f"{path}: row {number}: grade {row['grade']!r}; write 0, 1 or 2")
            if word:
                rows.append((row["item"], GRADES[word], (row["rater_id"] or "").strip()))
    schema = {"item": pl.String, "grade": pl.Int8, "rater_id": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def agreed(answers: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Return one grade per pair: query_id, product_id, grade; several raters by majority."""
    votes = answers.unique(["item", "rater_id", "grade"], maintain_order=True)
    grades = majority(votes, ("item",)).select("item", "grade")
    return known.join(grades, on="item").select("query_id", "product_id", "grade")


def count(pages: pl.DataFrame, grades: pl.DataFrame, release: str, control: str) -> Audit:
    """Compare EM@1 and Defect@5 query by query; one with an ungraded result is left out (A43)."""
    joined = pages.join(grades, on=["query_id", "product_id"], how="left")
    each = joined.group_by("query_id", "release").agg(
        em=(pl.col("grade").filter(pl.col("rank") == 1) == 2).any(),
        defect=(pl.col("grade") == 0).any(),
        whole=pl.col("grade").is_not_null().all(),
    )
    arms = [each.filter(pl.col("release") == r) for r in (release, control)]
    both = arms[0].join(arms[1], on="query_id", suffix="_control")
    both = both.filter(pl.col("whole") & pl.col("whole_control"))

    def only(column: str, there: str, absent: str) -> int:
        return both.filter(pl.col(column + there) & ~pl.col(column + absent)).height

    old, new = "_control", ""
    return Audit(
        both.height,
        only("em", old, new), only("em", new, old),
        only("defect", new, old), only("defect", old, new),
    )  # fmt: skip
