"""Settings of the demo's towers, compared on fresh queries: neither gold nor in the market at all.

``python -m csrm_tasks.demo.study.fresh_towers`` after ``make demo``: for each setting the product's
own steps choose the pairs, have the demo's teacher score them and train the towers (finished ones
are found again), with two seeds each. Judged on queries that the demo's world draws from another
stream, without any that the market knows, by the generator's true grades. The rule, fixed before
the first figure was seen: the cheapest setting within half a point of the best mean of both heads'
F1 at the thresholds that would be served.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import click
import numpy as np
import polars as pl
import torch

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.demo.market.generate import DEMO_PRODUCTS, demo_world
from csrm_tasks.demo.market.labels import GOLD_PAGE, default_queries, draw_page
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.search import LexicalIndex, Shelves
from csrm_tasks.demo.market.world import TARGET, World, stream
from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.evidence import Evidence
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.records import Grade
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps.running import run_step
from csrm_tasks.text import normalise
from csrm_tasks.towers import measure
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.tables import TowerTables
from csrm_tasks.towers.thresholds import at_threshold, choose_threshold
from csrm_tasks.towers.tower import HEADS

MARKET = "demo"
NAMESPACE = 1_000_003  # added to the world's seed: another stream of queries over the same shop
SEEDS = (0, 1)  # of a setting's trainings
PARTS = ("snapshot", "bm25", "ebr", "index")
SCORING = ("llm", "rqa", "teacher")  # what the demo scores its pairs with


def fresh_pairs(world: World, known: set[str]) -> pl.DataFrame:
    """Return query, product_id and true grade: a page of each fresh query of the target.

    ``known``: normalised texts that are left out, all that the market has in any table.
    """
    drawn = replace(world, seed=world.seed + NAMESPACE)
    made = make_queries(drawn, TARGET, default_queries(world)[TARGET]).queries
    shelves, index = Shelves(world.lexicon, world.target), LexicalIndex(world.target)
    rng, shop = stream(drawn.seed, "fresh pages"), world.target.products
    rows: list[tuple[str, str, int]] = []
    for query in made:
        if normalise(query.text) in known:
            continue
        page = draw_page(shelves.pools(query, index), GOLD_PAGE, len(shop), rng)
        grades = shelves.grades(query, np.array(page, dtype=np.int64)).tolist()
        rows += [
            (normalise(query.text), shop[p].product_id, g)
            for p, g in zip(page, grades, strict=True)
        ]
    return pl.DataFrame(rows, ["query", "product_id", "grade"], orient="row")


def retrained(store: ArtifactStore) -> dict[str, str]:
    """Return what the newest retraining of the demo chose and scored tower pairs with."""
    pairs = [
        (ref, manifest["inputs"]) for ref, manifest in store.published(f"{MARKET}/tower_pairs")
    ]
    scored = {
        manifest["inputs"]["pairs"]: manifest["inputs"]
        for step in ("score_pairs", "join_shards")
        for _, manifest in store.published(f"{MARKET}/{step}")
        if "pairs" in manifest["inputs"]
    }
    for ref, inputs in reversed(pairs):
        if ref in scored and store.open(inputs["snapshot"]).facts["stage"] == 2:
            own = {name: inputs[name] for name in PARTS}
            return own | {n: scored[ref][n] for n in SCORING if n in scored[ref]}
    raise ArtifactError(f"market {MARKET} has no tower pairs of a retraining; run make demo first")


def train(market: MarketConfig, settings: Settings, given: Mapping[str, str], seed: int) -> str:
    """Train towers as the weekly DAG does; ``seed`` is of their training alone."""
    inputs = {name: given[name] for name in PARTS}
    pairs = run_step("tower_pairs", market, inputs, {}, settings)
    read = {name: given[name] for name in ("snapshot", *SCORING) if name in given}
    scored = run_step("score_pairs", market, read | {"pairs": pairs}, {}, settings)
    own = market.model_copy(update={"seed": market.seed + seed})
    given = {"snapshot": given["snapshot"], "scored": scored}
    return run_step("train_towers", own, given, {"target": "soft"}, settings)


def judge(towers: Artifact, fresh: pl.DataFrame) -> dict[str, float]:
    """Return each head's F1 at its threshold, and at the best cut, in points.

    ``fresh``: query, title as the product tower reads it, grade.
    """
    about = json.loads(towers.file("towers.json").read_text(encoding="utf-8"))
    folder = towers.file("towers")
    definition = (folder / "tokenizer.json").read_text(encoding="utf-8")
    reader = TowerTokenizer.of(definition, about)
    model = TwinTowers.load(folder, dim=about["dim"])
    evidence = Evidence.load(towers.path, about["evidence"]) if "evidence" in about else None
    scores = measure.probabilities(model, measure.reference(model, reader, fresh), evidence)
    grade, found = fresh["grade"].to_numpy(), {}
    for i, (head, wanted) in enumerate(zip(HEADS, (Grade.EXACT, Grade.IRRELEVANT), strict=True)):
        value, truth = about["heads"][head]["threshold"], grade == wanted
        found[head] = 100 * at_threshold(value, scores[:, i], truth).f1
        found[f"{head} best"] = 100 * choose_threshold(head, scores[:, i], truth, None).f1
    return found


@click.command()
@click.option("--random", "draws", type=int, multiple=True, default=(3, 5), help="towers.random")
@click.option("--steps", type=int, multiple=True, default=(380, 420), help="towers.steps")
def main(draws: tuple[int, ...], steps: tuple[int, ...]) -> None:
    """Train and judge the towers of every setting; a row of the table as soon as it is known."""
    settings = load_settings(market=MARKET)
    torch.set_num_threads(settings.threads)
    market = load_market(MARKET, settings.markets)
    store = ArtifactStore(settings.artifacts, settings.cache)
    given = retrained(store)
    tables = TowerTables(store.open(given["snapshot"]).path, market.towers.product_fields)
    fresh = fresh_pairs(demo_world(DEMO_PRODUCTS, market.seed), set(tables.queries["norm"]))
    titles = tables.products.filter(locale=TARGET).select("product_id", "title")
    fresh = fresh.join(titles, on="product_id", maintain_order="left")
    click.echo(f"{fresh['query'].n_unique()} fresh queries, {fresh.height} pairs")
    figures = ("em", "defect", "em best", "defect best")
    click.echo(f"| random | steps | seed | {' | '.join(figures)} |")
    for n, count, seed in product(draws, steps, SEEDS):
        towers = market.towers.model_copy(update={"random": n, "steps": count})
        changed: Any = market.model_copy(update={"towers": towers})
        found = judge(store.open(train(changed, settings, given, seed)), fresh)
        cells = [n, count, seed, *(f"{found[name]:.1f}" for name in figures)]
        click.echo(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
