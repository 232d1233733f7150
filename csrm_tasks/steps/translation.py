"""Steps of translation augmentation (A37): translate queries in shards, and put them together.

Off unless a market sets ``llm.augmentation.translator``; without work where every language that
models are judged in has train labels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from csrm_tasks.artifacts import json_digest
from csrm_tasks.errors import ArtifactError, ConfigError, DataError
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.parts import check_parts
from csrm_tasks.steps.parts import shards as all_shards

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.curation.translation.asked import Asked
    from csrm_tasks.curation.translation.run import Judges, Translators
    from csrm_tasks.curation.translation.table import Table
    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")


def _outside(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> dict[str, Any]:
    """Models of a hub, and what snapshots have held out by now, are no artifacts."""
    from csrm_tasks.base_models import base_digest

    config = market.llm.augmentation
    return {
        "models": [base_digest(name) for name in (config.model, config.back) if name],
        "held_out": json_digest(_held_out(market, settings)),
    }


def _held_out(market: MarketConfig, settings: Settings) -> list[str]:
    from csrm_tasks.dataset.sides import held_out_texts
    from csrm_tasks.store.engine import open_store, reading

    with reading(open_store(settings.db_url)) as connection:
        return held_out_texts(connection, market.market)


@step(
    "translate_shard",
    inputs=["snapshot"],
    optional=["llm"],
    config=["llm.augmentation", "seed"],
    external_inputs=_outside,
)
def translate_shard(ctx: Context, *, shard: int, of: int) -> Metadata:
    """Translate shard ``shard`` (from 0) ``of`` so many of the queries that are asked (A36, A37).

    Writes ``decisions.parquet``, what became of each, and ``memory.parquet``, whatever was
    answered. What another shard of this market has kept of the same translator is not asked again.
    ``llm``: the translator, where the market's is ``llm``.
    """
    import polars as pl
    import torch

    from csrm_tasks.curation.translation.run import DECIDED, translated
    from csrm_tasks.curation.translation.translators import MEMORY
    from csrm_tasks.llm.data import shard_numbers
    from csrm_tasks.records import write_table

    if not 0 <= shard < of:
        raise ConfigError(f"translate_shard: there is no shard {shard} of {of}, counted from 0")
    torch.set_num_threads(ctx.settings.threads)
    asked = _asked(ctx).queries
    own = asked.filter(shard_numbers(asked, of) == shard)
    decided, memory = pl.DataFrame(schema=DECIDED), pl.DataFrame(schema=MEMORY)
    if own.height:
        known = _table(ctx)
        who = _translators(ctx, known)
        decided = translated(own, who, _judges(ctx, known))
        memory = who.memory()
        log.info("shard %d of %d: %d texts translated anew", shard, of, who.asked)
    write_table(decided, DECIDED, ctx.out / "decisions.parquet")
    write_table(memory, MEMORY, ctx.out / "memory.parquet")
    identities = memory["translator"].unique().sort().to_list()
    return {"shard": shard, "of": of, "queries": own.height, "translators": identities}


@step(
    "translate_queries", inputs=["snapshot"], many=["shards"], config=["llm.augmentation", "seed"]
)
def translate_queries(ctx: Context) -> Metadata:
    """Put all shards together: train pairs with translated queries, their labels kept (A37).

    Writes ``translated.parquet``, a row for each of relevance that may be learnt, and
    ``decisions.parquet``, what became of every query that was asked: qc and qi learn their pairs of
    those that are kept. Raises :class:`DataError` where none is left.
    """
    from csrm_tasks.curation.translation.rows import translated_pairs
    from csrm_tasks.curation.translation.run import DECIDED
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.llm.task_augmented import translated_counts
    from csrm_tasks.records import TRANSLATED, write_table

    asked = _asked(ctx)
    decided = _joined(ctx, asked.queries)
    pairs = table(ctx.input("snapshot").path, "pairs")
    rows, counts = translated_pairs(decided, pairs)
    of_tasks = translated_counts(ctx.input("snapshot").path, decided)
    told = "; ".join(f"{k}: {_said(v)}" for k, v in {**counts, **_by_task(of_tasks)}.items())
    log.info("translated: %d pairs of %d queries asked (%s)", rows.height, decided.height, told)
    if decided.height and rows.is_empty() and not any(of_tasks.values()):
        raise DataError(
            f"translate_queries: no translation is left of {decided.height} queries ({told}); look "
            "at decisions.parquet of the shards, change llm.augmentation, or set its translator to "
            "null"
        )
    write_table(rows, TRANSLATED, ctx.out / "translated.parquet")
    write_table(decided, DECIDED, ctx.out / "decisions.parquet")
    return {
        "queries": decided.height, "pairs": rows.height, "counts": counts, "task_pairs": of_tasks,
        "held_out": asked.held_out, "capped": asked.capped,
        "translators": decided["translator"].unique().sort().to_list(),
    }  # fmt: skip


def _by_task(pairs: Mapping[str, int]) -> dict[str, dict[str, int]]:
    return {task: {"kept": n} for task, n in pairs.items()}


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in counts.items())


def _asked(ctx: Context) -> Asked:
    """Return the queries to translate; raises :class:`ConfigError` where a market has none to."""
    from csrm_tasks.curation.translation.asked import asked_queries, missing_locales
    from csrm_tasks.dataset.tables import judged_anywhere, table

    if ctx.market.llm.augmentation.translator is None:
        raise ConfigError("llm.augmentation.translator is null: this market translates no queries")
    folder = ctx.input("snapshot").path
    judged = judged_anywhere(folder)
    missing = missing_locales(ctx.market, judged)
    if not missing:
        log.info("every language that models are judged in has train labels: nothing to translate")
    return asked_queries(table(folder, "queries"), judged, missing, ctx.market.seed)


def _joined(ctx: Context, asked: pl.DataFrame) -> pl.DataFrame:
    """Return the decisions of all shards; raises :class:`DataError` unless each was asked once."""
    import polars as pl

    from csrm_tasks.curation.translation.run import DECIDED
    from csrm_tasks.records import read_table

    shards = ctx.lists["shards"]
    if not shards:
        raise ConfigError("translate_queries needs every shard in input 'shards'")
    check_parts(
        shards, all_shards(len(shards)),
        lambda x: x.was_made_from("snapshot", ctx.input("snapshot"))
        and x.made_of.get("llm") == shards[0].made_of.get("llm"),
        "shard {shard} of {of} of this snapshot and translator; give them all, in order",
    )  # fmt: skip
    decided = pl.concat(read_table(s.file("decisions.parquet"), DECIDED) for s in shards)
    keys = ["to_locale", "query_id"]
    decided = decided.sort(keys)
    if not decided.select(keys).equals(asked.select(keys)):
        raise DataError(
            "the shards do not hold every query that is asked of this snapshot; run them again"
        )
    return decided


def _table(ctx: Context) -> Table:
    """Return the market's own translations; those that dev watches are left out."""
    from csrm_tasks.curation.translation.table import Table
    from csrm_tasks.llm.data import DIRECTED, load_translations

    rows = load_translations(ctx.input("snapshot").path, "train")
    return Table(rows.select(DIRECTED).iter_rows())


def _judges(ctx: Context, known: Table) -> Judges:
    from csrm_tasks.curation.translation.asked import Barred
    from csrm_tasks.curation.translation.checks import Brands
    from csrm_tasks.curation.translation.run import Judges
    from csrm_tasks.dataset.tables import judged_anywhere, table

    folder = ctx.input("snapshot").path
    queries, products, translations = (
        table(folder, name) for name in ("queries", "products", "translations")
    )
    barred = Barred.of(queries, judged_anywhere(folder), _held_out(ctx.market, ctx.settings))
    brands = Brands(products, translations)
    return Judges(brands, barred, known, ctx.market.llm.augmentation.round_trip)


def _translators(ctx: Context, known: Table) -> Translators:
    """Return who translates there and back; a model is loaded when it is first asked."""
    from csrm_tasks.curation.translation import generation, seq2seq
    from csrm_tasks.curation.translation.run import Translators
    from csrm_tasks.curation.translation.translators import Remembered

    config = ctx.market.llm.augmentation
    if config.translator == "table":
        one = Remembered(known.identity, lambda: known, _memory(ctx, [known.identity]))
        return Translators(one, one)
    if config.translator == "llm":
        if "llm" not in ctx.inputs:
            raise ConfigError(
                "llm.augmentation.translator is llm, but there is no LLM yet (input 'llm'): give a "
                "trained one, or choose the translator table or seq2seq"
            )
        llm = ctx.input("llm")
        name = f"llm:{llm.digest[:16]}:{config.beams}:{generation.VERSION}"
        make = partial(generation.LlmTranslator.load, llm.path, config.beams)
        one = Remembered(name, make, _memory(ctx, [name]))
        return Translators(one, one)
    assert config.model is not None  # by the section
    models = (config.model, config.back or config.model)
    names = [seq2seq.identity(config, model) for model in models]
    memory = _memory(ctx, names)
    there, back = (
        Remembered(name, partial(seq2seq.Seq2SeqTranslator, config, model), memory)
        for name, model in zip(names, models, strict=True)
    )
    return Translators(there, there if config.back is None else back)


def _memory(ctx: Context, identities: list[str]) -> pl.DataFrame:
    """Return what shards of this market have kept of these translators' answers."""
    import polars as pl

    from csrm_tasks.curation.translation.translators import MEMORY
    from csrm_tasks.records import read_table

    found = [pl.DataFrame(schema=MEMORY)]
    for ref, manifest in ctx.store.published(f"{ctx.market.market}/translate_shard"):
        if set(identities) & set(manifest["facts"]["translators"]):
            try:
                found.append(read_table(ctx.store.open(ref).file("memory.parquet"), MEMORY))
            except (ArtifactError, DataError) as e:  # pruned meanwhile, say: it is asked again
                log.warning("translations of %s are not used: %s", ref, e)
    known = pl.concat(found)
    return known.filter(pl.col("translator").is_in(identities))
