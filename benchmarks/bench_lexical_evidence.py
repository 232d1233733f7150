"""What lexical evidence is worth, and what it costs: the same towers with and without it (A50).

Gains: towers are trained on the generated shop as the product trains them, on a teacher that is
right in three of four pairs; evidence is fitted and thresholds are chosen by the product's code.
Judged are fresh queries by their true grades; F1 at the thresholds that would be served.
``teacher_micro_f1_gain`` is the product's stack of that teacher with lexical evidence, chosen on
dev, over the teacher by itself: a stand-in whose errors know nothing of the words. The demo's own
LLM and its stack are compared by ``python -m csrm_tasks.demo.study.fresh_teacher``.

Costs: two services in processes of their own, one release each, the same but for the evidence;
``/score`` with 100 precomputed products from one client, in turn. The query tower has XLM-R-base's
widths and two layers. Every query is remembered after the warm-up: the harshest case, for a new one
takes several times as long with and without. Ratios are with over without, 1 is free;
``latency_ratio_previous`` is over an earlier build's ``/score`` (:mod:`benchmarks.previous`).
"""

from __future__ import annotations

import secrets
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl

from benchmarks.bench_serving import ours_body, searches
from benchmarks.harness import closing_line, table
from benchmarks.load import drive, for_seconds, post, run
from benchmarks.servers import earlier, ours_of, server
from benchmarks.serving_world import MARKET, Releases, route
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.labels import draw_page
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.search import LexicalIndex, Shelves
from csrm_tasks.demo.market.world import TARGET, World, stream
from csrm_tasks.demo.study.fresh_towers import fresh_pairs
from csrm_tasks.evaluation.gold import judged_set
from csrm_tasks.lexical.evidence import Evidence
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.records import PAIRS, PRODUCTS, QUERIES, SCORED, TRANSLATIONS, write_table
from csrm_tasks.release.bundle.probe import peak_memory
from csrm_tasks.settings import PROJECT_ROOT, load_settings
from csrm_tasks.teacher.choose import stack_on
from csrm_tasks.teacher.evidence import (
    PROBABILITIES,
    VARIANTS,
    JudgedTexts,
    probabilities_of,
    read_as,
)
from csrm_tasks.text import normalise, pair_id, query_id
from csrm_tasks.towers import evidence, measure
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.tables import TowerTables
from csrm_tasks.towers.thresholds import at_threshold
from csrm_tasks.towers.train import TrainPlan, train
from tests.ports import reserve_port

GRADES, PAGE = 3, 18
RIGHT = 0.75  # of the teacher's most probable grades
PEOPLE = 5  # one query of so many is judged by people, too, and one of so many of those is dev


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    products: int
    queries: int
    steps: int
    seeds: int
    seconds: float
    repeats: int


FULL, QUICK = Size(2000, 3000, 380, 3, 5.0, 5), Size(400, 300, 40, 1, 0.5, 1)


def word(grade: int, rng: np.random.Generator) -> list[float]:
    """Return what the stand-in for an LLM says of a pair: p0, p1, p2."""
    said = grade if rng.random() < RIGHT else int(rng.integers(GRADES))
    return [0.8 if g == said else 0.1 for g in range(GRADES)]


def write_snapshot(world: World, size: Size, folder: Path) -> None:
    """Write a snapshot's tables and the teacher's word, ``scored.parquet``."""
    goods = [
        (p.product_id, TARGET, p.title, p.brand, p.category, "") for p in world.target.products
    ]
    shelves, index = Shelves(world.lexicon, world.target), LexicalIndex(world.target)
    rng = stream(world.seed, "evidence")
    queries, pairs, scored = [], [], []
    for n, query in enumerate(make_queries(world, TARGET, size.queries).queries):
        norm = normalise(query.text)
        q = query_id(TARGET, norm)
        queries.append((q, TARGET, query.text, norm, "", "log", 0))
        page = draw_page(shelves.pools(query, index), PAGE, len(goods), rng)
        grades = shelves.grades(query, np.array(page, dtype=np.int64)).tolist()
        judged = n % PEOPLE == 0
        split = "dev" if n % (PEOPLE * PEOPLE) == 0 else "train"
        for row, grade in zip(page, grades, strict=True):
            product = goods[row][0]
            scored.append((q, product, TARGET, *word(grade, rng)))
            if judged:
                pairs.append((pair_id(q, product), q, product, TARGET, grade, split, 1, 1))
    for name, rows, schema in (
        ("products", goods, PRODUCTS), ("queries", queries, QUERIES), ("pairs", pairs, PAIRS),
        ("translations", [], TRANSLATIONS), ("scored", scored, SCORED),
    ):  # fmt: skip
        frame = pl.DataFrame(rows, schema, orient="row")
        write_table(frame, schema, folder / f"{name}.parquet")


def gains(market: MarketConfig, size: Size, seed: int, work: Path) -> dict[str, float]:
    """Train and judge one pair of towers; returns gains, as differences of shares."""
    from csrm_tasks.steps.towers import reader_of

    world = demo_world(size.products, seed)
    write_snapshot(world, size, work)
    config = market.towers
    tables, reader = TowerTables(work, config.product_fields), reader_of(market)
    examples = tables.soft(work / "scored.parquet")
    model = TwinTowers.from_base(
        str(PROJECT_ROOT / config.encoder), dim=config.dim, scale=config.scale,
        learn_scale=True, seed=seed,
    )  # fmt: skip
    texts = reader.queries(examples.queries), reader.products(examples.products)
    train(model, examples, *texts, TrainPlan.of(config, seed), work / "checkpoint.safetensors")
    model = model.eval()
    lexicon = evidence.lexicon_of(tables)
    taught = measure.taught_pairs(model, reader, examples, seed)
    people, dev = (
        evidence.judged_pairs(model, reader, tables.judged(s), lexicon, seed)
        for s in ("train", "dev")
    )
    learnt = {"train": people, "teacher": evidence.soft_pairs(model, taught, lexicon)}
    fitted = evidence.fit(lexicon, learnt, dev, seed)
    fresh = fresh_pairs(world, set(tables.queries["norm"])).join(
        tables.products.select("product_id", "title"), on="product_id", maintain_order="left"
    )
    without, with_it = (
        judge(model, fresh, measure.reference(model, reader, fresh), taught, found)
        for found in (None, fitted.evidence)
    )
    found = {name: with_it[name] - without[name] for name in without}
    return found | {"teacher_micro_f1_gain": stacked_gain(work, fresh, seed)}


def stacked_gain(work: Path, fresh: pl.DataFrame, seed: int) -> float:
    """Return the stack's micro-F1 on ``fresh`` less the stand-in's; 0 where dev keeps none."""
    rng, texts = np.random.default_rng(seed), JudgedTexts.of(work)
    model = texts.fit_ngrams(TARGET)

    def heard(pairs: pl.DataFrame) -> pl.DataFrame:
        said = np.array([word(grade, rng) for grade in pairs["grade"].to_list()])
        return pairs.with_columns(
            pl.Series(name, said[:, k]) for k, name in enumerate(PROBABILITIES)
        )

    own = texts.pairs.filter(split="dev")
    dev = judged_set(texts.dev(TARGET, heard(own)))
    said = probabilities_of(dev.frame)
    made = stack_on(dev, said, {v: read_as(v, texts, model, dev.frame) for v in VARIANTS})
    if made.stack is None:
        return 0.0
    asked = fresh.with_columns(query_id="fresh " + pl.col("query"), locale=pl.lit(TARGET))
    asked, named = heard(asked), asked.select("query_id", norm="query").unique("query_id")
    read = read_as(made.stack.variant, replace(texts, queries=named), model, asked)
    grade = asked["grade"].to_numpy()
    alone, stack = probabilities_of(asked), made.stack.probabilities(read)
    right = [float((p.argmax(axis=1) == grade).mean()) for p in (stack, alone)]
    return right[0] - right[1]


def judge(
    model: TwinTowers, fresh: pl.DataFrame, embedded: measure.Reference,
    taught: measure.TaughtPairs, found: Evidence | None,
) -> dict[str, float]:  # fmt: skip
    """Return what would be served: F1 of both heads, EM@1."""
    scores = measure.probabilities(model, embedded, found)
    cuts = measure.teacher_thresholds(model, taught, None, found)
    grade = fresh["grade"].to_numpy()
    best = fresh.with_columns(score=pl.Series(scores[:, 0])).sort("score", descending=True)
    first = best.group_by("query", maintain_order=True).first()
    return {
        "em_f1_gain": at_threshold(cuts["em"], scores[:, 0], grade == 2).f1,
        "em_at_1_gain": float((first["grade"] == 2).mean()),  # type: ignore[arg-type]
        "defect_f1_gain": at_threshold(cuts["defect"], scores[:, 1], grade == 0).f1,
    }


def costs(size: Size, home: Path) -> dict[str, list[float]]:
    """Return latency_ratio of every repeat and memory_ratio, with over without."""
    titles = list(dict.fromkeys(p.title for p in demo_world(size.products, 0).target.products))
    products = [f"p{i}" for i in range(len(titles))]
    token = secrets.token_hex(16)
    asked = [post("/score", ours_body(*a), token) for a in searches(titles, products, 2000)]
    ports, pids = {}, {}
    with ExitStack() as stack:
        for name, read in (("without", None), ("with", titles)):
            env = ours_of(home / name, token)
            settings = load_settings(env)
            settings.home.mkdir(parents=True)
            route(settings, 1, Releases(settings, products, read).make(0))
            ports[name] = reserve_port()
            command = ["csrm", "serve", "--market", MARKET]
            pids[name] = stack.enter_context(server(command, ports[name], "/readyz", env))
        before = stack.enter_context(earlier(home / "previous", len(products), token))
        ports |= {} if before is None else {"previous": before}
        times: dict[str, list[float]] = {name: [] for name in ports}
        for turn in range(size.repeats + 1):  # the first warms up
            for name, port in ports.items():
                load = run(drive(port, asked, 1, for_seconds(size.seconds)))
                if load.failed:
                    raise RuntimeError(f"{load.failed} requests {name} evidence failed")
                if turn:
                    times[name].append(load.quantile(0.5))
        memory = {name: peak_memory(pid) for name, pid in pids.items()}
    ratios = {
        f"latency_ratio{'' if name == 'without' else '_' + name}": [
            a / b for a, b in zip(times["with"], other, strict=True)
        ]
        for name, other in times.items() if name != "with"
    }  # fmt: skip
    return (
        ratios
        | {f"ms {name}": [1e3 * t for t in each] for name, each in times.items()}
        | {
            "memory_ratio": [memory["with"] / memory["without"]],
            "MB without": [memory["without"] / 2**20],
            "MB with": [memory["with"] / 2**20],
        }
    )


def main(quick: bool) -> None:
    """Print the table and the figures."""
    size = QUICK if quick else FULL
    market = load_market("demo", PROJECT_ROOT / "dags" / "markets")
    towers = market.towers.model_copy(update={"steps": size.steps})
    market = market.model_copy(update={"towers": towers})
    seen: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(size.seeds):
            work = Path(folder) / f"seed{seed}"
            work.mkdir()
            for name, value in gains(market, size, seed, work).items():
                seen.setdefault(name, []).append(value)
        seen |= costs(size, Path(folder))
    rows: list[dict[str, object]] = [
        {"figure": k, "median": median(v), "least–greatest": f"{min(v):.4g}–{max(v):.4g}"}
        for k, v in seen.items()
    ]
    print(table(rows))
    print(f"\n{size.seeds} seeds, fresh queries.\n")
    ends = ("_gain", "_ratio", "_previous")
    figures = {k: median(v) for k, v in seen.items() if k.endswith(ends)}
    print(closing_line("lexical_evidence", figures, ("numpy", "onnxruntime", "scikit-learn")))
