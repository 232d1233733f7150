"""MarketConfig: everything that differs between markets, from ``dags/markets/{market}.yaml``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from csrm_tasks.base_models import check_base
from csrm_tasks.errors import ConfigError
from csrm_tasks.presets import with_presets
from csrm_tasks.sections import (
    Ablation,
    Controls,
    Filter,
    Gate,
    Health,
    Ingest,
    Llm,
    Notify,
    Release,
    Retention,
    Retrieval,
    Review,
    Rollout,
    Schedule,
    SecondStage,
    Section,
    Serving,
    Snapshot,
    Towers,
    Worker,
)
from csrm_tasks.sections.base import Unit
from csrm_tasks.sections.faults import ONE_SOURCE, explained
from csrm_tasks.sections.release import LANGUAGE
from csrm_tasks.sections.tasks import BINARY, Task, check_tasks
from csrm_tasks.sections.workers import check_names
from csrm_tasks.yaml_files import read_yaml

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$"),
    Unit("a-z, 0-9 and _, at most 32"),
]
Locale = Annotated[
    str, StringConstraints(pattern=r"^[a-z]{2}-[A-Z]{2}$"), Unit("locale such as ko-KR")
]


# On the field: a validator of the whole model would have every list of the file refused
# (findings/pydantic_before_validator_and_strict_json.sh).
def _several(given: object) -> object:
    """Return one locale as a tuple of one, and a list, which is all that JSON has, as a tuple."""
    if isinstance(given, str):
        return (given,)
    return tuple(given) if isinstance(given, list) else given


class MarketConfig(Section):
    """One market. Frozen; unknown keys are refused."""

    market: Name
    """The market's name; the file is called by it."""
    source_locales: Annotated[
        tuple[Locale, ...],
        BeforeValidator(_several),
        Field(min_length=1, validation_alias=AliasChoices("source_locales", ONE_SOURCE)),
    ]
    """The languages with labels; one alone may be given as `source_locale: ko-KR`."""
    target_locale: Locale
    """The language to start in, without labels."""
    evaluation_locales: tuple[Locale, ...] = ()
    """Further languages that gold is judged in, and nothing is learnt of but translations."""
    seed: int = 0
    """Of everything drawn at random; another one trains anew."""
    generated: bool = False
    """Its data are made up: reports and model cards say so."""
    tasks: tuple[Task, ...] = ("relevance",)
    """What the LLM learns of judgements: relevance, query-category (qc), query-item (qi);
    docs/TASKS.md. Without relevance there is nothing to serve."""
    schedule: Schedule = Schedule()
    ingest: Ingest = Ingest()
    snapshot: Snapshot = Snapshot()
    health: Health = Health()
    filter: Filter = Filter()
    review: Review = Review()
    ablation: Ablation = Ablation()
    llm: Llm
    retrieval: Retrieval
    towers: Towers
    second_stage: SecondStage = SecondStage()
    gate: Gate | None = None
    """Without this section nothing is ever promoted."""
    serving: Serving = Serving()
    release: Release = Release()
    rollout: Rollout = Rollout()
    retention: Retention = Retention()
    controls: Controls = Controls()
    notify: Notify = Notify()
    workers: dict[str, Worker] = Field(default_factory=dict)
    """`default` is for every task, `training` for the steps of `schedule.training_hours`, a step's
    name for that step alone; the narrowest counts. Without this section all run as Airflow's
    configuration says. docs/WORKERS.md"""

    @model_validator(mode="after")
    def _gate_can_be_met(self) -> Self:
        """Refuse what the gate could never find measured: it would hold every release back."""
        gate = self.gate or Gate()
        for name in ("encoder", "prompt"):
            if name in gate.not_below and getattr(self.controls, name) is None:
                raise ValueError(f"gate.not_below: {name} is not measured without controls.{name}")
        for name in gate.slices:
            locale = name.removeprefix(LANGUAGE)
            if locale != name:
                self._check_ours("gate.slices", locale)
        return self

    def _check_ours(self, key: str, locale: str) -> None:
        if locale not in self.locales:
            known = ", ".join(self.locales)
            raise ValueError(f"{key}: {locale!r} is none of the market's locales, {known}")

    @model_validator(mode="after")
    def _a_language_has_one_part(self) -> Self:
        sources, target = self.source_locales, self.target_locale
        if target in sources:
            key = ONE_SOURCE if len(sources) == 1 else "source_locales"
            raise ValueError(
                f"{key} and target_locale are both {target}; a market learns from one and is "
                "judged in the other"
            )
        for key, locales in (
            ("source_locales", sources),
            ("evaluation_locales", self.evaluation_locales),
        ):
            twice = next((x for x in locales if locales.count(x) > 1), None)
            if twice:
                raise ValueError(f"{key}: {twice} is given twice; name each language once")
        learnt = next((x for x in self.evaluation_locales if x in (*sources, target)), None)
        if learnt:
            raise ValueError(
                f"evaluation_locales: {learnt} is a source or the target already; name languages "
                "that nothing is learnt of"
            )
        return self

    @model_validator(mode="after")
    def _pivot_is_known(self) -> Self:
        if self.llm.pivot is not None:
            self._check_ours("llm.pivot", self.llm.pivot)
        return self

    @model_validator(mode="after")
    def _known_tasks(self) -> Self:
        check_tasks(self.tasks)
        for task in (self.gate or Gate()).task_floors:
            if task not in self.tasks:
                raise ValueError(f"gate.task_floors: {task} is none of the market's tasks")
        return self

    @model_validator(mode="after")
    def _known_workers(self) -> Self:
        check_names(self.workers)
        return self

    @property
    def locales(self) -> tuple[str, ...]:
        """All languages that something may be delivered in."""
        return (*self.source_locales, self.target_locale, *self.evaluation_locales)

    @property
    def gold_locales(self) -> tuple[str, ...]:
        """The languages that a release is judged in."""
        return (self.target_locale, *self.evaluation_locales)

    def learnt_locales(self, stage: int) -> tuple[str, ...]:
        """Return the languages whose labels and behaviour stage 1 or 2 learns from (A9)."""
        return self.source_locales if stage == 1 else (*self.source_locales, self.target_locale)

    def missing_locales(self, stage: int) -> tuple[str, ...]:
        """Return the languages that are judged and not learnt from, derived (A36)."""
        return tuple(x for x in self.gold_locales if x not in self.learnt_locales(stage))

    @property
    def binary_tasks(self) -> tuple[Task, ...]:
        """The tasks that are answered with yes or no."""
        return tuple(task for task in BINARY if task in self.tasks)

    @property
    def model_name(self) -> str:
        """Name of the registered model in MLflow."""
        return self.release.model_name or f"csrm-{self.market}"


def load_market(name: str, folder: Path) -> MarketConfig:
    """Load ``{folder}/{name}.yaml``; raises :class:`ConfigError` naming file, key and remedy."""
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise ConfigError(f"there is no market {name!r}: {path} does not exist (known: {known})")
    config = parse_market(path)
    if config.market != name:
        raise ConfigError(f"{path}: market is {config.market!r}; it must equal the file's name")
    return config


def load_markets(folder: Path, only: str | None = None) -> tuple[list[MarketConfig], list[str]]:
    """Load every market file of ``folder``, sorted by name, and say what is wrong with others.

    A file that is no market costs the other markets nothing. With ``only`` one market is read.
    """
    found, wrong = [], []
    for name in [only] if only else sorted(path.stem for path in folder.glob("*.yaml")):
        try:
            found.append(load_market(name, folder))
        except ConfigError as e:
            wrong.append(str(e))
    return found, wrong


def parse_market(path: Path) -> MarketConfig:
    """Read and validate one market file; raises :class:`ConfigError` with the first problem."""
    keys = read_keys(path)
    try:
        config = validated(keys)
    except ValidationError as e:
        first, *others = explained(MarketConfig, e)
        more = f" (and {len(others)} more: csrm market check)" if others else ""
        raise ConfigError(f"{path}: {first}{more}") from e
    except TypeError as e:  # a YAML set or the like
        raise ConfigError(f"{path}: {e}; put it in quotes") from e
    for key, base in bases_of(config).items():
        check_base(f"{path}: {key}", base)
    return config


def read_keys(path: Path) -> dict[str, Any]:
    """Return the keys of a market file over its presets; raises :class:`ConfigError`."""
    return with_presets(read_yaml(path))


def validated(keys: Mapping[str, Any]) -> MarketConfig:
    """Return the market that keys of a file say; raises pydantic's error, TypeError for a date."""
    # JSON mode: lists become tuples, as YAML cannot write a tuple; types stay strict.
    return MarketConfig.model_validate_json(json.dumps(keys))


def bases_of(config: MarketConfig) -> dict[str, str]:
    """Return key → base model of everything that a market may load from a hub."""
    found = {
        "llm.base": config.llm.base,
        "llm.augmentation.model": config.llm.augmentation.model,
        "llm.augmentation.back": config.llm.augmentation.back,
        "retrieval.ebr.encoder": config.retrieval.ebr.encoder,
        "towers.encoder": config.towers.encoder,
        "controls.encoder": config.controls.encoder,
        "controls.prompt": None if config.controls.prompt_connection else config.controls.prompt,
    }
    return {key: base for key, base in found.items() if base is not None}
