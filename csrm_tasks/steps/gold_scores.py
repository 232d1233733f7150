"""Scores of judged pairs that follow from scores which are there: no LLM is run a second time.

The chosen LLM is one of the candidates, so its scores are that candidate's at its own temperature;
what the chosen teacher says is a function of them and of the texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csrm_tasks.errors import ConfigError
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.llm_scores import agreement, write_scores

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.artifacts import Artifact


@step("chosen_scores", inputs=["llm"], optional=["rqa"], many=["scored"])
def chosen_scores(ctx: Context) -> Metadata:
    """Take the chosen LLM's scores of judged pairs from its candidates', at its temperature (A30).

    ``llm``: of ``select_llm``; ``scored``: of ``score_pairs`` with the titles ``rqa``, of every
    candidate. Raises :class:`ConfigError` where the chosen one's are not among them.
    """
    from csrm_tasks.llm.network.identity import read_card
    from csrm_tasks.llm.scoring.probabilities import tempered

    llm = ctx.input("llm")
    own = _of_chosen(ctx, llm)
    given = read_card(ctx.store.open(llm.facts["chosen_ref"]).path).temperature
    temperature = read_card(llm.path).temperature / given
    return _kept(ctx, own, tempered(_scored(own), temperature))


@step("taught_scores", inputs=["snapshot", "llm", "teacher", "scored"], optional=["rqa"])
def taught_scores(ctx: Context) -> Metadata:
    """Put the chosen teacher's word on judged pairs in the place of the LLM's (A50).

    ``scored``: what ``llm`` says of them, with the titles ``rqa``.
    """
    from csrm_tasks.teacher.applying import stacked

    own = ctx.input("scored")
    if not _is_of(ctx, own, ctx.input("llm")):
        raise ConfigError(
            f"taught_scores: {own.ref} is not of {ctx.input('llm').ref} and these titles"
        )
    taught = stacked(ctx.input("teacher").path, ctx.input("snapshot").path, _scored(own))
    return _kept(ctx, own, taught)


def _of_chosen(ctx: Context, llm: Artifact) -> Artifact:
    chosen = ctx.store.open(llm.facts["chosen_ref"])
    found = [a for a in ctx.lists["scored"] if _is_of(ctx, a, chosen)]
    if not found:
        raise ConfigError(
            f"chosen_scores needs the scores of {chosen.ref}, with the same titles, in input "
            "'scored'"
        )
    return found[0]


def _is_of(ctx: Context, scored: Artifact, llm: Artifact) -> bool:
    rqa = ctx.inputs.get("rqa")
    if rqa is None:
        return "rqa" not in scored.inputs and scored.was_made_from("llm", llm)
    return scored.was_made_from("llm", llm) and scored.was_made_from("rqa", rqa)


def _kept(ctx: Context, own: Artifact, scored: pl.DataFrame) -> Metadata:
    write_scores(ctx, scored, judged=True)
    return {"pairs": len(scored), "truncated": own.facts["truncated"]} | agreement(scored)


def _scored(artifact: Artifact) -> pl.DataFrame:
    import polars as pl

    return pl.read_parquet(artifact.file("scored.parquet"))
