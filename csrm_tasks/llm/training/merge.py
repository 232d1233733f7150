"""A merged adapter as one more candidate: which may be merged, and what dev says of it (A55)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from csrm_tasks.errors import ArtifactError
from csrm_tasks.llm.data import load_fields, load_translations, relevance_rows, selection_dev
from csrm_tasks.llm.network.identity import PRETRAINING, LlmCard, other_base, read_card
from csrm_tasks.llm.network.merging import Truncation, layers_of, merge_adapters
from csrm_tasks.llm.network.model import put_adapter
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.scoring.scoring import load_own_base
from csrm_tasks.llm.scoring.transfer import measure_transfer, parallel_pairs
from csrm_tasks.llm.task_data import load_task_pairs
from csrm_tasks.llm.training.judge import Judge, dev_figures, write_dev_scores
from csrm_tasks.llm.training.task_judge import TaskJudge
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import MergeMethod

# What two models of one base must have in common, so that the mean of both is asked as each is.
_AGREE: dict[str, Callable[[LlmCard], object]] = {
    "product form (llm.product_fields, llm.category_levels)": lambda card: card.product_form,
    "label token ids": lambda card: card.label_ids,
    "pivot language (llm.pivot)": lambda card: card.pivot,
}


def why_not(one: Path, other: Path) -> str | None:
    """Say in what the model in ``other`` differs from ``one``, so that they cannot be merged."""
    try:
        cards = [read_card(folder) for folder in (one, other)]
    except ArtifactError as e:  # of another prompt version
        return str(e)
    differ = (name for name, read in _AGREE.items() if read(cards[0]) != read(cards[1]))
    if what := other_base(*cards) or next(differ, None):
        return f"it has another {what}"
    if layers_of(one / "adapter") != layers_of(other / "adapter"):
        return "its adapter is on other layers (llm.lora.targets)"
    return None


@dataclass(frozen=True)
class MergeInputs:
    """What is merged, and what dev needs to judge it."""

    models: Sequence[Path]  # that agree (:func:`why_not`); the result is read as the first is
    method: MergeMethod
    snapshot: Path
    rqa: Path | None


def merge(market: MarketConfig, given: MergeInputs, out: Path) -> dict[str, Any]:
    """Merge, and write what a training writes below ``out``; return its facts.

    Dev is scored as in training, with the adapter beside the base; nothing was trained, so the
    curves are empty.
    """
    first = given.models[0]
    lost = merge_adapters(
        [folder / "adapter" for folder in given.models], given.method, market.seed, out / "adapter"
    )
    card = replace(read_card(first), arm=f"merged_{given.method}", round=0, temperature=1.0)
    if (first / PRETRAINING).is_dir():
        shutil.copytree(first / PRETRAINING, out / PRETRAINING)
    facts = _judge(market, card, given, out)
    (out / "curves.json").write_text(json.dumps({}), encoding="utf-8")
    return facts | _told(lost)


def _told(lost: Truncation) -> dict[str, float]:
    return {f"truncation_{name}": share for name, share in asdict(lost).items()}


def _judge(market: MarketConfig, card: LlmCard, given: MergeInputs, out: Path) -> dict[str, Any]:
    """Score dev with the adapter in ``out``, and write the scores and the model's card there."""
    model = load_own_base(card, given.models[0])
    put_adapter(model, out / "adapter")
    encoder = PromptEncoder(model.tokenizer, card.max_length, card.product_form)
    replace(card, precision=model.precision).write(out)
    dev, source_dev = selection_dev(given.snapshot, market.target_locale)
    fields = load_fields(given.snapshot, given.rqa, card.pivot)
    own, source = (
        Judge(model, encoder, relevance_rows(fields, pairs)) for pairs in (dev, source_dev)
    )
    probabilities = own.probabilities()
    write_dev_scores(dev, probabilities, out)
    figures = dev_figures(own.of(probabilities), dev, probabilities, source, source_dev)
    figures["truncated"] = encoder.truncated
    task_dev = load_task_pairs(given.snapshot).filter(pl.col("split") == "dev")
    task_dev = task_dev.filter(pl.col("task").is_in([*card.label_ids]))
    if not task_dev.is_empty():
        figures |= TaskJudge(model, encoder, task_dev, market.target_locale).write(out)
    parallel = parallel_pairs(load_translations(given.snapshot, "dev"))
    return figures | measure_transfer(model, encoder, parallel)
