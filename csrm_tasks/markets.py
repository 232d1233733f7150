"""MarketConfig: everything that differs between markets, from ``dags/markets/{market}.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from csrm_tasks.base_models import check_base
from csrm_tasks.errors import ConfigError
from csrm_tasks.presets import with_presets
from csrm_tasks.sections import (
    Controls,
    Gate,
    Health,
    Ingest,
    Llm,
    Release,
    Retention,
    Retrieval,
    Rollout,
    Schedule,
    Section,
    Serving,
    Snapshot,
    Towers,
)
from csrm_tasks.sections.release import LANGUAGE

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Locale = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}-[A-Z]{2}$")]


class MarketConfig(Section):
    """One market. Frozen; unknown keys are refused."""

    market: Name
    source_locale: Locale  # the language with labels
    target_locale: Locale  # the language without
    seed: int = 0
    generated: bool = False  # its data are made up: reports and model cards say so
    schedule: Schedule = Schedule()
    ingest: Ingest = Ingest()
    snapshot: Snapshot = Snapshot()
    health: Health = Health()
    llm: Llm
    retrieval: Retrieval
    towers: Towers
    gate: Gate | None = Field(default=None, description="no policy: nothing is ever promoted")
    serving: Serving = Serving()
    release: Release = Release()
    rollout: Rollout = Rollout()
    retention: Retention = Retention()
    controls: Controls = Controls()

    @model_validator(mode="after")
    def _gate_can_be_met(self) -> Self:
        """Refuse what the gate could never find measured: it would hold every release back."""
        gate = self.gate or Gate()
        for name in ("encoder", "prompt"):
            if name in gate.not_below and getattr(self.controls, name) is None:
                raise ValueError(f"gate.not_below: {name} is not measured without controls.{name}")
        for name in gate.slices:
            locale = name.removeprefix(LANGUAGE)
            if locale != name and locale not in (self.source_locale, self.target_locale):
                raise ValueError(f"gate.slices: {locale!r} is none of the market's two locales")
        return self

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


def load_markets(folder: Path) -> list[MarketConfig]:
    """Load every market file of ``folder``, sorted by name."""
    return [load_market(p.stem, folder) for p in sorted(folder.glob("*.yaml"))]


def parse_market(path: Path) -> MarketConfig:
    """Read and validate one market file; raises :class:`ConfigError` with the first problem."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(e).split())}") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(raw).__name__}")
    raw = with_presets(raw)
    try:
        # JSON mode: lists become tuples, as YAML cannot write a tuple; types stay strict.
        import json

        config = MarketConfig.model_validate_json(json.dumps(raw))
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {e.error_count() - 1} more)" if e.error_count() > 1 else ""
        raise ConfigError(f"{path}: {key}: {first['msg']}{more}") from e
    except TypeError as e:  # a YAML date or the like
        raise ConfigError(f"{path}: {e}; put it in quotes") from e
    for key, base in _bases(config).items():
        check_base(f"{path}: {key}", base)
    return config


def _bases(config: MarketConfig) -> dict[str, str]:
    """Return key → base model of everything that a market may load from a hub."""
    found = {
        "llm.base": config.llm.base,
        "retrieval.ebr.encoder": config.retrieval.ebr.encoder,
        "towers.encoder": config.towers.encoder,
        "controls.encoder": config.controls.encoder,
        "controls.prompt": None if config.controls.prompt_connection else config.controls.prompt,
    }
    return {key: base for key, base in found.items() if base is not None}
