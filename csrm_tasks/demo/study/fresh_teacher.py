"""The demo's teachers on fresh queries: LLM, n-gram linear model, and the stack of both (A50).

``python -m csrm_tasks.demo.study.fresh_teacher`` after ``make demo``. The teacher is chosen on dev
by the product's own step, and judged on queries that the demo's world draws from another stream
(:mod:`.fresh_towers`), by the generator's true grades. The LLM reads retrieved titles as it does of
any query, and the brands that the market's dictionaries find.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import polars as pl
import torch

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.dataset.snapshot import brand_dictionaries
from csrm_tasks.dataset.tables import by_locale, table
from csrm_tasks.demo.market.generate import DEMO_PRODUCTS, demo_world
from csrm_tasks.demo.market.world import TARGET
from csrm_tasks.demo.study.fresh_towers import MARKET, fresh_pairs, retrained
from csrm_tasks.evaluation.baselines import CharacterModel
from csrm_tasks.evaluation.gold import judged_set
from csrm_tasks.evaluation.measures import MEASURES
from csrm_tasks.evaluation.paired import difference, resample
from csrm_tasks.llm.prompt.prompts import RELEVANCE, QueryFields
from csrm_tasks.llm.scoring.probabilities import with_probabilities
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.index import ProductIndex
from csrm_tasks.retrieval.rqa import Dense, RqaRetriever, keep
from csrm_tasks.sections import COMPARED
from csrm_tasks.settings import load_settings
from csrm_tasks.steps.running import run_step
from csrm_tasks.teacher.evidence import JudgedTexts, probabilities_of, read_as
from csrm_tasks.teacher.judge import answers
from csrm_tasks.teacher.stack import FILE, Stack


def titles_of(
    store: ArtifactStore, market: MarketConfig, given: Mapping[str, str], queries: list[str]
) -> dict[str, tuple[str, ...]]:
    """Return the retrieved titles of each query, as the snapshot's own have them (A24)."""
    own = by_locale(store.open(given["snapshot"]).path)[TARGET]
    rqa, index = market.retrieval.rqa, ProductIndex.load(store.open(given["index"]).file(TARGET))
    dense = Dense(BiEncoder.load(store.open(given["ebr"]).file("encoder")), index)
    retriever = RqaRetriever(
        dict(own["products"].select("product_id", "title").iter_rows()),
        Bm25Index(store.open(given["bm25"]).file(TARGET)), dense, rqa.title_tokens,
    )  # fmt: skip
    least = store.open(given["rqa"]).facts["thresholds"][TARGET]
    found = zip(queries, retriever.retrieve(queries), strict=True)
    return {q: tuple(t.title for t in keep(titles, least, rqa.k)) for q, titles in found}


def scored_by_llm(
    store: ArtifactStore, market: MarketConfig, given: Mapping[str, str], fresh: pl.DataFrame
) -> pl.DataFrame:
    """Return ``fresh`` (query, query_id, product_id, locale, …) with the LLM's p0, p1, p2."""
    snapshot = store.open(given["snapshot"]).path
    queries = fresh["query"].unique(maintain_order=True)
    products, known = (table(snapshot, name) for name in ("products", "translations"))
    named = brand_dictionaries(market, products, known)[TARGET].match(queries)
    titles = titles_of(store, market, given, queries.to_list())
    scorer = RelevanceScorer.load(store.open(given["llm"]).path)
    fields = scorer.fields(snapshot, store.open(given["rqa"]).path)
    asked = {
        f"fresh {query}": QueryFields(query, brand, titles[query], "")
        for query, brand in zip(queries, named, strict=True)
    }
    return scorer.score(RELEVANCE, replace(fields, queries=asked), fresh)


def said_of(scored: pl.DataFrame, teacher: Path, snapshot: Path) -> dict[str, pl.DataFrame]:
    """Return what each teacher says of fresh pairs that the LLM has scored."""
    known, model = JudgedTexts.of(snapshot), CharacterModel.load(teacher)
    fresh = scored.select("query_id", norm="query").unique("query_id")
    texts = replace(known, queries=fresh)
    stack = Stack.read(teacher)
    read = read_as(stack.variant, texts, model, scored)
    bare = scored.drop("p0", "p1", "p2")
    return {
        "LLM": scored,
        "n-grams": with_probabilities(bare, texts.said_by(model, scored)),
        f"stack ({stack.variant})": with_probabilities(bare, stack.probabilities(read)),
    }


@click.command()
def main() -> None:
    """Choose the demo's teacher, and judge it and what it is made of; a row of a table each."""
    settings = load_settings(market=MARKET)
    torch.set_num_threads(settings.threads)
    market = load_market(MARKET, settings.markets)
    store = ArtifactStore(settings.artifacts, settings.cache)
    given = retrained(store)
    inputs = {name: given[name] for name in ("snapshot", "llm")}
    teacher = store.open(run_step("choose_teacher", market, inputs, {}, settings))
    click.echo(f"stack {teacher.facts['stack']}")
    if not (teacher.path / FILE).exists():
        return
    snapshot = store.open(given["snapshot"]).path
    norms = set(table(snapshot, "queries")["norm"])
    fresh = fresh_pairs(demo_world(DEMO_PRODUCTS, market.seed), norms).with_columns(
        query_id="fresh " + pl.col("query"), locale=pl.lit(TARGET)
    )
    fresh = fresh.with_columns(pair_id=pl.concat_str("query_id", "product_id", separator=" "))
    judged = judged_set(fresh)
    found = said_of(scored_by_llm(store, market, given, fresh), teacher.path, snapshot)
    tables = {name: answers(probabilities_of(frame), judged) for name, frame in found.items()}
    click.echo(f"{judged.queries} fresh queries, {judged.pairs} pairs; in brackets: minus the LLM")
    click.echo(f"| teacher | {' | '.join(COMPARED)} |")
    for name, own in tables.items():
        cells = []
        for measure in COMPARED:
            family, metric = MEASURES[measure]
            gain = difference(own[family], tables["LLM"][family], metric, resample(judged.queries))
            value = float(metric(own[family].sum(0)))
            cells.append(f"{100 * value:.1f} [{100 * gain.lo:+.1f}, {100 * gain.hi:+.1f}]")
        click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
