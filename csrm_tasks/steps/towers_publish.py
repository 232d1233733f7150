"""What every training of towers ends with: lexical evidence, thresholds, files, figures on dev."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from csrm_tasks.errors import ConfigError
from csrm_tasks.json_files import write_json
from csrm_tasks.steps.declaration import Context, Metadata

if TYPE_CHECKING:
    from csrm_tasks.artifacts import Artifact
    from csrm_tasks.lexical.evidence import Evidence
    from csrm_tasks.towers import measure
    from csrm_tasks.towers.examples import Examples
    from csrm_tasks.towers.model import TwinTowers
    from csrm_tasks.towers.serving.tokens import TowerTokenizer
    from csrm_tasks.towers.tables import TowerTables

log = logging.getLogger("csrm")


def taught_by(ctx: Context, target: str) -> str:
    """Say who teaches towers: the LLM, a stack (A50), or labels; raises :class:`ConfigError`."""
    if target not in ("soft", "hard"):
        raise ConfigError(f"train_towers: target is soft or hard, not {target!r}")
    if target == "hard":
        return "labels"
    stopped = soft_input(ctx).facts.get("stopped")
    if stopped:
        log.info("no soft labels (%s): the towers learn people's labels", stopped)
        return "labels"
    teacher = teacher_of(ctx, target)
    return "llm" if teacher is None else str(ctx.store.open(teacher).facts["taught_by"])


def teacher_of(ctx: Context, target: str) -> str | None:
    """Return the choice of the teacher that soft labels follow, if one was made."""
    return soft_input(ctx).inputs.get("teacher") if target == "soft" else None


def learnt_pairs(ctx: Context, tables: TowerTables, by: str, seen: bool = False) -> Examples:
    """Return what towers learn that are taught ``by`` (of :func:`taught_by`)."""
    if by == "labels":
        return tables.hard()
    return tables.soft(soft_input(ctx).file("scored.parquet"), seen)


def soft_input(ctx: Context) -> Artifact:
    """Return the teacher's scores of tower pairs; raises :class:`ConfigError` without them."""
    if "scored" not in ctx.inputs:
        raise ConfigError("learning from the teacher needs input 'scored', of score_pairs")
    return ctx.input("scored")


def shown_pairs(ctx: Context, tables: TowerTables, seen: bool = False) -> Examples | None:
    """Return what the teacher says of the pairs that thresholds are chosen on (A33).

    None: the market chooses on dev, or dev has refused the teacher.
    """
    wanted = ctx.market.towers.thresholds == "teacher"
    return taught_pairs(ctx, tables, seen) if wanted else None


def taught_pairs(ctx: Context, tables: TowerTables, seen: bool = False) -> Examples | None:
    """Return what the teacher says of impressed and retrieved products; None of a refused one.

    They are what the towers will judge in service. Random ones are left out: nearly all are defects
    that any cut finds, and counting them draws the defect threshold to where it misses those that
    shoppers would see.
    """
    import polars as pl

    taught = soft_input(ctx)
    if taught.facts.get("stopped"):
        return None
    if "pairs" not in taught.inputs:
        raise ConfigError(f"{taught.ref} does not say which tower pairs it scored; score some anew")
    drawn = pl.read_parquet(ctx.store.open(taught.inputs["pairs"]).file("pairs.parquet"))
    shown = drawn.filter(pl.col("source") != "random")
    return tables.soft(taught.file("scored.parquet"), seen, shown)


def taught_for(ctx: Context, tables: TowerTables, seen: bool = False) -> Examples | None:
    """Return :func:`taught_pairs` where thresholds or lexical evidence are learnt from them."""
    config = ctx.market.towers
    wanted = config.thresholds == "teacher" or (config.evidence and "scored" in ctx.inputs)
    return taught_pairs(ctx, tables, seen) if wanted else None


def publish_towers(
    ctx: Context,
    model: TwinTowers,
    reader: TowerTokenizer,
    tables: TowerTables,
    taught: Examples | None,
) -> Metadata:
    """Fit evidence, choose thresholds, write the towers; returns figures on dev.

    ``taught`` is the teacher's word on :func:`taught_pairs`; None for towers that learnt grades.
    Thresholds are chosen on it where the market says so, else on dev.
    """
    import polars as pl

    from csrm_tasks.lexical.evidence import save_lexicon
    from csrm_tasks.towers import measure

    config, seed = ctx.market.towers, ctx.market.seed
    dev = tables.dev(ctx.market.target_locale)
    pairs = None if taught is None else measure.taught_pairs(model, reader, taught, seed)
    evidence, fitted = (
        _evidence(ctx, model, reader, tables, pairs) if config.evidence else (None, {})
    )
    scores = measure.probabilities(model, measure.reference(model, reader, dev), evidence)
    if pairs is None or config.thresholds != "teacher":
        chosen = measure.dev_thresholds(dev, scores, config.precision_floor)
    else:
        values = measure.teacher_thresholds(model, pairs, config.precision_floor, evidence)
        chosen = measure.on_dev(dev, scores, values)
    model.save(ctx.out / "towers")
    (ctx.out / "towers" / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    about = measure.describe(model, reader, chosen, config.product_fields)
    if evidence is not None:
        save_lexicon(ctx.out, evidence.lexicon)
        about["evidence"] = evidence.describe()
    write_json(ctx.out / "towers.json", about)
    dev.select("pair_id", "grade").with_columns(
        em=pl.Series(scores[:, 0]), defect=pl.Series(scores[:, 1])
    ).write_parquet(ctx.out / "dev_scores.parquet")
    log.info(
        "towers: dev of %s, %d pairs: %s",
        ", ".join(dev["locale"].unique().sort()),
        len(dev),
        chosen,
    )
    figures = {"dev_pairs": len(dev), "dev_locale": ", ".join(dev["locale"].unique().sort())}
    return (
        figures
        | fitted
        | {
            f"dev_{head}_{name}": getattr(threshold, name)
            for head, threshold in chosen.items()
            for name in ("f1", "precision", "recall")
        }
    )


def _evidence(
    ctx: Context, model: TwinTowers, reader: TowerTokenizer, tables: TowerTables,
    taught: measure.TaughtPairs | None,
) -> tuple[Evidence | None, Metadata]:  # fmt: skip
    """Fit lexical evidence and keep it by head; see :mod:`csrm_tasks.towers.evidence`."""
    from csrm_tasks.towers import evidence

    lexicon, seed = evidence.lexicon_of(tables), ctx.market.seed

    def people(split: str) -> evidence.Pairs:
        return evidence.judged_pairs(model, reader, tables.judged(split), lexicon, seed)

    if taught is None:
        fitted = evidence.fit(lexicon, {"dev": people("dev")}, None, seed)
    else:
        learnt = {"train": people("train"), "teacher": evidence.soft_pairs(model, taught, lexicon)}
        fitted = evidence.fit(lexicon, learnt, people("dev"), seed)
    log.info("towers: lexical evidence: %s", fitted.facts)
    return fitted.evidence, fitted.facts
