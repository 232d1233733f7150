"""The step that merges adapters of the relevance LLM into one more candidate of ``select_llm``."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, cast, get_args

from csrm_tasks.errors import ConfigError
from csrm_tasks.sections import MergeMethod
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    from csrm_tasks.artifacts import Artifact

log = logging.getLogger("csrm")


@step(
    "merge_llms",
    inputs=["snapshot"],
    optional=["live", "rqa"],
    many=["llms"],
    config=["seed"],
)
def merge_llms(ctx: Context, *, method: str) -> Metadata:
    """Merge adapters by ``method`` (linear, ties, dare) into one more candidate (A55).

    ``llms``: the week's models (rounds, or seeds of one), of one base, stage 0, product form and
    label ids; raises :class:`ConfigError` where one is of others. A ``live`` model of others is
    left out, and the log and the facts say why. The same weights twice (a round that was passed on)
    count once. With nothing to merge with, the first model is passed on, which is then no better
    than itself. Dev is scored as in training; ``select_llm`` chooses there.
    """
    from csrm_tasks import tracking

    if method not in get_args(MergeMethod):
        known = ", ".join(get_args(MergeMethod))
        raise ConfigError(f"merge_llms: there is no method {method!r}; known: {known}")
    models, left_out = _to_merge(ctx)
    about = {"method": method, "merged": [a.ref for a in models], "left_out": left_out}
    if len(models) == 1:
        log.warning("nothing to merge %s with; it is passed on", models[0].ref)
        shutil.copytree(models[0].path, ctx.out, dirs_exist_ok=True)
        return dict(models[0].facts) | about | {"passed_on": models[0].ref}
    import torch

    from csrm_tasks.llm.training.merge import MergeInputs, merge

    torch.set_num_threads(ctx.settings.threads)
    rqa = ctx.inputs.get("rqa")
    given = MergeInputs(
        [a.path for a in models], cast("MergeMethod", method), ctx.input("snapshot").path,
        None if rqa is None else rqa.path,
    )  # fmt: skip
    facts = merge(ctx.market, given, ctx.out)
    log.info(
        "%s of %d adapters: dev micro-F1 %.4f; the rank leaves %.1f %% of the change out",
        method, len(models), facts["dev_micro_f1"], 100 * facts["truncation_error"],
    )  # fmt: skip
    parents = {f"merged_{i}": a.ref for i, a in enumerate(models)}
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params=parents | {"method": method, "seed": ctx.market.seed},
        metrics={k: v for k, v in facts.items() if isinstance(v, int | float)},
        files=[ctx.out / "llm.json"],
    )  # fmt: skip
    return facts | about


def _to_merge(ctx: Context) -> tuple[list[Artifact], dict[str, str]]:
    """Return the models to merge, and of each other one by reference why it is left out."""
    from csrm_tasks.file_state import folder_digest
    from csrm_tasks.llm.training.merge import why_not

    llms, live = ctx.lists["llms"], ctx.inputs.get("live")
    if not llms:
        raise ConfigError("merge_llms needs at least one model in input 'llms'")
    kept: dict[str, Artifact] = {}  # by their weights
    left_out: dict[str, str] = {}
    for model in [*llms, *([] if live is None else [live])]:
        weights = folder_digest(model.file("adapter"))
        reason = why_not(llms[0].path, model.path)
        if reason is not None and model is not live:
            raise ConfigError(
                f"merge_llms: {model.ref} and {llms[0].ref} cannot be merged: {reason}"
            )
        if reason is None and weights in kept:
            reason = f"it has the weights of {kept[weights].ref}"
        if reason is None:
            kept[weights] = model
        else:
            left_out[model.ref] = reason
            log.warning("%s is left out of the merging: %s", model.ref, reason)
    return list(kept.values()), left_out
