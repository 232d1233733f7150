"""Steps: functions that read named artifacts and write one, and what each one's output depends on.

A step that changes something outside its artifact (the database, the registry, routing) is declared
with ``side_effect=True``: it always runs, must be idempotent by itself, and leaves an artifact as
its receipt. What code an output depends on is not declared but found
(:mod:`csrm_tasks.steps.code_digest`). :mod:`csrm_tasks.steps.running` runs steps.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import Settings

# under csrm_tasks.steps
MODULES = (
    "data", "replay", "curation", "llm", "ablation", "llm_merge", "llm_scores", "gold_scores",
    "llm_export", "retrieval", "retrieval_index", "negatives", "task_negatives", "translation",
    "teacher", "towers", "towers_short", "towers_scores", "cross_encoder", "second_stage",
    "baselines", "leave_out", "evaluation", "tasks", "release", "serving", "rollout", "audits",
    "review", "upkeep", "weeks",
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """What a step function gets: its window onto the world."""

    market: MarketConfig
    settings: Settings
    inputs: Mapping[str, Artifact]  # the single inputs by name; optional ones may be missing
    lists: Mapping[str, Sequence[Artifact]]  # the inputs declared as `many`
    out: Path  # empty folder; every file below it becomes the artifact
    work: Path  # scratch that survives a kill of this very fingerprint: checkpoints go here
    ref: str  # the reference that the output will have
    store: ArtifactStore

    def input(self, name: str) -> Artifact:
        """Return a required input."""
        return self.inputs[name]


Metadata = dict[str, Any]
StepFunction = Callable[..., Metadata]


@dataclass(frozen=True)
class Step:
    """A registered step function and what its output depends on, beside its code."""

    name: str
    function: StepFunction
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    many: tuple[str, ...] = ()
    config: tuple[str, ...] = ()  # keys of the market file, dotted below a section
    side_effect: bool = False
    external_inputs: Callable[[MarketConfig, Settings, Mapping[str, Any]], Any] | None = None
    params: Mapping[str, inspect.Parameter] = field(default_factory=dict)
    types: Mapping[str, type] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]


REGISTRY: dict[str, Step] = {}


def step(
    name: str,
    *,
    inputs: Sequence[str] = (),
    optional: Sequence[str] = (),
    many: Sequence[str] = (),
    config: Sequence[str] = (),
    side_effect: bool = False,
    external_inputs: Callable[[MarketConfig, Settings, Mapping[str, Any]], Any] | None = None,
) -> Callable[[StepFunction], StepFunction]:
    """Register ``def f(ctx: Context, *, param: type = default, …) -> Metadata`` under ``name``.

    ``external_inputs(market, settings, params)`` returns JSON that joins the fingerprint: for a
    step whose input is not an artifact (a landing folder, the days that the store has published).
    Keyword-only arguments are the step's parameters and its command-line options.
    """

    def register(function: StepFunction) -> StepFunction:
        if name in REGISTRY and REGISTRY[name].function.__module__ != function.__module__:
            raise ValueError(f"two steps are called {name!r}")
        signature = inspect.signature(function)
        params = {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
        hints = get_type_hints(function)
        REGISTRY[name] = Step(
            name, function, tuple(inputs), tuple(optional), tuple(many), tuple(config),
            side_effect, external_inputs, params, {k: hints[k] for k in params},
        )  # fmt: skip
        return function

    return register


def all_steps() -> dict[str, Step]:
    """Import every step module and return the registry, in the order of definition."""
    for module in MODULES:
        importlib.import_module(f"csrm_tasks.steps.{module}")
    return REGISTRY


def get_step(name: str) -> Step:
    """Return a step by name; raises :class:`ConfigError` with the known names."""
    steps = all_steps()
    if name not in steps:
        raise ConfigError(f"there is no step {name!r}; known: {', '.join(sorted(steps))}")
    return steps[name]
