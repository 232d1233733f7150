"""The query-category (qc) and query-item (qi) tasks of a snapshot: from answers to agreed pairs.

A qc answer is a row of ``query_categories``; a qi answer is a relevance label read as yes or no.
Both go the way of relevance labels: consensus, frozen gold, and one side for a query's text,
whichever task, locale or week it is judged in (A10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from csrm_tasks.artifacts import json_digest
from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.consensus import PAIR
from csrm_tasks.errors import DataError
from csrm_tasks.records import TASK_PAIRS, Grade
from csrm_tasks.sections.tasks import Task
from csrm_tasks.text import pair_ids

WORDS = ("no", "yes")  # of the labels 0 and 1
DELIVERED = {"relevance": "labels", "qc": "query_categories", "qi": "labels"}


def category_answers(ratings: pl.DataFrame) -> pl.DataFrame:
    """Return answers of qc (with ``category``) with the digest of the path as ``product_id``."""
    paths = ratings["category"].unique()
    ids = [text_digest("category", path) for path in paths]
    named = ratings["category"].replace_strict(paths, ids, return_dtype=pl.String)
    told = ratings.with_columns(named.alias("product_id"), held_out=pl.lit(0, pl.Int8))
    return told.rename({"category": "item"})


def item_answers(
    ratings: pl.DataFrame, products: pl.DataFrame, substitute: str | None
) -> pl.DataFrame:
    """Return relevance ratings as answers of qi, of the products that there are, with their titles.

    Exact is a yes, irrelevant a no, and a substitute what the market says. Raises
    :class:`DataError` where there are some and it says nothing.
    """
    unsaid = ratings.filter(pl.col("grade") == int(Grade.SUBSTITUTE)).height
    if unsaid and substitute is None:
        raise DataError(
            f"task qi: {unsaid} labels are 'substitute', which is neither yes nor no; set "
            "snapshot.qi_substitute to one of them"
        )
    is_yes = pl.col("grade") == int(Grade.EXACT)
    if substitute == "yes":
        is_yes = is_yes | (pl.col("grade") == int(Grade.SUBSTITUTE))
    titles = products.select("locale", "product_id", item="title")
    answers = ratings.with_columns(is_yes.cast(pl.Int8).alias("grade"))
    return answers.join(titles, on=["locale", "product_id"], maintain_order="left")


def task_pairs(split: pl.DataFrame, answers: Mapping[Task, pl.DataFrame]) -> pl.DataFrame:
    """Return TASK_PAIRS from pairs with task and split; query and item as ``answers`` say them."""
    empty = pl.DataFrame(schema=TASK_PAIRS)
    parts = [_with_texts(split.filter(task=task), said) for task, said in answers.items()]
    return pl.concat([empty, *parts]).sort("task", *PAIR)


def _with_texts(pairs: pl.DataFrame, said: pl.DataFrame) -> pl.DataFrame:
    """Add pair_id, the query as most often typed in its locale, and the item's text."""
    typed = said.group_by("query_id", "query").len()
    typed = typed.sort("query_id", "len", "query", descending=[False, True, False])
    typed = typed.unique("query_id", keep="first", maintain_order=True).drop("len")
    items = said.select("locale", "product_id", "item").unique(["locale", "product_id"])
    known = pairs.join(typed, on="query_id").join(items, on=["locale", "product_id"])
    named = known.with_columns(pair_ids(known["query_id"], known["product_id"]))
    return named.select(pl.col(c).cast(t) for c, t in TASK_PAIRS.items())


def check_labelled(
    tasks: Sequence[Task], answers: Mapping[Task, pl.DataFrame], locales: Sequence[str], until: str
) -> None:
    """Raise :class:`DataError` for a task of which nobody has judged anything."""
    for task in tasks:
        if answers[task].is_empty():
            raise DataError(
                f"task {task}: no {DELIVERED[task]} of {' or '.join(locales)} up to {until}; "
                f"deliver some, or take {task} out of the market's tasks"
            )


def check_classes(pairs: pl.DataFrame, tasks: Sequence[Task]) -> None:
    """Raise :class:`DataError` where train or dev of a task lacks a label after consensus."""
    for task in tasks:
        for split in ("train", "dev"):
            found = set(pairs.filter(task=task, split=split)["grade"])
            lacking = [word for label, word in enumerate(WORDS) if label not in found]
            if lacking:
                raise DataError(
                    f"task {task}: after consensus no {split} pair is {lacking[0]!r}; judge more "
                    f"queries, or take {task} out of the market's tasks"
                )


def described(pairs: pl.DataFrame) -> dict[str, object]:
    """Return of each task its pairs by locale and split as [no, yes], and gold with its digest."""
    found: dict[str, object] = {}
    for (task,), own in pairs.group_by("task", maintain_order=True):
        counts: dict[str, dict[str, list[int]]] = {}
        grouped = own.group_by("locale", "split").agg(
            (pl.col("grade") == label).sum().alias(word) for label, word in enumerate(WORDS)
        )
        for locale, split, *n in grouped.sort("locale", "split").iter_rows():
            counts.setdefault(locale, {})[split] = n
        gold = own.filter(pl.col("split") == "gold").sort("pair_id")
        digest = json_digest(gold.select("pair_id", "grade").rows())
        found[str(task)] = {
            "pairs": counts, "gold_pairs": gold.height, "gold_queries": gold["query_id"].n_unique(),
            "gold_digest": digest,
        }  # fmt: skip
    return found
