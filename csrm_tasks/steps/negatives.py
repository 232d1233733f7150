"""The step that draws semantic negatives for the relevance LLM (A38, A56)."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.retrieval_index import open_encoder

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.retrieval.negatives import Counts

log = logging.getLogger("csrm")

ACCEPTED = 0.5  # of a model's probability that a pair is not irrelevant: no negative (A38)


@step(
    "mine_negatives",
    inputs=["snapshot", "bm25", "ebr", "index"],
    optional=["llm", "rqa"],
    config=["llm.negatives", "seed"],
)
def mine_negatives(ctx: Context) -> Metadata:
    """Add irrelevant pairs to train queries: easy, at middle ranks, or found by one channel only.

    Of train queries alone; see :mod:`csrm_tasks.retrieval.negatives`. ``llm``: what the current
    model (with ``rqa``'s titles in its prompt) does not call irrelevant is dropped. The file
    ``negatives.parquet`` says of each where it is from. Raises :class:`ConfigError` where they
    would swamp a class or a language, :class:`DataError` where there are none.
    """
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.records import NEGATIVES, write_table
    from csrm_tasks.retrieval.negatives import Counts, refuse_swamped

    config = ctx.market.llm.negatives
    if not config.per_query:
        raise ConfigError("llm.negatives.per_query is 0: this market adds no negatives")
    counts = Counts()
    drawn = _draw(ctx, counts)
    kept = _rejected(ctx, drawn).sort("query_id", "pair_id")
    pairs = table(ctx.input("snapshot").path, "pairs")
    train = pairs.filter(split="train")
    log.info("negatives: %d kept of %d drawn; %s", len(kept), len(drawn), counts)
    if kept.is_empty():
        raise DataError(
            f"no negatives: of {counts.queries} train queries none has a candidate left ({counts}, "
            f"{len(drawn)} accepted by the current LLM); change llm.negatives, or set per_query 0"
        )
    refuse_swamped(kept, train, config.weight)
    write_table(kept, NEGATIVES, ctx.out / "negatives.parquet")
    right = int((train["grade"] > 0).sum())
    dev = pairs.filter(split="dev")["grade"]
    return {
        "negatives": len(kept),
        "accepted": len(drawn) - len(kept),
        "kinds": _counted(kept, "kind"),
        "channels": _counted(kept, "channel"),
        "locales": _counted(kept, "locale"),
        "relevant_share": right / len(train),
        "relevant_share_with_negatives": right / (len(train) + config.weight * len(kept)),
        "relevant_share_dev": int((dev > 0).sum()) / len(dev) if len(dev) else None,
    } | asdict(counts)


def _counted(frame: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(frame.group_by(column).len().sort(column).iter_rows())


def _draw(ctx: Context, counts: Counts) -> pl.DataFrame:
    """Return the negatives of every locale, by the rules that need no LLM."""
    import polars as pl

    from csrm_tasks.dataset.tables import by_locale, table
    from csrm_tasks.records import NEGATIVES
    from csrm_tasks.retrieval.bm25 import Bm25Index
    from csrm_tasks.retrieval.index import ProductIndex
    from csrm_tasks.retrieval.near import DenseNear
    from csrm_tasks.retrieval.negatives import LocaleNegatives, as_table, askable, said_of
    from csrm_tasks.retrieval.rqa import Dense

    folder = ctx.input("snapshot").path
    queries, products, pairs = (table(folder, n) for n in ("queries", "products", "pairs"))
    train = pairs.filter(split="train")  # of dev and gold only the texts are looked at
    acts = pl.sum_horizontal("clicks", "carts", "purchases")
    clicked = table(folder, "behaviour").filter(acts > 0)
    bought = table(folder, "conversions").filter(label=1)
    keys = ["query_id", "product_id", "locale"]
    said = said_of(queries, products, train, pl.concat([clicked.select(keys), bought.select(keys)]))
    asked = askable(queries, pairs, counts)
    model, digest = open_encoder(ctx)
    parts = [pl.DataFrame(schema=NEGATIVES)]
    for locale, own in by_locale(folder).items():
        here = asked.filter(locale=locale)
        if here.is_empty():
            continue
        dense = Dense(model, ProductIndex.load(ctx.input("index").file(locale)))
        dense.check(digest)
        bm25 = Bm25Index(ctx.input("bm25").file(locale))
        tables = own | {"queries": here, "pairs": train.filter(locale=locale)}
        near = DenseNear(dense, here["norm"].to_list())
        config, seed = ctx.market.llm.negatives, ctx.market.seed
        drawer = LocaleNegatives(tables, said, bm25.ranked, near, config, seed)
        parts.append(as_table(list(drawer.draw(counts)), locale))
    return pl.concat(parts)


def _rejected(ctx: Context, drawn: pl.DataFrame) -> pl.DataFrame:
    """Return what the current LLM calls irrelevant, with p0; everything where none is given."""
    if "llm" not in ctx.inputs or drawn.is_empty():
        return drawn
    import polars as pl
    import torch

    from csrm_tasks.llm.prompt.prompts import RELEVANCE
    from csrm_tasks.llm.scoring.scoring import RelevanceScorer

    torch.set_num_threads(ctx.settings.threads)
    rqa = ctx.inputs.get("rqa")
    scorer = RelevanceScorer.load(ctx.input("llm").path)
    fields = scorer.fields(ctx.input("snapshot").path, None if rqa is None else rqa.path)
    scored = scorer.score(RELEVANCE, fields, drawn.drop("p0").sort("query_id", "pair_id"))
    kept = scored.filter(pl.col("p0") >= 1.0 - ACCEPTED)
    return kept.select(drawn.columns)
