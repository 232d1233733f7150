"""Blind audits: what both releases show for the same queries, judged by raters who cannot tell.

Queries are drawn in proportion to how often they are asked, without replacement, in an order fixed
by the rollout: the n-th audit takes the n-th slice of it, so no query is judged twice. Each release
ranks the products that shoppers were shown for a query; the five best of either are one list of
products, shuffled, without a word on which release found them. What the raters get is
``tasks.csv``; the key stays with us. The judged release's snapshot is the population: an audit
judges ranking, on queries that were asked before the rollout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.consensus import majority
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contract.contracts import GRADES
from csrm_tasks.ranking import TOP, best_first, places
from csrm_tasks.release.online.checks import Audit
from csrm_tasks.spreadsheets import Proof, read_sheet, refuse_damaged, word, write_sheet

if TYPE_CHECKING:
    from csrm_tasks.release.bundle.scorer import Scored

TASK = ("item", "query", "title", "brand", "category", "grade", "rater_id")
ANSWER = ("item", "grade", "rater_id")
TEXTS = ("query", "title", "brand", "category")  # that come back as they were sent


class Scorer(Protocol):
    """What ranks: a release's :class:`~csrm_tasks.release.bundle.served.ServedOrder`."""

    def score(
        self, queries: Sequence[str], products: Sequence[str | None], titles: Sequence[str | None]
    ) -> Scored:
        """Return an object with ``rank_score``, one number per pair."""


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
    return top(shown, scored.rank_score, release)


def top(shown: pl.DataFrame, rank_score: ArrayLike, release: str) -> pl.DataFrame:
    """Return what :func:`page` does, by scores of ``shown`` that are known."""
    scores = pl.Series("score", np.asarray(rank_score, np.float64))
    given = shown.with_columns(scores).sort("query_id", "product_id")  # the order of ties
    query = given["query_id"].rle_id().cast(pl.Int64).to_numpy()
    ranked = given[best_first(given["score"].to_numpy(), query)]  # queries stay where they were
    rank = pl.Series("rank", places(query) + 1)
    best = ranked.with_columns(rank, pl.lit(release).alias("release"))
    return best.filter(pl.col("rank") <= TOP).select("release", "query_id", "rank", "product_id")


def items(pages: pl.DataFrame, seed: str) -> pl.DataFrame:
    """Name each distinct pair of ``pages`` by a digest; sorted by it, which shuffles them.

    A letter comes first: a spreadsheet would take 16 digits, or 12e34, for a number.
    """
    pairs = pages.select("query_id", "product_id").unique()
    names = [f"r{text_digest(seed, q, p)}" for q, p in pairs.iter_rows()]
    return pairs.with_columns(pl.Series("item", names, dtype=pl.String)).sort("item")


def write_tasks(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write what raters get, as :func:`csrm_tasks.spreadsheets.write_sheet` writes for people."""
    write_sheet(path, TASK, rows, keys=("item",))


def read_answers(
    path: Path, known: pl.DataFrame, locale: str = "", tasks: Path | None = None
) -> pl.DataFrame:
    """Read what raters gave back: item, grade, rater_id; a row without a grade is not judged yet.

    ``known``: the audit's :func:`items`; ``tasks``: what raters got, by whose texts (in ``locale``)
    the encoding is found. Raises :class:`DataError` naming file, row and field.
    """
    return read_grades(path, "item", set(known["item"]), locale, tasks)


def read_grades(
    path: Path, key: str, wanted: Collection[str], locale: str = "", tasks: Path | None = None
) -> pl.DataFrame:
    """Read a sheet that people filled in as :func:`read_answers` does; its rows are known by the
    column ``key``, which is ``item`` of what is returned, and ``wanted`` are those that were sent.
    """
    rows = []
    columns = (key, *(c for c in ANSWER if c != "item"))
    for row in read_sheet(path, columns, locale, _proof(tasks, key) if tasks else None):
        item, given = row.cells[key].strip(), row.cells["grade"]
        if item not in wanted:
            raise DataError(f"{path}: row {row.number}: {key} {item!r} is none that was sent")
        grade = word(given)
        if grade and grade not in GRADES:
            raise DataError(f"{path}: row {row.number}: grade {given!r}; write 0, 1 or 2")
        if grade:
            refuse_damaged(path, row, ("rater_id",))
            rows.append((item, GRADES[grade], row.cells["rater_id"].strip()))
    schema = {"item": pl.String, "grade": pl.Int8, "rater_id": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def require_raters(path: Path, key: str, answers: pl.DataFrame) -> None:
    """Raise :class:`DataError` unless every grade of :func:`read_grades` has a rater, and of one
    rater an item one grade.
    """
    unnamed = answers.filter(rater_id="")
    if unnamed.height:
        raise DataError(
            f"{path}: {key} {unnamed['item'][0]!r}, field 'rater_id' is empty: say who has judged "
            "it"
        )
    twice = answers.filter(answers.select("item", "rater_id").is_duplicated())
    if twice.height:
        item, _, rater = twice.row(0)
        raise DataError(f"{path}: {key} {item!r} has two grades by {rater!r}; leave one")


def _proof(tasks: Path, key: str) -> Proof:
    """Tell by the texts that were sent whether the letters that came back are right."""
    sent = {row.cells[key]: row.cells for row in read_sheet(tasks, (key,), "")}

    def proof(back: Sequence[Mapping[str, str]]) -> bool | None:
        same = [
            _is_same(cells[c], sent[item][c])
            for cells in back
            for item in [cells[key].strip()]
            for c in TEXTS
            if item in sent and c in cells and not sent[item][c].isascii()
        ]
        return sum(same) >= 0.5 * len(same) if same else None

    return proof


def _is_same(back: str, sent: str) -> bool:
    """Whether a text came back; a letter that an encoding lacks comes back as a question mark."""
    pairs = list(zip(back.strip(), sent.strip(), strict=False))
    alike = len(back.strip()) == len(sent.strip()) and all(b in ("?", s) for b, s in pairs)
    return alike and any(b == s and not s.isascii() for b, s in pairs)


def newest(before: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Return ``answers``, and of an earlier file what it says of items that ``answers`` does not.

    So a later or fuller file takes the place of an earlier one, and the second half of the work
    may come in a file of its own.
    """
    return pl.concat([before.join(answers, on="item", how="anti"), answers])


def agreed(answers: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Return one grade per pair: query_id, product_id, grade; several raters by majority.

    Of a rater's several of one item the last counts; one without a name is somebody else each time.
    """
    named = answers.filter(pl.col("rater_id") != "")
    last = named.unique(["item", "rater_id"], keep="last", maintain_order=True)
    votes = pl.concat([last, answers.filter(pl.col("rater_id") == "")])
    grades = majority(votes, ("item",)).select("item", "grade")
    return known.join(grades, on="item").select("query_id", "product_id", "grade")


def compared(pages: pl.DataFrame, grades: pl.DataFrame, release: str, control: str) -> pl.DataFrame:
    """Return query_id, and how EM@1 and Defect@5 (A43) of ``release`` differ from ``control``'s.

    ``em``, ``defect``: −1, 0 or 1. A query with an ungraded result is left out.
    """
    joined = pages.join(grades, on=["query_id", "product_id"], how="left")
    each = joined.group_by("query_id", "release").agg(
        em=(pl.col("grade").filter(pl.col("rank") == 1) == 2).any().cast(pl.Int8),
        defect=(pl.col("grade") == 0).any().cast(pl.Int8),
        whole=pl.col("grade").is_not_null().all(),
    )
    arms = [each.filter(pl.col("release") == r) for r in (release, control)]
    both = arms[0].join(arms[1], on="query_id", suffix="_control")
    return both.filter(pl.col("whole") & pl.col("whole_control")).select(
        "query_id", *(pl.col(c) - pl.col(f"{c}_control") for c in ("em", "defect"))
    )


def count(pages: pl.DataFrame, grades: pl.DataFrame, release: str, control: str) -> Audit:
    """Count in how many queries EM@1 and Defect@5 differ, by direction."""
    both = compared(pages, grades, release, control)
    em, defect = both["em"], both["defect"]
    sides = [(em == -1).sum(), (em == 1).sum(), (defect == 1).sum(), (defect == -1).sum()]
    return Audit(both.height, *(int(n) for n in sides))
