"""A judged world in which words say more than the LLM does: texts, grades and what models say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.artifacts import Artifact
from csrm_tasks.evaluation.gold import Gold, judged_set
from csrm_tasks.evaluation.metrics import Floats, Ints
from csrm_tasks.records import PAIRS, PRODUCTS, QUERIES, VOTES, write_table
from csrm_tasks.settings import Settings
from tests.evaluation_fixtures import noisy_grades
from tests.release_fixtures import publish

LOCALE = "zh-TW"
COLOURS, THINGS = "紅藍綠白", ("茶壺", "雨傘", "背包", "拖鞋", "毛巾", "檯燈", "餐盤", "枕頭")


def said(grade: Ints, right: float, rng: np.random.Generator) -> Floats:
    """Return probabilities (N, 3) of a model that is right on about the share ``right``."""
    p = np.full((len(grade), 3), (1 - right) / 2)
    p[np.arange(len(grade)), noisy_grades(grade, right, rng)] = right
    return p


def dev_of(queries: int, per_query: int = 6, seed: int = 0) -> Gold:
    """Return judged pairs without texts."""
    rng = np.random.default_rng(seed)
    rows = [(f"q{q}-{p}", f"q{q}", f"p{p}") for q in range(queries) for p in range(per_query)]
    frame = pl.DataFrame(rows, ["pair_id", "query_id", "product_id"], orient="row")
    return judged_set(frame.with_columns(grade=pl.Series(rng.integers(0, 3, len(rows)))))


def tables(train: int = 60, dev: int = 60, gold: int = 20) -> dict[str, pl.DataFrame]:
    """Return a snapshot's tables: a query's colour and thing are both, one or none of a title's."""
    titles = [f"{c}色 {t} {i}號" for i in range(2) for c in COLOURS for t in THINGS]
    products = [(f"p{i}", LOCALE, t, f"牌{i % 5}", "家用 > 雜貨", "") for i, t in enumerate(titles)]
    rng = np.random.default_rng(0)
    queries, pairs = [], []
    for n in range(train + dev + gold):
        colour, thing = COLOURS[n % 4], THINGS[n // 4 % 8]
        queries.append(
            (f"q{n}", LOCALE, f"{colour}色{thing}", f"{colour}色{thing}", "", "label", 1)
        )
        split = "train" if n < train else "dev" if n < train + dev else "gold"
        near = [i for i, t in enumerate(titles) if thing in t]
        for i in sorted({*rng.choice(near, 3).tolist(), *rng.choice(len(titles), 4).tolist()}):
            grade = (thing in titles[i]) * (1 + (colour in titles[i]))
            pairs.append((f"q{n}-p{i}", f"q{n}", f"p{i}", LOCALE, grade, split, 1, 1))
    made = {
        "products": pl.DataFrame(products, PRODUCTS, orient="row"),
        "queries": pl.DataFrame(queries, QUERIES, orient="row"),
        "pairs": pl.DataFrame(pairs, PAIRS, orient="row"),
    }
    judged = made["pairs"].filter(pl.col("split") != "gold")
    made["votes"] = judged.select("pair_id", "locale", rater=pl.lit("r"), grade="grade").cast(VOTES)  # type: ignore[arg-type]
    return made


def scored(pairs: pl.DataFrame, right: float, seed: int = 0) -> pl.DataFrame:
    """Return ``pairs`` with p0, p1, p2 of an LLM that is right on about the share ``right``."""
    p = said(pairs["grade"].cast(pl.Int64).to_numpy(), right, np.random.default_rng(seed))
    return pairs.with_columns(**{f"p{k}": pl.Series(p[:, k].astype(np.float32)) for k in range(3)})


def week(
    settings: Settings, key: str, right: float, made: dict[str, pl.DataFrame] | None = None
) -> dict[str, str]:
    """Publish a snapshot and the chosen LLM, which is right on dev as given; returns both."""
    frames = made or tables()

    def snapshot(folder: Path) -> None:
        for name, schema in (
            ("products", PRODUCTS), ("queries", QUERIES), ("pairs", PAIRS), ("votes", VOTES)
        ):  # fmt: skip
            write_table(frames[name], schema, folder / f"{name}.parquet")

    def llm(folder: Path) -> None:
        own = scored(frames["pairs"].filter(split="dev"), right)
        own.select("pair_id", "grade", "p0", "p1", "p2").write_parquet(
            folder / "dev_scores.parquet"
        )

    write: dict[str, Callable[[Path], Any]] = {"snapshot": snapshot, "select_llm": llm}
    found: dict[str, Artifact] = {step: publish(settings, step, key, write[step]) for step in write}
    return {"snapshot": found["snapshot"].ref, "llm": found["select_llm"].ref}
