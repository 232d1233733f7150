"""Steps of retrieval: BM25, pseudo pairs, the EBR, its index, and RQA."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csrm_tasks.errors import ArtifactError, ConfigError, DataError
from csrm_tasks.steps.registry import Context, Facts, step

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.artifacts import Artifact
    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.retrieval.catalogue import Embed
    from csrm_tasks.retrieval.encoder import BiEncoder
    from csrm_tasks.retrieval.exact import Vectors
    from csrm_tasks.retrieval.index import ProductIndex
    from csrm_tasks.retrieval.pairs import TrainingPairs
    from csrm_tasks.retrieval.rqa import Dense, Title
    from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")

ROOMS = ("retrieval", "dataset.text")  # what these steps compute with


def _encoder_identity(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """The base encoder's files are an input of training, though no artifact."""
    from csrm_tasks.llm.identity import base_digest

    return base_digest(market.retrieval.ebr.encoder)


def _table(ctx: Context, name: str) -> pl.DataFrame:
    from csrm_tasks import records

    schema: records.Schema = getattr(records, name.upper())
    return records.read_table(ctx.input("snapshot").file(f"{name}.parquet"), schema)


def _by_locale(ctx: Context) -> dict[str, dict[str, pl.DataFrame]]:
    """Split tables of the snapshot by the locales that have products."""
    import polars as pl

    tables = {name: _table(ctx, name) for name in ("products", "queries", "pairs", "behaviour")}
    return {
        locale: {k: t.filter(pl.col("locale") == locale) for k, t in tables.items()}
        for locale in sorted(tables["products"]["locale"].unique())
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@step("build_bm25", inputs=["snapshot"], optional=["previous"], rooms=ROOMS)
def build_bm25(ctx: Context) -> Facts:
    """Index every locale's titles for lexical search, one folder per locale (A20).

    ``previous`` is an earlier index to go on from: it answers as one built anew, and only new and
    changed titles are analysed.
    """
    from csrm_tasks.retrieval.bm25 import Bm25Index

    facts: Facts = {"products": {}, "analysed": {}}
    previous = ctx.inputs.get("previous")
    for locale, own in _by_locale(ctx).items():
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


@step("pseudo_pairs", inputs=["snapshot", "bm25"], config=["retrieval"], rooms=ROOMS)
def pseudo_pairs(ctx: Context) -> Facts:
    """Pair every query with what BM25 finds in its own locale, for the CVR ranker (A21)."""
    from csrm_tasks.records import write_table
    from csrm_tasks.retrieval.bm25 import Bm25Index
    from csrm_tasks.retrieval.pseudo import PSEUDO
    from csrm_tasks.retrieval.pseudo import pseudo_pairs as pair_up

    queries, products = _table(ctx, "queries"), _table(ctx, "products")
    found = sorted(products["locale"].unique())
    indexes = {locale: Bm25Index(ctx.input("bm25").file(locale)) for locale in found}
    pairs = pair_up(queries, products, indexes, ctx.market.retrieval.bm25_k)
    write_table(pairs, PSEUDO, ctx.out / "pairs.parquet")
    unmatched = len(queries) - pairs["query_id"].n_unique()
    log.info("pseudo pairs: %d; %d queries match no title", len(pairs), unmatched)
    return {"pairs": len(pairs), "queries": len(queries), "queries_without_match": unmatched}


@step(
    "train_ebr",
    inputs=["snapshot", "scored"],
    optional=["warm", "bm25"],
    config=["retrieval", "seed"],
    rooms=ROOMS,
    extra=_encoder_identity,
)
def train_ebr(ctx: Context, *, local: bool) -> Facts:
    """Train the retriever on pairs scored by the CVR ranker; ``local`` adds behaviour (A22, A23).

    ``warm`` is an earlier EBR to start from instead of the base encoder. ``bm25`` goes with
    ``retrieval.ebr.mining``: hard negatives are mined from it.
    """
    import torch

    from csrm_tasks import tracking
    from csrm_tasks.records import SCORED, read_table
    from csrm_tasks.retrieval.ebr import EbrTrainer
    from csrm_tasks.retrieval.encoder import BiEncoder
    from csrm_tasks.retrieval.pairs import training_pairs

    torch.set_num_threads(ctx.settings.threads)
    config, seed = ctx.market.retrieval.ebr, ctx.market.seed
    scored = read_table(ctx.input("scored").file("scored.parquet"), SCORED)
    behaviour = _table(ctx, "behaviour") if local else None
    data = training_pairs(_table(ctx, "queries"), _table(ctx, "products"), scored, behaviour)
    data, mined = _with_hard_negatives(ctx, data)
    warm = ctx.inputs.get("warm")
    model = (
        _warm_start(warm, config.dim)
        if warm
        else BiEncoder.from_base(config.encoder, config.dim, config.max_length, seed)
    )
    trainer = EbrTrainer(model, data, config, seed, ctx.work)
    trainer.run()
    metrics = trainer.metrics() | {"pairs": data.count} | mined
    facts = metrics | {"encoder_digest": model.save(ctx.out / "encoder"), "steps": config.steps}
    about = {"local": local, "warm": warm.ref if warm else "", "base": config.encoder}
    _write_json(ctx.out / "ebr.json", facts | about | {"dim": model.dim})
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params=config.model_dump() | about, metrics=metrics, curves=trainer.curves(),
    )  # fmt: skip
    return facts


def _with_hard_negatives(ctx: Context, data: TrainingPairs) -> tuple[TrainingPairs, Facts]:
    """Mine what the market asks for, with statistics (A22); nothing by default."""
    config = ctx.market.retrieval.ebr.mining
    if (config is None) != ("bm25" not in ctx.inputs):
        raise ConfigError("train_ebr takes input 'bm25' where retrieval.ebr.mining is set, only")
    if config is None:
        return data, {}
    from csrm_tasks.retrieval.bm25 import Bm25Index
    from csrm_tasks.retrieval.mining import mine

    folder = ctx.input("bm25")
    indexes = {p.locale: Bm25Index(folder.file(p.locale)) for p in data.locales}
    data, counts = mine(data, _table(ctx, "products"), indexes, config)
    return data, {f"mining_{name}": n for name, n in asdict(counts).items()}


def _warm_start(warm: Artifact, dim: int) -> BiEncoder:
    """Load an earlier EBR; raises :class:`ConfigError` where its vectors have another width."""
    from csrm_tasks.retrieval.encoder import BiEncoder

    model = BiEncoder.load(warm.file("encoder"))
    if model.dim != dim:
        raise ConfigError(
            f"retrieval.ebr.dim is {dim}, but {warm.ref} has {model.dim}: set it back, or train "
            "without 'warm' (a cold start does)"
        )
    return model


INDEX_READS: dict[str, Any] = {
    "inputs": ["snapshot", "ebr"], "optional": ["previous"], "config": ["retrieval", "seed"],
    "rooms": ROOMS,
}  # fmt: skip


@step("build_index", **INDEX_READS)
def build_index(ctx: Context) -> Facts:
    """Embed every locale's titles and index them, with recall measured (A25).

    ``trec/{locale}`` holds qrels (dev labels, purchases) and the run they were judged by.
    ``previous`` is an earlier index: what the same encoder embedded for it is not embedded again.
    """
    return _index(ctx, lambda locale: None)


@step("embed_shard", **INDEX_READS)
def embed_shard(ctx: Context, *, shard: int, of: int) -> Facts:
    """Embed what ``build_index`` would, but only shard ``shard`` (from 0) ``of`` so many."""
    import numpy as np

    from csrm_tasks.retrieval.catalogue import difference, of_encoder, shard_of

    if not 0 <= shard < of:
        raise ConfigError(f"embed_shard: there is no shard {shard} of {of}; they count from 0")
    model, digest = _encoder(ctx)
    facts: Facts = {"shard": shard, "of": of, "embedded": {}}
    for locale, own in _by_locale(ctx).items():
        known, products = of_encoder(_earlier_index(ctx, locale), digest), own["products"]
        new = shard_of(difference(known, products)[0] if known else products, shard, of)
        new.select("product_id").write_parquet(ctx.out / f"{locale}.parquet")
        np.save(ctx.out / f"{locale}.npy", model.encode(new["title"].to_list()))
        facts["embedded"][locale] = len(new)
    return facts


@step("join_index", many=["shards"], **INDEX_READS)
def join_index(ctx: Context) -> Facts:
    """Index what all shards embedded: what ``build_index`` would have made.

    Raises :class:`DataError` unless every product was embedded, from these very inputs.
    """
    shards = ctx.lists["shards"]
    if not shards:
        raise ConfigError("join_index needs every shard in input 'shards'")
    given = {name: artifact.ref for name, artifact in ctx.inputs.items()}
    for k, shard in enumerate(shards):
        place = (shard.facts.get("shard"), shard.facts.get("of"))
        if dict(shard.inputs) != given or place != (k, len(shards)):
            raise DataError(
                f"{shard.ref} is not shard {k} of {len(shards)} of this catalogue and this EBR; "
                "give every shard of one embedding, in order"
            )
    return _index(ctx, lambda locale: _embedded(shards, locale))


def _embedded(shards: Sequence[Artifact], locale: str) -> Embed:
    """Return the function that finds the vectors of products among those of the shards."""
    import numpy as np
    import polars as pl

    ids = [pl.read_parquet(s.file(f"{locale}.parquet"))["product_id"] for s in shards]
    vectors = np.concatenate([np.load(s.file(f"{locale}.npy")) for s in shards])
    row = {product: i for i, product in enumerate(pl.concat(ids))}

    def embed(products: Sequence[str]) -> Vectors:
        missing = [p for p in products if p not in row]
        if missing:
            raise DataError(
                f"no shard embedded product {missing[0]!r} of {locale} ({len(missing)} are "
                "missing): run embed_shard for every shard again"
            )
        found: Vectors = vectors[[row[p] for p in products]]
        return found

    return embed


def _index(ctx: Context, embed: Callable[[str], Embed | None]) -> Facts:
    from csrm_tasks.retrieval.catalogue import index_locale, judge

    model, digest = _encoder(ctx)
    facts: Facts = {"encoder_digest": digest, "dim": model.dim, "locales": {}}
    for locale, own in _by_locale(ctx).items():
        earlier = _earlier_index(ctx, locale)
        index, measured = index_locale(
            locale, model, digest, own, ctx.market.retrieval, ctx.market.seed, earlier,
            embed(locale),
        )  # fmt: skip
        index.save(ctx.out / locale)
        measured["measures"] = judge(index, model, own, ctx.out / "trec" / locale)
        facts["locales"][locale] = measured
    return facts


def _encoder(ctx: Context) -> tuple[BiEncoder, str]:
    import torch

    from csrm_tasks.retrieval.encoder import BiEncoder

    torch.set_num_threads(ctx.settings.threads)
    model = _for_inference(BiEncoder.load(ctx.input("ebr").file("encoder")))
    return model, str(ctx.input("ebr").facts["encoder_digest"])


def _for_inference(model: BiEncoder) -> BiEncoder:
    """Embed in the precision that pays here (A13); a model as small as the demo's stays in fp32."""
    import torch

    from csrm_tasks.llm.precision import choose_dtype

    return model.for_inference(choose_dtype(torch.device("cpu"), model.width))


def _earlier_index(ctx: Context, locale: str) -> ProductIndex | None:
    from csrm_tasks.retrieval.index import ProductIndex

    previous = ctx.inputs.get("previous")
    if previous is None:
        return None
    try:
        return ProductIndex.load(previous.path / locale, writable=True)
    except ArtifactError as e:  # a locale it lacks, or another version's format
        log.info("everything of %s is embedded: %s", locale, e)
        return None


def _judgements(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> Any:
    """What people judged lies in the landing zone."""
    from csrm_tasks.retrieval.judged import judged_identity

    return judged_identity(settings.landing, market.market)


@step(
    "build_rqa",
    inputs=["snapshot", "bm25"],
    optional=["ebr", "index"],
    config=["retrieval"],
    rooms=ROOMS,
    extra=_judgements,
)
def build_rqa(ctx: Context) -> Facts:
    """Find the titles that augment every query, and measure how often they are right (A24, A26).

    Without ``ebr`` and ``index`` it is BM25 alone. The snapshot may be newer than the EBR.
    Judgements by people are read from the landing zone (:mod:`csrm_tasks.retrieval.judged`).
    """
    from csrm_tasks import tracking
    from csrm_tasks.records import RQA, write_table
    from csrm_tasks.retrieval import augment
    from csrm_tasks.retrieval.bm25 import Bm25Index
    from csrm_tasks.retrieval.judged import read_judged
    from csrm_tasks.retrieval.rqa import RqaRetriever, keep

    rqa, dense = ctx.market.retrieval.rqa, _dense(ctx)
    parts: list[augment.LocaleRqa] = []
    for locale, own in _by_locale(ctx).items():
        titles = dict(own["products"].select("product_id", "title").iter_rows())
        bm25 = Bm25Index(ctx.input("bm25").file(locale))
        retriever = RqaRetriever(titles, bm25, dense(locale) if dense else None, rqa.title_tokens)
        parts.append(augment.retrieve_locale(locale, retriever, own, rqa.title_tokens))
    chosen = augment.thresholds(parts, rqa.k)
    facts: Facts = {"locales": {}, "thresholds": chosen, "dense": "ebr" in ctx.inputs}
    kept: dict[str, list[Title]] = {}
    for part in parts:
        found = {q: keep(titles, chosen[part.locale], rqa.k) for q, titles in part.found.items()}
        answers = read_judged(ctx.settings.landing, ctx.market.market, part.locale)
        facts["locales"][part.locale] = augment.summarise(part, found, rqa.k, answers)
        kept |= found
    write_table(augment.rqa_table(kept), RQA, ctx.out / "rqa.parquet")
    _write_json(ctx.out / "rqa.json", facts | rqa.model_dump())
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

    model, digest = _encoder(ctx)

    def opened(locale: str) -> Dense:
        dense = Dense(model, ProductIndex.load(ctx.input("index").file(locale)))
        dense.check(digest)
        return dense

    return opened
