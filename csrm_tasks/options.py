"""The options of a market that must earn their place on dev (A41), and how one is switched off.

One entry each: the key by which the market file and the reports name it, whether it is on, what the
LLM's section says without it, which input of a training brings it, and what it is judged by on dev.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from csrm_tasks.errors import DataError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import Augmentation, Negatives
from csrm_tasks.sections.tasks import BINARY, Task

if TYPE_CHECKING:
    from csrm_tasks.artifacts import Artifact

EVERYTHING = ""  # the ablation's run with all of them
RELEVANCE: tuple[Task, ...] = ("relevance",)
ITEMS: tuple[Task, ...] = ("relevance", "qi")  # whose labels are of products
EVERY: tuple[Task, ...] = ("relevance", *BINARY)


@dataclass(frozen=True)
class Option:
    """One option of what the LLM learns from."""

    key: str  # of the market file
    is_on: Callable[[MarketConfig], bool]
    off: Mapping[str, Any] = field(default_factory=dict)  # fields of the LLM's section, without it
    brought_by: str | None = None  # the input of a training that carries it, in step and code alike
    tasks: tuple[Task, ...] = EVERY  # whose rows it changes beside relevance
    alone: tuple[Task, ...] = EVERY  # … and where a market does not learn relevance
    expected: bool = False  # others have measured that it helps: dev has to show that it does not
    hard: bool = False  # it is there for the precision on wrong pairs that are near
    absent: bool = False  # it is there for the languages without train labels

    def tasks_of(self, market: MarketConfig) -> tuple[Task, ...]:
        """Return the tasks of ``market`` whose rows it changes, by which dev judges it."""
        own = self.tasks if "relevance" in market.tasks else self.alone
        return tuple(task for task in market.tasks if task in own)


# Expected: paper 2 has measured them (its table 2), and docs/STUDY.md negatives and the filter. Of
# the others nobody has measured anything here.
OPTIONS = (
    Option(
        "llm.negatives", lambda m: m.llm.negatives.per_query > 0,
        {"negatives": Negatives()}, "negatives", ITEMS, expected=True, hard=True,
    ),
    Option(
        "llm.augmentation", lambda m: m.llm.augmentation.translator is not None,
        {"augmentation": Augmentation()}, "translated", expected=True, absent=True,
    ),
    Option("llm.misspelt_share", lambda m: m.llm.misspelt_share > 0, {"misspelt_share": 0.0},
           tasks=RELEVANCE, alone=()),
    Option("llm.label_smoothing", lambda m: m.llm.label_smoothing > 0, {"label_smoothing": 0.0}),
    Option("llm.noise_correction", lambda m: m.llm.noise_correction, {"noise_correction": False},
           tasks=RELEVANCE, alone=()),
    Option("llm.pivot", lambda m: m.llm.pivot is not None, {"pivot": None},
           tasks=RELEVANCE, alone=()),
    Option("llm.mix_languages", lambda m: m.llm.mix_languages, {"mix_languages": False},
           tasks=RELEVANCE, alone=()),
    Option("filter", lambda m: m.filter.action in ("remove", "down_weight"), {}, "filtered",
           ITEMS, expected=True),
)  # fmt: skip


def options_on(market: MarketConfig) -> tuple[str, ...]:
    """Return the keys of the options that change what this market's LLM learns from."""
    return tuple(o.key for o in OPTIONS if o.is_on(market) and o.tasks_of(market))


def without(market: MarketConfig, keys: Collection[str]) -> MarketConfig:
    """Return the market with the options ``keys`` switched off in its LLM's section."""
    off = {name: value for o in OPTIONS if o.key in keys for name, value in o.off.items()}
    return market.model_copy(update={"llm": market.llm.model_copy(update=off)}) if off else market


def inputs_of(keys: Collection[str]) -> frozenset[str]:
    """Return the inputs of a training that it does not read without the options ``keys``."""
    return frozenset(o.brought_by for o in OPTIONS if o.key in keys and o.brought_by is not None)


def ablation_arms(market: MarketConfig) -> list[dict[str, Any]]:
    """Return ``without`` and ``repeat`` of each short training of the ablation; [] where none is.

    For every seed one with everything, then one without each option that is on.
    """
    on = options_on(market)
    if not market.ablation.enabled or not on:
        return []
    return [
        {"without": key, "repeat": k}
        for k in range(market.ablation.seeds)
        for key in (EVERYTHING, *on)
    ]


def ablation_steps(market: MarketConfig) -> int:
    """Return the optimizer steps of each short training of the ablation, at most."""
    return market.ablation.steps or -(-market.llm.steps // 2)


def honoured(
    market: MarketConfig, ablation: Artifact | None, snapshot: Artifact
) -> tuple[MarketConfig, frozenset[str]]:
    """Return the market as a training takes it, and which of its inputs it does not read.

    What ``ablation`` (of the step ``ablate``) has dropped is off. Raises :class:`DataError` where
    it was decided on another snapshot's dev.
    """
    if ablation is None:
        return market, frozenset()
    if not ablation.was_made_from("snapshot", snapshot):
        raise DataError(f"{ablation.ref} was decided on another snapshot's dev; run ablate on this")
    dropped = ablation.facts["dropped"]
    return without(market, dropped), inputs_of(dropped)
