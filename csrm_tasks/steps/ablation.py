"""Steps of the ablation (A41): short trainings with and without each option, then what is kept.

Off unless a market sets ``ablation.enabled``. The run's trainings take the decision as their input
``ablation`` (:func:`csrm_tasks.options.honoured`): an option that was dropped is off in them. The
market's file stays as it is, for next week's dev may say otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.json_files import write_json
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.llm import base_identity
from csrm_tasks.steps.parts import check_parts

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.artifacts import Artifact

log = logging.getLogger("csrm")


@step(
    "ablation_run",
    inputs=["snapshot"],
    optional=["rqa", "pretrained", "negatives", "filtered", "translated"],
    config=["ablation.steps", "llm", "seed"],
    external_inputs=base_identity,
)
def ablation_run(ctx: Context, *, without: str = "", repeat: int = 0) -> Metadata:
    """Train a short LLM without one option, or with everything, and judge it on dev (A41).

    ``without``: the option's key in the market file. ``repeat``: which seed, from 0. The inputs are
    those of the run's trainings, but for a live adapter: what it was trained with would be in all.
    Writes ``dev_answers.parquet``, the answers on dev by task and pair.
    """
    import torch

    from csrm_tasks.curation.ablation import short_training
    from csrm_tasks.curation.dev_answers import ANSWERS, FILE, answers_of
    from csrm_tasks.llm.network.identity import PRETRAINING
    from csrm_tasks.llm.training.inputs import FinetuneInputs
    from csrm_tasks.options import EVERYTHING, OPTIONS, inputs_of
    from csrm_tasks.options import without as switched_off
    from csrm_tasks.records import write_table

    known = [o.key for o in OPTIONS]
    if without not in (EVERYTHING, *known) or repeat < 0:
        raise ConfigError(
            f"ablation_run: without {without!r}, repeat {repeat}; known options: "
            f"{', '.join(known)}, and seeds count from 0"
        )
    torch.set_num_threads(ctx.settings.threads)
    paths = {name: artifact.path for name, artifact in ctx.inputs.items()}
    given = FinetuneInputs(
        paths["snapshot"], paths.get("rqa"), None, "ablation", 0,
        pretraining=paths["pretrained"] / PRETRAINING if "pretrained" in paths else None,
        negatives=paths.get("negatives"), filtered=paths.get("filtered"),
        translated=paths.get("translated"),
    ).leaving_out(inputs_of([without]))  # fmt: skip
    model, facts = short_training(switched_off(ctx.market, [without]), given, repeat, ctx.work)
    write_table(answers_of(model, ctx.input("snapshot").path), ANSWERS, ctx.out / FILE)
    return {"without": without, "repeat": repeat} | facts


@step(
    "ablate",
    inputs=["snapshot"],
    many=["runs"],
    config=[
        "ablation.enabled", "ablation.seeds", "ablation.gain", "ablation.margin", "tasks",
        "target_locale", "evaluation_locales", "llm.mixture", "llm.negatives.per_query",
        "llm.augmentation.translator", "llm.misspelt_share", "llm.label_smoothing",
        "llm.noise_correction", "llm.pivot", "llm.mix_languages", "filter.action",
    ],
)  # fmt: skip
def ablate(ctx: Context) -> Metadata:
    """Decide on dev which options this run's trainings keep, and say why (A41).

    ``runs``: every ``ablation_run`` of this snapshot, in the order of the market's options, seed by
    seed. The facts, also in ``ablation.json``, hold of each option its difference on dev with its
    interval, whether it is kept, and the reason.
    """
    from csrm_tasks.curation.ablation import decide, scopes
    from csrm_tasks.curation.translation.asked import missing_locales
    from csrm_tasks.dataset.tables import judged_anywhere
    from csrm_tasks.options import EVERYTHING

    answers = _answers(ctx)
    rules = ctx.market.ablation
    everything = answers.pop(EVERYTHING)
    missing = missing_locales(ctx.market, judged_anywhere(ctx.input("snapshot").path))
    decided, noise = decide(everything, answers, scopes(ctx.market, missing), rules)
    for one in decided:
        log.info(
            "%s is %s: dev F1 %+.4f [%+.4f, %+.4f] with it; %s",
            one.option, "kept" if one.kept else "dropped", one.delta.value, one.delta.lo,
            one.delta.hi, one.reason,
        )  # fmt: skip
    first, dev = ctx.lists["runs"][0], everything[0]
    facts: Metadata = {
        "options": [one.as_json() for one in decided],
        "kept": [one.option for one in decided if one.kept],
        "dropped": [one.option for one in decided if not one.kept],
        "gain": rules.gain, "margin": rules.margin, "noise": noise,
        "seeds": len(everything), "steps": first.facts["steps"],
        "tasks": dev["task"].unique().sort().to_list(),
        "dev_pairs": dev.height, "dev_queries": dev["query_id"].n_unique(),
        "dev_locale": ", ".join(dev["locale"].unique().sort()),
    }  # fmt: skip
    write_json(ctx.out / "ablation.json", facts, sort_keys=False)
    return facts


def _without(run: Artifact) -> str:
    return str(run.facts["without"])


def _answers(ctx: Context) -> dict[str, list[pl.DataFrame]]:
    """Return option → ANSWERS without it, with ``hard``, seed by seed; "" is with everything.

    Raises :class:`ConfigError` where the market has nothing to try, :class:`DataError` unless the
    runs are all of this snapshot and of one set of inputs, in order.
    """
    import polars as pl

    from csrm_tasks.curation.dev_answers import ANSWERS, FILE, hard_pairs
    from csrm_tasks.records import read_table

    runs = ctx.lists["runs"]
    _check(ctx, runs)
    near = hard_pairs(ctx.input("snapshot").path).with_columns(hard=pl.lit(True))
    found: dict[str, list[pl.DataFrame]] = {}
    for run in runs:
        told = read_table(run.file(FILE), ANSWERS)
        marked = told.join(near, on=["task", "pair_id"], how="left", maintain_order="left")
        found.setdefault(_without(run), []).append(
            marked.with_columns(pl.col("hard").fill_null(False))
        )
    return found


def _check(ctx: Context, runs: Sequence[Artifact]) -> None:
    from csrm_tasks.options import ablation_arms, inputs_of, options_on

    wanted = ablation_arms(ctx.market)
    if not wanted:
        raise ConfigError("ablate: ablation.enabled is false, or no option that it tries is on")
    check_parts(
        runs, wanted,
        lambda x: x.was_made_from("snapshot", ctx.input("snapshot")) and x.shares_inputs(runs[0]),
        "the run without '{without}' ('': with everything), repeat {repeat}; ablate "
        f"needs all {len(wanted)} runs of this snapshot in input 'runs', with the same inputs, in "
        "order: for each seed with everything, then without each option",
    )  # fmt: skip
    lacking = sorted(inputs_of(options_on(ctx.market)) - runs[0].inputs.keys())
    if lacking:
        raise DataError(f"the runs of the ablation lack their input {lacking[0]!r}; run them anew")
