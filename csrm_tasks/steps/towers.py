"""Steps of the online towers: pairs, training, export, product embeddings."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from csrm_tasks import tracking
from csrm_tasks.errors import DataError
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.towers_publish import (
    learnt_pairs,
    publish_towers,
    taught_by,
    taught_for,
    teacher_of,
)

if TYPE_CHECKING:
    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.settings import Settings
    from csrm_tasks.towers.model import TwinTowers
    from csrm_tasks.towers.serving.tokens import TowerTokenizer
    from csrm_tasks.towers.tables import TowerTables

log = logging.getLogger("csrm")


def tables_of(ctx: Context) -> TowerTables:
    """Return the snapshot's tables, with the fields after the title that the market names (A27)."""
    return tables_with(ctx, ctx.market.towers.product_fields)


def tables_with(ctx: Context, fields: Sequence[str]) -> TowerTables:
    """Return the snapshot's tables with ``fields`` after the title: what a tower was trained on."""
    from csrm_tasks.towers.tables import TowerTables

    return TowerTables(ctx.input("snapshot").path, fields)


@step(
    "tower_pairs",
    inputs=["snapshot", "bm25", "ebr", "index"],
    config=[
        "towers.queries", "towers.impressed", "towers.retrieved", "towers.random",
        "towers.product_fields", "seed",
    ],
)  # fmt: skip
def tower_pairs(ctx: Context, *, seen: bool = False) -> Metadata:
    """Choose the target-locale pairs that the teacher scores for the towers (A31).

    ``seen``: of gold queries, too, for the control of towers that have seen them.
    """
    import polars as pl

    from csrm_tasks.dataset.tables import table
    from csrm_tasks.towers import pairs

    locale, config, tables = ctx.market.target_locale, ctx.market.towers, tables_of(ctx)
    behaviour = table(ctx.input("snapshot").path, "behaviour")
    chosen = pairs.distillation_queries(tables.queries, tables.pairs, locale, config.queries, seen)
    if chosen.is_empty():
        raise DataError(f"the snapshot has no {locale} query outside dev and gold to distil on")
    ids, retrieve = _retriever(ctx, chosen["norm"].to_list())
    drawn = pairs.tower_pairs(
        chosen["query_id"].to_list(),
        ids,
        behaviour.filter(pl.col("locale") == locale),
        retrieve,
        pairs.PairPlan(config.impressed, config.retrieved, config.random),
        ctx.market.seed,
    ).with_columns(locale=pl.lit(locale))
    drawn.select("query_id", "product_id", "locale", "source").write_parquet(
        ctx.out / "pairs.parquet"
    )
    counts = {str(k): int(n) for k, n in sorted(drawn["source"].value_counts().iter_rows())}
    log.info("tower pairs: %d of %d queries, %s", len(drawn), len(chosen), counts)
    return {"pairs": len(drawn), "queries": len(chosen), "sources": counts}


def _retriever(ctx: Context, queries: list[str]) -> tuple[list[str], Any]:
    """Return the target locale's product ids and a hybrid search by rows of ``queries`` (A31)."""
    import torch

    from csrm_tasks.retrieval.bm25 import Bm25Index
    from csrm_tasks.retrieval.encoder import BiEncoder
    from csrm_tasks.retrieval.hybrid import HybridSearch
    from csrm_tasks.retrieval.index import ProductIndex
    from csrm_tasks.retrieval.rqa import Dense

    torch.set_num_threads(ctx.settings.threads)
    model = BiEncoder.load(ctx.input("ebr").file("encoder"))
    dense = Dense(model, ProductIndex.load(ctx.input("index").file(ctx.market.target_locale)))
    dense.check(str(ctx.input("ebr").facts["encoder_digest"]))
    bm25 = Bm25Index(ctx.input("bm25").file(ctx.market.target_locale))
    return dense.index.ids, HybridSearch(dense, bm25, queries)


def encoder_identity(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """The base encoder's files are an input of training, though no artifact."""
    from csrm_tasks.base_models import base_digest

    return base_digest(market.towers.encoder)


@step(
    "train_towers",
    inputs=["snapshot"],
    optional=["scored"],
    config=["towers", "seed"],
    external_inputs=encoder_identity,
)
def train_towers(ctx: Context, *, target: str = "soft", seen: bool = False) -> Metadata:
    """Train the twin towers on the teacher's soft labels, or on human grades as a baseline.

    ``target``: soft needs input ``scored`` (the teacher's probabilities of the tower pairs; A29);
    hard learns the snapshot's train pairs of all locales in equally many steps (A32), as soft does
    where dev has refused the teacher.
    Nothing of a gold query is learnt, unless ``seen`` says so: then the teacher's word on them is,
    though on no gold pair. That is a control, and what shoppers type would be learnt in earnest.
    """
    import torch

    from csrm_tasks.towers.learnt import write_learnt
    from csrm_tasks.towers.model import TwinTowers
    from csrm_tasks.towers.start import start
    from csrm_tasks.towers.train import TrainPlan, train
    from csrm_tasks.towers.typos import with_typos
    from csrm_tasks.training.encoders import check_reads
    from csrm_tasks.training.precision import choose_device, choose_dtype

    torch.set_num_threads(ctx.settings.threads)
    config, seed = ctx.market.towers, ctx.market.seed
    tables = tables_of(ctx)
    by = taught_by(ctx, target)
    examples = learnt_pairs(ctx, tables, by, seen)
    reader = reader_of(ctx.market)
    device = choose_device()
    model = TwinTowers.from_base(
        config.encoder, dim=config.dim, scale=config.scale, learn_scale=config.learn_scale,
        seed=seed, separate=config.separate_trunks, lexical=config.lexical,
    ).to(device)  # fmt: skip
    check_reads(config.encoder, model.config, _longest_texts(reader))
    dtype = choose_dtype(device, model.config.hidden_size)
    plan = TrainPlan.of(config, seed)
    read = with_typos(examples, config.typo_share, seed, tables.barred(seen))
    write_learnt(ctx.out, read.queries, ctx.market.target_locale)
    texts = reader.queries(read.queries), reader.products(read.products)
    if config.lexical or config.fitted_start:
        start(model, read, *texts, seed, fitted=config.fitted_start)
    done = train(model, read, *texts, plan, ctx.work / "checkpoint.safetensors", dtype)
    taught = taught_for(ctx, tables, seen) if target == "soft" else None
    facts = publish_towers(ctx, model.cpu(), reader, tables, taught) | {
        "target": target, "taught_by": by, "teacher": teacher_of(ctx, target), "seen": seen,
        "pairs": len(examples), "queries": len(examples.queries),
        "products": len(examples.products), "steps": plan.steps, "loss": done.curve[-1][1],
        "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
    }  # fmt: skip
    numbers = {k: float(v) for k, v in facts.items() if isinstance(v, int | float)}
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params=config.model_dump() | {"target": target, "seen": seen},
        metrics=numbers | {"seconds": done.seconds, "pairs_per_second": done.pairs / done.seconds},
        curves={"kd_loss": done.curve},
    )  # fmt: skip
    return facts


def reader_of(market: MarketConfig) -> TowerTokenizer:
    """Return how the towers of a market read texts: its encoder's tokenizer, both lengths."""
    from csrm_tasks.towers.model import load_tokenizer
    from csrm_tasks.towers.serving.tokens import TowerTokenizer

    config = market.towers
    tokenizer = load_tokenizer(config.encoder)
    return TowerTokenizer(
        tokenizer.backend_tokenizer.to_str(), config.query_tokens, config.title_tokens,
        tokenizer.pad_token_id, config.query_prefix, config.title_prefix,
    )  # fmt: skip


def _longest_texts(reader: TowerTokenizer) -> dict[str, int]:
    """Return the tokens of the longest query and title with their prefixes, by key."""
    sides = (
        ("query", reader.query_prefix, reader.query_reader()),
        ("title", reader.title_prefix, reader.title_reader()),
    )
    return {
        f"towers.{part}_tokens" + (f" with {part}_prefix" if prefix else ""): read.tokens
        for part, prefix, read in sides
    }


def load_towers(ctx: Context) -> tuple[TwinTowers, TowerTokenizer]:
    """Return the trained towers of input ``towers`` and how their texts are read."""
    from csrm_tasks.towers.model import TwinTowers
    from csrm_tasks.towers.serving.tokens import TowerTokenizer

    folder, about = ctx.input("towers").file("towers"), _about(ctx)
    definition = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return TwinTowers.load(folder, dim=about["dim"]), TowerTokenizer.of(definition, about)


def _about(ctx: Context) -> dict[str, Any]:
    text = ctx.input("towers").file("towers.json").read_text(encoding="utf-8")
    about: dict[str, Any] = json.loads(text)
    return about


@step("export_towers", inputs=["towers", "snapshot"])
def export_towers(ctx: Context) -> Metadata:
    """Export both towers to ONNX, fp32 and int8; what is outside the bounds is refused (A34)."""
    import torch

    from csrm_tasks.lexical.evidence import FILE as LEXICON
    from csrm_tasks.towers import measure
    from csrm_tasks.towers.export import export_towers as export
    from csrm_tasks.towers.learnt import FILE

    torch.set_num_threads(ctx.settings.threads)
    model, reader = load_towers(ctx)
    about = _about(ctx)
    (ctx.out / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    for name in (FILE, LEXICON) if "evidence" in about else (FILE,):
        shutil.copy(ctx.input("towers").file(name), ctx.out)
    # Flips are counted on the dev pairs of every locale: half a percent of few is less than one.
    dev = tables_with(ctx, about["product_fields"]).dev(None)
    parities = export(model, ctx.out, about, measure.reference(model, reader, dev))
    facts = {f"{variant}_{k}": v for variant, p in parities.items() for k, v in vars(p).items()}
    metrics = {k: float(v) for k, v in facts.items() if not isinstance(v, str)}
    tracking.log_run(ctx.settings, ctx.market.market, ctx.ref, metrics=metrics)
    towers = ctx.input("towers").facts
    return facts | {
        "seen": bool(towers.get("seen", False)),
        "taught_by": towers.get("taught_by", "llm"),  # towers from before do not say
        "teacher": towers.get("teacher"),
    }


@step("embed_products", inputs=["snapshot", "export"], optional=["second_stage"])
def embed_products(ctx: Context) -> Metadata:
    """Embed the target locale's products with the exported tower, each with its content hash.

    Beside the vectors stand the products' tokens for the second stage, where dev has kept one.
    """
    import polars as pl

    from csrm_tasks.towers.serving.embed import embed_catalogue
    from csrm_tasks.towers.serving.product_tokens import write_tokens
    from csrm_tasks.towers.serving.runtime import TowerRuntime
    from csrm_tasks.towers.serving.second_stage import SecondStage

    locale = ctx.market.target_locale
    runtime = TowerRuntime(ctx.input("export").path, threads=ctx.settings.threads)
    products = tables_with(ctx, runtime.product_fields).products
    products = products.filter(pl.col("locale") == locale).sort("product_id")
    if products.is_empty():
        raise DataError(f"the snapshot has no product of {locale} to embed")
    embed_catalogue(products, runtime.encode_products, runtime.dim, ctx.out, brands=runtime.brands)
    second = ctx.inputs.get("second_stage")
    if second is not None and second.facts["kept"]:
        cross = SecondStage(second.path).cross
        write_tokens(ctx.out, products["title"].to_list(), cross.title_reader)
    log.info("embedded %d products of %s", products.height, locale)
    return {"products": products.height, "locale": locale, "dim": runtime.dim}
