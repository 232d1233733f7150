"""Steps of retrieval: BM25, pseudo pairs, the EBR, and RQA."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from csrm_tasks.errors import ConfigError
from csrm_tasks.json_files import write_json
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.retrieval_index import open_encoder

if TYPE_CHECKING:
    from csrm_tasks.artifacts import Artifact
    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.retrieval.classes import TitleClasses
    from csrm_tasks.retrieval.encoder import BiEncoder
    from csrm_tasks.retrieval.pairs import TrainingPairs
    from csrm_tasks.retrieval.rqa import Dense, Title
    from csrm_tasks.sections import Ebr
    from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")


def _encoder_identity(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """The base encoder's files are an input of training, though no artifact."""
    from csrm_tasks.base_models import base_digest

    return base_digest(market.retrieval.ebr.encoder)


def _analyser_identity(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """An index is read by the analyser that made it, of which a library's data is a part."""
    from csrm_tasks.lexical.analyser import identity

    return identity()


@step("build_bm25", inputs=["snapshot"], optional=["previous"], external_inputs=_analyser_identity)
def build_bm25(ctx: Context) -> Metadata:
    """Index every locale's titles for lexical search, one folder per locale (A20).

    ``previous`` is an earlier index to go on from: it answers as one built anew, and only new and
    changed titles are analysed.
    """
    from csrm_tasks.dataset.tables import by_locale
    from csrm_tasks.retrieval.bm25 import Bm25Index

    facts: Metadata = {"products": {}, "analysed": {}}
    previous = ctx.inputs.get("previous")
    for locale, own in by_locale(ctx.input("snapshot").path).items():
        folder = ctx.out / locale
        if previous and (previous.path / locale / "index.json").is_file():  # else another's format
            shutil.copytree(previous.path / locale, folder)
            index = Bm25Index(folder)
        else:
            index = Bm25Index.build(folder, [])
        facts["analysed"][locale] = index.sync(own["products"].select("product_id", "title").rows())
        facts["products"][locale] = len(index)
        log.info("bm25: %d titles of %s, %d of them new", len(index), locale,
                 facts["analysed"][locale])  # fmt: skip
    return facts


@step("pseudo_pairs", inputs=["snapshot", "bm25"], config=["retrieval.bm25_k"])
def pseudo_pairs(ctx: Context) -> Metadata:
    """Pair every query with what BM25 finds in its own locale, for the CVR ranker (A21).

    Not of languages that are only judged in: a retriever learns from these pairs.
    """
    import polars as pl

    from csrm_tasks.dataset.queries import retriever_queries
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.records import write_table
    from csrm_tasks.retrieval.bm25 import Bm25Index
    from csrm_tasks.retrieval.pseudo import PSEUDO
    from csrm_tasks.retrieval.pseudo import pseudo_pairs as pair_up

    queries = retriever_queries(table(ctx.input("snapshot").path, "queries"))
    queries = queries.filter(~pl.col("locale").is_in(ctx.market.evaluation_locales))
    products = table(ctx.input("snapshot").path, "products")
    locales = sorted(products["locale"].unique())
    indexes = {locale: Bm25Index(ctx.input("bm25").file(locale)) for locale in locales}
    pairs = pair_up(queries, products, indexes, ctx.market.retrieval.bm25_k)
    write_table(pairs, PSEUDO, ctx.out / "pairs.parquet")
    unmatched = len(queries) - pairs["query_id"].n_unique()
    log.info("pseudo pairs: %d; %d queries match no title", len(pairs), unmatched)
    return {"pairs": len(pairs), "queries": len(queries), "queries_without_match": unmatched}


@step(
    "train_ebr",
    inputs=["snapshot", "scored"],
    optional=["warm", "bm25"],
    config=["retrieval.ebr", "seed"],
    external_inputs=_encoder_identity,
)
def train_ebr(ctx: Context, *, local: bool, unclicked: bool = False) -> Metadata:
    """Train the retriever on pairs scored by the CVR ranker; ``local`` adds behaviour (A22, A23).

    ``unclicked`` leaves out what shoppers did with gold queries: a control, which tells how much of
    RQA*'s gain on gold is what those very shoppers said.

    ``warm`` is an earlier EBR to start from instead of the base encoder; with ``unclicked`` not one
    that has read what shoppers did with gold queries, in whichever week. ``bm25`` goes with
    ``retrieval.ebr.mining``: hard negatives are mined from it.
    """
    import torch

    from csrm_tasks import tracking
    from csrm_tasks.dataset.queries import retriever_queries
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.records import SCORED, read_table
    from csrm_tasks.retrieval.ebr import EbrTrainer
    from csrm_tasks.retrieval.encoder import BiEncoder
    from csrm_tasks.retrieval.pairs import training_pairs

    torch.set_num_threads(ctx.settings.threads)
    config, seed = ctx.market.retrieval.ebr, ctx.market.seed
    scored = read_table(ctx.input("scored").file("scored.parquet"), SCORED)
    snapshot = ctx.input("snapshot")
    behaviour = table(snapshot.path, "behaviour") if local else None
    if behaviour is not None and unclicked:
        gold = table(snapshot.path, "pairs").filter(split="gold").select("query_id").unique()
        behaviour = behaviour.join(gold, on="query_id", how="anti")
    queries = retriever_queries(table(snapshot.path, "queries"))
    products = table(snapshot.path, "products")
    data = training_pairs(queries, products, scored, behaviour)
    data, mined = _with_hard_negatives(ctx, data)
    classes, counted = _classes(ctx, data)
    warm = ctx.inputs.get("warm")
    clicked = warm is not None and _has_clicks(warm)
    if warm is not None and clicked and unclicked:
        log.info("%s has read what shoppers did with gold queries: started anew", warm.ref)
        warm = None
    clicked = not unclicked and (clicked or local)
    model = (
        _warm_start(warm, config)
        if warm
        else BiEncoder.from_base(
            config.encoder,
            config.dim,
            config.max_length,
            seed,
            config.query_prefix,
            config.title_prefix,
        )
    )
    trainer = EbrTrainer(model, data, config, seed, ctx.work, classes)
    trainer.run()
    metrics = trainer.metrics() | {"pairs": data.count} | mined | counted
    facts = metrics | {"encoder_digest": model.save(ctx.out / "encoder"), "steps": config.steps}
    facts |= {"unclicked": unclicked, "clicked": clicked}
    about = {"local": local, "warm": warm.ref if warm else "", "base": config.encoder}
    write_json(ctx.out / "ebr.json", facts | about | {"dim": model.dim})
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params=config.model_dump() | about, metrics=metrics, curves=trainer.curves(),
    )  # fmt: skip
    return facts


def _has_clicks(ebr: Artifact) -> bool:
    """Whether an EBR has read what shoppers did with gold queries, or started from one that has."""
    said = json.loads(ebr.file("ebr.json").read_text(encoding="utf-8"))
    # Of a version that did not say: those with local behaviour, but for the control.
    return bool(said.get("clicked", said["local"] and not said.get("unclicked")))


def _with_hard_negatives(ctx: Context, data: TrainingPairs) -> tuple[TrainingPairs, Metadata]:
    """Mine what the market asks for, with statistics (A22); nothing by default."""
    config = ctx.market.retrieval.ebr.mining
    if (config is None) != ("bm25" not in ctx.inputs):
        raise ConfigError("train_ebr takes input 'bm25' where retrieval.ebr.mining is set, only")
    if config is None:
        return data, {}
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.retrieval.bm25 import Bm25Index
    from csrm_tasks.retrieval.mining import mine

    folder = ctx.input("bm25")
    indexes = {p.locale: Bm25Index(folder.file(p.locale)) for p in data.locales}
    data, counts = mine(data, table(ctx.input("snapshot").path, "products"), indexes, config)
    return data, {f"mining_{name}": n for name, n in asdict(counts).items()}


def _classes(ctx: Context, data: TrainingPairs) -> tuple[TitleClasses | None, Metadata]:
    """Find the classes whose titles are no negatives of each other (A56); none by default."""
    config = ctx.market.retrieval.ebr.same_class
    if config is None:
        return None, {}
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.retrieval.classes import title_classes

    folder = ctx.input("snapshot").path
    products, queries, pairs = (table(folder, n) for n in ("products", "queries", "pairs"))
    found, counts = title_classes(data, products, queries, pairs.filter(split="train"), config)
    return found, {f"class_{name}": n for name, n in asdict(counts).items()}


def _warm_start(warm: Artifact, config: Ebr) -> BiEncoder:
    """Load an earlier EBR, to read texts as ``config`` says from now on.

    Raises :class:`ConfigError` where its vectors have another width.
    """
    from csrm_tasks.retrieval.encoder import BiEncoder, Reading

    model = BiEncoder.load(warm.file("encoder"))
    dim = model.dim if model.projects else None
    if dim != config.dim:
        asked, has = ("null" if d is None else str(d) for d in (config.dim, dim))
        raise ConfigError(
            f"retrieval.ebr.dim is {asked}, but {warm.ref} has {has}: set it back, or train "
            "without 'warm' (a cold start does)"
        )
    reading = Reading(config.max_length, config.query_prefix, config.title_prefix)
    model.read_as(reading, warm.ref)
    return model


def _judgements(
    market: MarketConfig, settings: Settings, params: Mapping[str, Any]
) -> list[list[str]]:
    """What people judged lies in the landing zone."""
    from csrm_tasks.retrieval.judged import judged_identity

    return judged_identity(settings.landing, market.market)


@step(
    "build_rqa",
    inputs=["snapshot", "bm25"],
    optional=["ebr", "index"],
    config=["retrieval.rqa"],
    external_inputs=_judgements,
)
def build_rqa(ctx: Context) -> Metadata:
    """Find the titles that augment every query, and measure how often they are right (A24, A26).

    Without ``ebr`` and ``index`` it is BM25 alone. The snapshot may be newer than the EBR.
    Judgements by people are read from the landing zone (:mod:`csrm_tasks.retrieval.judged`).
    """
    from csrm_tasks import tracking
    from csrm_tasks.dataset.tables import by_locale
    from csrm_tasks.records import RQA, write_table
    from csrm_tasks.retrieval import augment
    from csrm_tasks.retrieval.bm25 import Bm25Index
    from csrm_tasks.retrieval.judged import read_judged
    from csrm_tasks.retrieval.rqa import RqaRetriever, keep

    rqa, dense = ctx.market.retrieval.rqa, _dense(ctx)
    parts: list[augment.LocaleRqa] = []
    for locale, own in by_locale(ctx.input("snapshot").path).items():
        titles = dict(own["products"].select("product_id", "title").iter_rows())
        bm25 = Bm25Index(ctx.input("bm25").file(locale))
        retriever = RqaRetriever(titles, bm25, dense(locale) if dense else None, rqa.title_tokens)
        answers = read_judged(ctx.settings.landing, ctx.market.market, locale)
        parts.append(augment.retrieve_locale(locale, retriever, own, rqa.title_tokens, answers))
    chosen = augment.thresholds(parts, rqa.k)
    facts: Metadata = {"locales": {}, "thresholds": chosen, "dense": "ebr" in ctx.inputs}
    facts["unclicked"] = "ebr" in ctx.inputs and bool(ctx.input("ebr").facts.get("unclicked"))
    kept: dict[str, list[Title]] = {}
    for part in parts:
        titles_of = {
            q: keep(titles, chosen[part.locale], rqa.k) for q, titles in part.retrieved.items()
        }
        facts["locales"][part.locale] = augment.summarise(part, titles_of, rqa.k)
        kept |= titles_of
    write_table(augment.rqa_table(kept), RQA, ctx.out / "rqa.parquet")
    write_json(ctx.out / "rqa.json", facts | rqa.model_dump())
    metrics = {
        f"{locale}/{name}": float(value)
        for locale, measured in facts["locales"].items()
        for name, value in measured.items()
        if value is not None
    }
    tracking.log_run(ctx.settings, ctx.market.market, ctx.ref, metrics=metrics)
    return facts


def _dense(ctx: Context) -> Callable[[str], Dense] | None:
    """Load the EBR once and open its indexes by locale; without one torch stays unloaded."""
    if ("ebr" in ctx.inputs) != ("index" in ctx.inputs):
        raise ConfigError("build_rqa takes inputs 'ebr' and 'index' together, or neither")
    if "ebr" not in ctx.inputs:
        return None
    from csrm_tasks.retrieval.index import ProductIndex
    from csrm_tasks.retrieval.rqa import Dense

    model, digest = open_encoder(ctx)

    def opened(locale: str) -> Dense:
        dense = Dense(model, ProductIndex.load(ctx.input("index").file(locale)))
        dense.check(digest)
        return dense

    return opened
