"""The step that says who teaches the towers: the LLM, a stack with lexical evidence, or people."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from csrm_tasks import tracking
from csrm_tasks.errors import RefusedError
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    from csrm_tasks.evaluation.gold import Gold
    from csrm_tasks.teacher.choose import Stacked
    from csrm_tasks.teacher.stack import Stack

log = logging.getLogger("csrm")
FOLLOWS = {"distil": "they learn from it all the same", "hard": "they learn people's labels"}


@step(
    "choose_teacher",
    inputs=["snapshot", "llm"],
    config=["gate", "towers.stacked_teacher", "towers.refused_teacher"],
)
def choose_teacher(ctx: Context) -> Metadata:
    """Choose what teaches the towers, on the target's dev: LLM, stack (A50), or labels (A32).

    Where the market asks for a stack it is fitted, and kept if it is better than the LLM. What then
    teaches is held against the gate's floors and baselines; one that is surely below them is
    refused, and ``towers.refused_teacher`` says what follows. No gold is read. Raises
    :class:`RefusedError` where the run is to stop.
    """
    import polars as pl

    from csrm_tasks.evaluation.baselines import majority
    from csrm_tasks.evaluation.gold import judged_set
    from csrm_tasks.sections import Gate
    from csrm_tasks.teacher.choose import Stacked, stack_on
    from csrm_tasks.teacher.evidence import VARIANTS, JudgedTexts, probabilities_of, read_as
    from csrm_tasks.teacher.judge import refusals

    towers, locale = ctx.market.towers, ctx.market.target_locale
    policy, texts = ctx.market.gate or Gate(), JudgedTexts.of(ctx.input("snapshot").path)
    dev = judged_set(
        texts.dev(locale, pl.read_parquet(ctx.input("llm").file("dev_scores.parquet")))
    )
    if not dev.pairs:
        none = f"none: no judged dev pair of {locale}, so there is no verdict either"
        return _told(ctx, {"taught_by": "llm", "stack": none, "refused": []})
    beside = {"majority": majority(texts.train_grades(), dev.pairs)}
    made = Stacked(None, probabilities_of(dev.frame), {"stack": "not asked for"})
    if towers.stacked_teacher or "tfidf" in policy.compared:
        model = texts.fit_ngrams(locale)
        beside["tfidf"] = texts.said_by(model, dev.frame)
        if towers.stacked_teacher:
            read = {name: read_as(name, texts, model, dev.frame) for name in VARIANTS}
            made = stack_on(dev, made.said, read)
        if made.stack is not None:
            model.save(ctx.out)
            _calibrated(ctx, made.stack, dev, made).write(ctx.out)
    refused = [*refusals(dev, made.said, beside, policy)]
    by = "llm" if made.stack is None else "stack"
    if refused and towers.refused_teacher == "hard":
        by = "labels"
    judged = {"dev_pairs": dev.pairs, "dev_queries": dev.queries}
    return _told(ctx, {"taught_by": by, "refused": refused} | made.facts | judged)


def _calibrated(ctx: Context, stack: Stack, dev: Gold, made: Stacked) -> Stack:
    """Return the stack with the temperature that its cross-fitted word on dev asks for (A49)."""
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.llm.scoring.calibration import calibrate
    from csrm_tasks.llm.scoring.probabilities import with_probabilities

    said = with_probabilities(dev.frame.select("pair_id", "grade", "locale"), made.said)
    said.write_parquet(ctx.work / "cross_fitted.parquet")
    votes = table(ctx.input("snapshot").path, "votes")
    found = calibrate(ctx.work / "cross_fitted.parquet", votes, ctx.out / "dev_scores.parquet")
    made.facts["calibration"] = found.calibration
    return stack.cooled(found.temperature)


def _told(ctx: Context, facts: Metadata) -> Metadata:
    """Say the choice in a line and in MLflow; raises where a refused teacher ends the run."""
    refused, policy = facts["refused"], ctx.market.towers.refused_teacher
    name = "the LLM" if facts["stack"].split(":")[0] != "kept" else "the stack"
    if refused:
        why = f"dev refuses {name} as the towers' teacher ({'; '.join(refused)})"
        if policy == "stop":
            raise RefusedError(
                f"{why}: the run stops here, as towers.refused_teacher says; hard would go on with "
                "towers of people's labels"
            )
        log.warning("%s: %s", why, FOLLOWS[policy])
    else:
        log.info("the towers learn from %s; stack %s", name, facts["stack"])
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params={"taught_by": facts["taught_by"], "stack": facts["stack"], "refused": refused},
        metrics={k: float(v) for k, v in facts.items() if isinstance(v, int | float)},
    )  # fmt: skip
    return facts
