"""The step of the cross-encoder, a control: training, thresholds and export in one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from csrm_tasks import tracking
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.towers import encoder_identity, reader_of, tables_of
from csrm_tasks.steps.towers_publish import learnt_pairs, shown_pairs, taught_by

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.towers.cross.export import ScoredPairs
    from csrm_tasks.towers.cross.model import CrossEncoder
    from csrm_tasks.towers.examples import Examples
    from csrm_tasks.towers.serving.tokens import TowerTokenizer
    from csrm_tasks.towers.thresholds import Threshold

log = logging.getLogger("csrm")

TAUGHT = 20_000  # distilled pairs that thresholds are chosen on, at most; each is a run by itself


@step(
    "train_cross_encoder",
    inputs=["snapshot", "scored"],
    config=["towers", "seed"],
    external_inputs=encoder_identity,
)
def train_cross_encoder(ctx: Context) -> Metadata:
    """Distil the cross-encoder from the towers' scored pairs, in as many steps, and export it.

    It reads, and its thresholds are chosen, as the towers' (A27, A33); an export whose scores
    or decisions differ from the trained model's is refused (A34).
    """
    import torch

    from csrm_tasks.towers.cross.export import export_cross
    from csrm_tasks.towers.cross.model import CrossEncoder, cross_logits
    from csrm_tasks.towers.learnt import write_learnt
    from csrm_tasks.towers.train import TrainPlan, train
    from csrm_tasks.towers.typos import with_typos
    from csrm_tasks.training.precision import choose_device, choose_dtype

    torch.set_num_threads(ctx.settings.threads)
    config, seed, device = ctx.market.towers, ctx.market.seed, choose_device()
    tables = tables_of(ctx)
    by = taught_by(ctx, "soft")
    examples = learnt_pairs(ctx, tables, by)
    dev = tables.dev(ctx.market.target_locale)
    read = with_typos(examples, config.typo_share, seed, tables.barred())
    write_learnt(ctx.out, read.queries, ctx.market.target_locale)
    reader = reader_of(ctx.market)
    model = CrossEncoder.from_base(
        config.encoder, dim=config.dim, scale=config.scale, learn_scale=config.learn_scale,
        tokens=reader.query_reader().tokens + reader.title_reader().tokens, seed=seed,
    ).to(device)  # fmt: skip
    plan = TrainPlan.of(config, seed)
    done = train(
        model, read, reader.queries(read.queries), reader.products(read.products),
        plan, ctx.work / "checkpoint.safetensors",
        choose_dtype(device, model.encoder.config.hidden_size), cross_logits,
    )  # fmt: skip
    chosen = _thresholds(model, reader, shown_pairs(ctx, tables), dev, ctx.market)
    (ctx.out / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    # Flips are counted on the dev pairs of every locale: half a percent of few is less than one.
    about, judged = (
        _about(reader, chosen, config.product_fields),
        _judged(model, reader, tables.dev(None)),
    )
    parities = export_cross(model.cpu(), ctx.out, about, judged)
    facts: Metadata = {"pairs": len(examples), "steps": plan.steps, "loss": done.curve[-1][1]}
    facts |= {f"dev_{head}_f1": threshold.f1 for head, threshold in chosen.items()}
    facts |= {f"{variant}_{k}": v for variant, p in parities.items() for k, v in vars(p).items()}
    log.info(
        "cross-encoder: dev of %s, %d pairs: %s",
        ", ".join(dev["locale"].unique().sort()),
        len(dev),
        chosen,
    )
    numbers = {k: float(v) for k, v in facts.items() if isinstance(v, int | float)}
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref, params=config.model_dump(),
        metrics=numbers | {"seconds": done.seconds, "pairs_per_second": done.pairs / done.seconds},
        curves={"kd_loss": done.curve},
    )  # fmt: skip
    return facts


def _judged(model: CrossEncoder, reader: TowerTokenizer, frame: pl.DataFrame) -> ScoredPairs:
    import numpy as np

    from csrm_tasks.towers.cross.export import ScoredPairs
    from csrm_tasks.towers.cross.model import cross_probabilities

    queries, titles = frame["query"].to_list(), frame["title"].to_list()
    rows = np.arange(len(frame))
    scores = cross_probabilities(
        model, reader.queries(queries), reader.products(titles), rows, rows
    )
    return ScoredPairs(queries, titles, scores)


def _thresholds(
    model: CrossEncoder, reader: TowerTokenizer, taught: Examples | None, dev: pl.DataFrame,
    market: MarketConfig,
) -> dict[str, Threshold]:  # fmt: skip
    """Choose as for the towers: on judged dev pairs, or by the teacher on distilled ones (A33)."""
    import numpy as np

    from csrm_tasks.towers import measure
    from csrm_tasks.towers.cross.model import cross_probabilities

    floor = market.towers.precision_floor
    scores = _judged(model, reader, dev).scores
    if taught is None:
        return measure.dev_thresholds(dev, scores, floor)
    most = min(TAUGHT, len(taught))
    rows = np.random.default_rng(market.seed).choice(len(taught), most, replace=False)
    probabilities = cross_probabilities(
        model, reader.queries(taught.queries), reader.products(taught.products),
        taught.query[rows], taught.product[rows],
    )  # fmt: skip
    truth = taught.exact[rows], taught.irrelevant[rows]
    chosen = measure.choose_by_head(probabilities, truth, floor)
    return measure.on_dev(dev, scores, {name: t.value for name, t in chosen.items()})


def _about(
    reader: TowerTokenizer, thresholds: Mapping[str, Threshold], product_fields: Sequence[str]
) -> dict[str, Any]:
    """What scoring needs beside the graph."""
    return {
        **reader.describe(),
        "heads": {k: {"threshold": t.value, "dev": asdict(t)} for k, t in thresholds.items()},
        "product_fields": list(product_fields),
    }
