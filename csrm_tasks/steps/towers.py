"""Steps of the online towers: pairs, training, export, product embeddings, scores."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csrm_tasks import tracking
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.steps.registry import Context, Facts, step

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.settings import Settings
    from csrm_tasks.towers.cross_runtime import CrossRuntime
    from csrm_tasks.towers.examples import Examples
    from csrm_tasks.towers.measure import Reader
    from csrm_tasks.towers.model import TwinTowers
    from csrm_tasks.towers.runtime import TowerRuntime

log = logging.getLogger("csrm")

ROOMS = ("towers", "dataset.text")


def _table(ctx: Context, name: str) -> pl.DataFrame:
    from csrm_tasks import records

    schema: records.Schema = getattr(records, name.upper())
    return records.read_table(ctx.input("snapshot").file(f"{name}.parquet"), schema)


@step("tower_pairs", inputs=["snapshot", "bm25", "ebr", "index"], config=["towers", "seed"],
      rooms=(*ROOMS, "retrieval"))  # fmt: skip
def tower_pairs(ctx: Context) -> Facts:
    """Choose the target-locale pairs that the teacher scores for the towers (A31)."""
    import polars as pl

    from csrm_tasks.towers import pairs

    locale, config = ctx.market.target_locale, ctx.market.towers
    chosen = pairs.distillation_queries(
        _table(ctx, "queries"), _table(ctx, "pairs"), locale, config.queries
    )
    if chosen.is_empty():
        raise DataError(f"the snapshot has no {locale} query outside dev to distil on")
    ids, retrieve = _retriever(ctx, chosen["norm"].to_list())
    found = pairs.tower_pairs(
        chosen["query_id"].to_list(),
        ids,
        _table(ctx, "behaviour").filter(pl.col("locale") == locale),
        retrieve,
        pairs.PairPlan(config.impressed, config.retrieved, config.random),
        ctx.market.seed,
    ).with_columns(locale=pl.lit(locale))
    found.select("query_id", "product_id", "locale", "source").write_parquet(
        ctx.out / "pairs.parquet"
    )
    counts = {str(k): int(n) for k, n in sorted(found["source"].value_counts().iter_rows())}
    log.info("tower pairs: %d of %d queries, %s", len(found), len(chosen), counts)
    return {"pairs": len(found), "queries": len(chosen), "sources": counts}


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


def _encoder_identity(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """The base encoder's files are an input of training, though no artifact."""
    from csrm_tasks.llm.identity import base_digest

    return base_digest(market.towers.encoder)


@step(
    "train_towers",
    inputs=["snapshot"],
    optional=["scored"],
    config=["towers", "seed"],
    rooms=ROOMS,
    extra=_encoder_identity,
)
def train_towers(ctx: Context, *, target: str = "soft") -> Facts:
    """Train the twin towers on the teacher's soft labels, or on human grades as a baseline.

    ``target``: soft needs input ``scored`` (the teacher's probabilities of the tower pairs; A29);
    hard learns the snapshot's train pairs of both locales in equally many steps (A32).
    """
    import torch

    from csrm_tasks.llm.precision import choose_device, choose_dtype
    from csrm_tasks.towers.model import TwinTowers, load_tokenizer
    from csrm_tasks.towers.train import TrainPlan, train
    from csrm_tasks.towers.typos import with_typos

    torch.set_num_threads(ctx.settings.threads)
    config, seed = ctx.market.towers, ctx.market.seed
    examples = _examples(ctx, target)
    tokenizer = load_tokenizer(config.encoder)
    reader = _reader(tokenizer.backend_tokenizer.to_str(), tokenizer.pad_token_id, ctx.market)
    device = choose_device()
    model = TwinTowers.from_base(
        config.encoder, dim=config.dim, scale=config.scale, learn_scale=config.learn_scale,
        seed=seed, separate=config.separate_trunks,
    ).to(device)  # fmt: skip
    dtype = choose_dtype(device, model.config.hidden_size)
    plan = TrainPlan(
        config.steps, config.batch_queries, config.batch_products, config.lr, config.lr_end, seed
    )
    shown = with_typos(examples, config.typo_share, seed)
    done = train(
        model, shown, reader.queries(shown.queries), reader.products(shown.products),
        plan, ctx.work / "checkpoint.safetensors", dtype,
    )  # fmt: skip
    taught = examples if target == "soft" and config.thresholds == "teacher" else None
    facts = _publish_towers(ctx, model.cpu(), reader, taught) | {
        "target": target, "pairs": len(examples), "queries": len(examples.queries),
        "products": len(examples.products), "steps": plan.steps, "loss": done.curve[-1][1],
        "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
    }  # fmt: skip
    numbers = {k: float(v) for k, v in facts.items() if isinstance(v, int | float)}
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params=config.model_dump() | {"target": target},
        metrics=numbers | {"seconds": done.seconds, "pairs_per_second": done.pairs / done.seconds},
        curves={"kd_loss": done.curve},
    )  # fmt: skip
    return facts


def _products(ctx: Context, fields: Sequence[str]) -> pl.DataFrame:
    """Return the products with what a tower of ``fields`` reads in the place of the title (A27)."""
    from csrm_tasks.towers.texts import with_product_text

    return with_product_text(_table(ctx, "products"), fields)


def _examples(ctx: Context, target: str) -> Examples:
    from csrm_tasks.records import SCORED, read_table
    from csrm_tasks.towers.examples import hard_examples, soft_examples

    queries, pairs = (_table(ctx, n) for n in ("queries", "pairs"))
    products = _products(ctx, ctx.market.towers.product_fields)
    if target == "hard":
        return hard_examples(pairs, queries, products)
    if target != "soft":
        raise ConfigError(f"train_towers: target is soft or hard, not {target!r}")
    if "scored" not in ctx.inputs:
        raise ConfigError("train_towers: target soft needs input 'scored', of score_pairs")
    scored = read_table(ctx.input("scored").file("scored.parquet"), SCORED)
    return soft_examples(scored, queries, products, pairs)


def _reader(definition: str, pad_id: int, market: MarketConfig) -> Reader:
    from csrm_tasks.towers.measure import Reader

    return Reader(definition, market.towers.query_tokens, market.towers.title_tokens, pad_id)


def _publish_towers(
    ctx: Context, model: TwinTowers, reader: Reader, taught: Examples | None
) -> Facts:
    """Choose thresholds on ``taught``, else on dev, write the towers; returns figures on dev."""
    import polars as pl

    from csrm_tasks.towers import measure

    config = ctx.market.towers
    dev = _dev(ctx, ctx.market.target_locale, config.product_fields)
    scores = measure.probabilities(model, measure.reference(model, reader, dev))
    if taught is None:
        chosen = measure.dev_thresholds(dev, scores, config.precision_floor)
    else:
        values = measure.teacher_thresholds(
            model, reader, taught, config.precision_floor, ctx.market.seed
        )
        chosen = measure.on_dev(dev, scores, values)
    model.save(ctx.out / "towers")
    (ctx.out / "towers" / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    _write_json(
        ctx.out / "towers.json", measure.describe(model, reader, chosen, config.product_fields)
    )
    dev.select("pair_id", "grade").with_columns(
        em=pl.Series(scores[:, 0]), defect=pl.Series(scores[:, 1])
    ).write_parquet(ctx.out / "dev_scores.parquet")
    log.info("towers: dev of %s, %d pairs: %s", dev["locale"][0], len(dev), chosen)
    return {"dev_pairs": len(dev), "dev_locale": str(dev["locale"][0])} | {
        f"dev_{head}_{name}": getattr(threshold, name)
        for head, threshold in chosen.items()
        for name in ("f1", "precision", "recall")
    }


def _dev(ctx: Context, locale: str | None, fields: Sequence[str]) -> pl.DataFrame:
    """Return judged dev pairs with their texts: of ``locale`` (A33), or all of them."""
    import polars as pl

    from csrm_tasks.towers.examples import dev_pairs, with_texts

    pairs = _table(ctx, "pairs")
    chosen = dev_pairs(pairs, locale) if locale else pairs.filter(pl.col("split") == "dev")
    return with_texts(chosen, _table(ctx, "queries"), _products(ctx, fields))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _load_towers(ctx: Context) -> tuple[TwinTowers, Reader]:
    """Return the trained towers of input ``towers`` and how their texts are read."""
    from csrm_tasks.towers.measure import Reader
    from csrm_tasks.towers.model import TwinTowers

    folder, about = ctx.input("towers").file("towers"), _about(ctx)
    definition = (folder / "tokenizer.json").read_text(encoding="utf-8")
    reader = Reader(definition, *(about[k] for k in ("query_tokens", "title_tokens", "pad_id")))
    return TwinTowers.load(folder, dim=about["dim"]), reader


def _about(ctx: Context) -> dict[str, Any]:
    text = ctx.input("towers").file("towers.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@step("shorten_query_tower", inputs=["towers", "snapshot"], optional=["scored"],
      config=["towers", "seed"], rooms=ROOMS)  # fmt: skip
def shorten_query_tower(ctx: Context) -> Facts:
    """Teach a query tower of ``towers.query_layers`` layers the full one's vectors (A34).

    What it makes stands in for its input ``towers``, with thresholds of its own; the product tower
    is the same. A short tower that loses too much on dev is dropped, and the full one passed on.
    ``scored`` is what the towers learned, for thresholds by the teacher.
    """
    import torch

    from csrm_tasks.towers import measure, shorten
    from csrm_tasks.towers.train import TrainPlan

    torch.set_num_threads(ctx.settings.threads)
    config, full = ctx.market.towers, ctx.input("towers").facts
    if config.query_layers is None:
        raise ConfigError("shorten_query_tower: set towers.query_layers in the market's file")
    model, reader = _load_towers(ctx)
    table = reader.queries(_texts_to_distil(ctx))
    wanted = measure.embed(model.query, table)
    model.shorten_query(config.query_layers)
    plan = TrainPlan(
        config.steps, config.batch_queries, 1, config.lr, config.lr_end, ctx.market.seed
    )
    done = shorten.distil(model.query, table, wanted, plan, ctx.work / "checkpoint.safetensors")
    taught = _examples(ctx, "soft") if config.thresholds == "teacher" else None
    facts = _publish_towers(ctx, model, reader, taught)
    lost = max(full[name] - facts[name] for name in ("dev_em_f1", "dev_defect_f1"))
    admitted = lost <= shorten.MOST_LOSS  # not a number is not
    if not admitted:
        log.warning(
            "the query tower of %d layers loses %.4f of F1 on dev (at most %.2f): the full one "
            "serves", config.query_layers, lost, shorten.MOST_LOSS,
        )  # fmt: skip
        facts = _publish_towers(ctx, *_load_towers(ctx), taught)
    facts |= {"admitted": admitted, "lost_f1": lost, "queries": len(table), "steps": plan.steps}
    metrics = {k: float(v) for k, v in facts.items() if isinstance(v, int | float)}
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref, params={"query_layers": config.query_layers},
        metrics=metrics, curves={"one_minus_cosine": done.curve},
    )  # fmt: skip
    return facts


def _texts_to_distil(ctx: Context) -> list[str]:
    """Return the distinct queries of both locales, judged or not, without those of dev."""
    from csrm_tasks.towers.pairs import held_out_queries

    queries = _table(ctx, "queries").join(
        held_out_queries(_table(ctx, "pairs")), on="query_id", how="anti"
    )
    found: list[str] = queries["norm"].unique().sort().to_list()
    return found


@step("export_towers", inputs=["towers", "snapshot"], rooms=ROOMS)
def export_towers(ctx: Context) -> Facts:
    """Export both towers to ONNX, fp32 and int8; what is outside the bounds is refused (A34)."""
    import torch

    from csrm_tasks.towers import measure
    from csrm_tasks.towers.export import export_towers as export

    torch.set_num_threads(ctx.settings.threads)
    model, reader = _load_towers(ctx)
    about = _about(ctx)
    (ctx.out / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    # Flips are counted on the dev pairs of every locale: half a percent of few is less than one.
    dev = _dev(ctx, None, about["product_fields"])
    found = export(model, ctx.out, about, measure.reference(model, reader, dev))
    facts = {f"{variant}_{k}": v for variant, p in found.items() for k, v in vars(p).items()}
    metrics = {k: float(v) for k, v in facts.items() if not isinstance(v, str)}
    tracking.log_run(ctx.settings, ctx.market.market, ctx.ref, metrics=metrics)
    return facts


@step("embed_products", inputs=["snapshot", "export"], rooms=ROOMS)
def embed_products(ctx: Context) -> Facts:
    """Embed the target locale's products with the exported tower, each with its content hash."""
    import polars as pl

    from csrm_tasks.towers.embed import embed_catalogue
    from csrm_tasks.towers.runtime import TowerRuntime

    locale = ctx.market.target_locale
    runtime = TowerRuntime(ctx.input("export").path, threads=ctx.settings.threads)
    products = _products(ctx, runtime.product_fields)
    products = products.filter(pl.col("locale") == locale).sort("product_id")
    if products.is_empty():
        raise DataError(f"the snapshot has no product of {locale} to embed")
    embed_catalogue(products, runtime.encode_products, runtime.dim, ctx.out)
    log.info("embedded %d products of %s", products.height, locale)
    return {"products": products.height, "locale": locale, "dim": runtime.dim}


@step("score_towers", inputs=["snapshot", "export"], rooms=ROOMS)
def score_towers(ctx: Context, *, split: str = "gold") -> Facts:
    """Score the target locale's judged pairs of ``split`` as serving would.

    ``export`` is of the towers, or a cross-encoder.
    """
    import polars as pl

    from csrm_tasks.towers.examples import with_texts

    locale = ctx.market.target_locale
    judged = _table(ctx, "pairs").filter(
        (pl.col("split") == split) & (pl.col("locale") == locale)
    ).sort("pair_id")  # fmt: skip
    if judged.is_empty():
        raise DataError(f"the snapshot has no {locale} pair of split {split!r} to score")
    reader = _scorer(ctx.input("export").path, ctx.settings.threads)
    rows = with_texts(judged, _table(ctx, "queries"), _products(ctx, reader.product_fields))
    scores = reader.score_texts(rows["query"].to_list(), rows["title"].to_list())
    decided = reader.decide(scores)
    rows.select("pair_id", "grade", "query_id", "product_id", "locale").with_columns(
        em=pl.Series(scores.em), defect=pl.Series(scores.defect),
        em_pred=pl.Series(decided.em), defect_pred=pl.Series(decided.defect),
    ).write_parquet(ctx.out / "scored.parquet")  # fmt: skip
    return {"pairs": len(rows), "dropped": len(judged) - len(rows), "split": split}


def _scorer(export: Path, threads: int) -> TowerRuntime | CrossRuntime:
    from csrm_tasks.towers.cross_runtime import ONNX, CrossRuntime
    from csrm_tasks.towers.runtime import TowerRuntime

    cross = (export / ONNX["fp32"]).exists()
    return CrossRuntime(export, threads=threads) if cross else TowerRuntime(export, threads=threads)
