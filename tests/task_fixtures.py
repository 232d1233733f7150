"""Query-category and query-item pairs in miniature, for tests of the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from csrm_tasks.records import PAIRS, TASK_PAIRS, write_table
from csrm_tasks.text import pair_id, query_id
from tests.llm_fixtures import SOURCE, TARGET, WORDS, make_snapshot

KINDS = {SOURCE: WORDS[:5], TARGET: WORDS[5:10]}


def pair(
    task: str,
    locale: str,
    query: str,
    item: str,
    grade: int,
    split: str,
    product: str | None = None,
) -> dict[str, Any]:
    qid = query_id(locale, query)
    product = product or f"{task}-{item}"
    return {
        "task": task, "pair_id": pair_id(qid, product), "query_id": qid, "product_id": product,
        "locale": locale, "grade": grade, "split": split, "raters": 1, "agree": 1, "query": query,
        "item": item,
    }  # fmt: skip


def task_frame(tasks: tuple[str, ...] = ("qc", "qi"), n: int = 40) -> pl.DataFrame:
    """Pairs whose label is whether the item names the query's first word."""
    rows = []
    for task in tasks:
        for locale, words in KINDS.items():
            for i in range(n):
                a, b = words[i % 5], words[(i // 5) % 5]
                split = ("train", "train", "dev", "gold")[i // 2 % 4]
                item = f"soup > {b}" if task == "qc" else f"{b} milk"
                rows.append(pair(task, locale, f"{a} {i // 2}", item, int(a == b), split))
                rows.append(pair(task, locale, f"{a} {i // 2}", f"soup, {a}", 1, split))
                rows.append(pair(task, locale, f"{a} {i // 2}", f"soup, {i}", 0, split))
    frame = pl.DataFrame(rows, {c: t for c, t in TASK_PAIRS.items()})
    return frame.unique(["task", "pair_id"], keep="first", maintain_order=True)


def make_task_snapshot(folder: Path, relevance: bool = True, **given: Any) -> Path:
    """A snapshot with pairs of the tasks, and of relevance or not."""
    make_snapshot(folder, target_labels=True)
    if not relevance:
        write_table(pl.DataFrame(schema=PAIRS), PAIRS, folder / "pairs.parquet")
    write_table(task_frame(**given), TASK_PAIRS, folder / "task_pairs.parquet")
    return folder
