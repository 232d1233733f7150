"""Steps of the dense index: embedding a catalogue, in one go or by shards, and indexing it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from csrm_tasks.errors import ArtifactError, ConfigError, DataError
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.parts import check_parts
from csrm_tasks.steps.parts import shards as all_shards

if TYPE_CHECKING:
    from csrm_tasks.artifacts import Artifact
    from csrm_tasks.retrieval.catalogue import Embed
    from csrm_tasks.retrieval.encoder import BiEncoder
    from csrm_tasks.retrieval.exact import Vectors
    from csrm_tasks.retrieval.index import ProductIndex

log = logging.getLogger("csrm")

READS: dict[str, Any] = {"inputs": ["snapshot", "ebr"], "optional": ["previous"]}
INDEXES = ["retrieval", "seed"]


@step("build_index", config=INDEXES, **READS)
def build_index(ctx: Context) -> Metadata:
    """Embed every locale's titles and index them, with recall measured (A25).

    ``trec/{locale}`` holds qrels (dev labels, purchases) and the run they were judged by.
    ``previous`` is an earlier index: what the same encoder embedded for it is not embedded again.
    """
    return _index(ctx, lambda locale: None)


@step("embed_shard", **READS)
def embed_shard(ctx: Context, *, shard: int, of: int) -> Metadata:
    """Embed what ``build_index`` would, but only shard ``shard`` (from 0) ``of`` so many."""
    import numpy as np

    from csrm_tasks.dataset.tables import by_locale
    from csrm_tasks.retrieval.catalogue import difference, of_encoder, shard_of

    if not 0 <= shard < of:
        raise ConfigError(f"embed_shard: there is no shard {shard} of {of}; they count from 0")
    model, digest = open_encoder(ctx)
    facts: Metadata = {"shard": shard, "of": of, "embedded": {}}
    for locale, own in by_locale(ctx.input("snapshot").path).items():
        known, products = of_encoder(_earlier_index(ctx, locale), digest), own["products"]
        new = shard_of(difference(known, products)[0] if known else products, shard, of)
        new.select("product_id").write_parquet(ctx.out / f"{locale}.parquet")
        np.save(ctx.out / f"{locale}.npy", model.encode_titles(new["title"].to_list()))
        facts["embedded"][locale] = len(new)
    return facts


@step("join_index", many=["shards"], config=INDEXES, **READS)
def join_index(ctx: Context) -> Metadata:
    """Index what all shards embedded: what ``build_index`` would have made.

    Raises :class:`DataError` unless every product was embedded, from these very inputs.
    """
    shards = ctx.lists["shards"]
    if not shards:
        raise ConfigError("join_index needs every shard in input 'shards'")
    check_parts(
        shards, all_shards(len(shards)), lambda x: x.was_made_from_all(ctx.inputs),
        "shard {shard} of {of} of this catalogue and this EBR; give every shard of one embedding, "
        "in order",
    )  # fmt: skip
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
        taken: Vectors = vectors[[row[p] for p in products]]
        return taken

    return embed


def _index(ctx: Context, embed: Callable[[str], Embed | None]) -> Metadata:
    from csrm_tasks.dataset.tables import by_locale
    from csrm_tasks.retrieval.catalogue import evaluate_encoder, index_locale

    model, digest = open_encoder(ctx)
    facts: Metadata = {"encoder_digest": digest, "dim": model.dim, "locales": {}}
    for locale, own in by_locale(ctx.input("snapshot").path).items():
        earlier = _earlier_index(ctx, locale)
        index, measured = index_locale(
            locale, model, digest, own, ctx.market.retrieval, ctx.market.seed, earlier,
            embed(locale),
        )  # fmt: skip
        index.save(ctx.out / locale)
        measured["measures"] = evaluate_encoder(index, model, own, ctx.out / "trec" / locale)
        facts["locales"][locale] = measured
    return facts


def open_encoder(ctx: Context) -> tuple[BiEncoder, str]:
    """Load input ``ebr`` in the precision that pays here (A13), and its digest.

    A model as small as the demo's stays in fp32.
    """
    import torch

    from csrm_tasks.retrieval.encoder import BiEncoder
    from csrm_tasks.training.precision import choose_dtype

    torch.set_num_threads(ctx.settings.threads)
    model = BiEncoder.load(ctx.input("ebr").file("encoder"))
    dtype = choose_dtype(torch.device("cpu"), model.width)
    return model.for_inference(dtype), str(ctx.input("ebr").facts["encoder_digest"])


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
