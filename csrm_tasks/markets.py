"""MarketConfig: everything that differs between markets, from ``dags/markets/{market}.yaml``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args

import yaml
from pydantic import BaseModel, StringConstraints, ValidationError, model_validator
from pydantic.fields import FieldInfo

from csrm_tasks.base_models import check_base
from csrm_tasks.errors import ConfigError
from csrm_tasks.presets import with_presets
from csrm_tasks.sections import (
    Controls,
    Filter,
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
from csrm_tasks.sections.base import Unit
from csrm_tasks.sections.release import LANGUAGE

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$"),
    Unit("a-z, 0-9 and _, at most 32"),
]
Locale = Annotated[
    str, StringConstraints(pattern=r"^[a-z]{2}-[A-Z]{2}$"), Unit("locale such as ko-KR")
]


class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML is untyped
    """PyYAML's, which takes the last of a key that is given twice: here that is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; raises PyYAML's error where a key is given twice."""
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given more than once", key.start_mark
                )
            if key.tag == "tag:yaml.org,2002:bool":
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"key {key.value!r} is true or false to YAML; put it in quotes",
                    key.start_mark,
                )
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


# A day is text, as in all else that a market reads: YAML would make a date of it.
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class MarketConfig(Section):
    """One market. Frozen; unknown keys are refused."""

    market: Name
    """The market's name; the file is called by it."""
    source_locale: Locale
    """The language with labels."""
    target_locale: Locale
    """The language to start in, without labels."""
    seed: int = 0
    """Of everything drawn at random; another one trains anew."""
    generated: bool = False
    """Its data are made up: reports and model cards say so."""
    schedule: Schedule = Schedule()
    ingest: Ingest = Ingest()
    snapshot: Snapshot = Snapshot()
    health: Health = Health()
    filter: Filter = Filter()
    llm: Llm
    retrieval: Retrieval
    towers: Towers
    gate: Gate | None = None
    """Without this section nothing is ever promoted."""
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

    @model_validator(mode="after")
    def _two_languages(self) -> Self:
        if self.source_locale == self.target_locale:
            raise ValueError(
                f"source_locale and target_locale are both {self.source_locale}; a market learns "
                "from one and is judged in the other"
            )
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
    keys = read_keys(path)
    try:
        config = validated(keys)
    except ValidationError as e:
        first, *others = explained(e)
        more = f" (and {len(others)} more: csrm market check)" if others else ""
        raise ConfigError(f"{path}: {first}{more}") from e
    except TypeError as e:  # a YAML set or the like
        raise ConfigError(f"{path}: {e}; put it in quotes") from e
    for key, base in bases_of(config).items():
        check_base(f"{path}: {key}", base)
    return config


def read_keys(path: Path) -> dict[str, Any]:
    """Return the keys of a market file over its presets; raises :class:`ConfigError`."""
    return with_presets(raw_keys(path))


def raw_keys(path: Path) -> dict[str, Any]:
    """Return the keys that stand in a market file; raises :class:`ConfigError`."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(e).split())}") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(raw).__name__}")
    return raw


def validated(keys: Mapping[str, Any]) -> MarketConfig:
    """Return the market that keys of a file say; raises pydantic's error, TypeError for a date."""
    # JSON mode: lists become tuples, as YAML cannot write a tuple; types stay strict.
    return MarketConfig.model_validate_json(json.dumps(keys))


def explained(error: ValidationError) -> list[str]:
    """Return one line per fault of a market file: the key, what is wrong, what to do."""
    return [_explained(dict(one)) for one in error.errors()]


def _explained(one: Mapping[str, Any]) -> str:
    *section, last = map(str, one["loc"]) if one["loc"] else ("",)
    known = fields_of(section)
    message = one["msg"].removeprefix("Value error, ")
    if one["type"] == "extra_forbidden" and known:
        near = difflib.get_close_matches(last, known, n=1)
        message = (
            f"there is no such key; did you mean {near[0]}?"
            if near
            else (f"there is no such key; known here: {', '.join(sorted(known))}")
        )
    elif one["type"] == "float_type" and isinstance(one["input"], str):
        message += f"; YAML reads {one['input']} as text, numbers need a point: 2.0e-5"
    elif one["type"] == "missing":
        message = "has no default, give it (docs/MARKET.md says what it is)"
    return ": ".join(part for part in (".".join([*section, last]), message) if part)


def fields_of(section: Sequence[str]) -> Mapping[str, FieldInfo]:
    """Return the keys that a section may have; none where it is none."""
    model: type[BaseModel] = MarketConfig
    for name in section:
        if name.isdecimal():
            continue
        field = model.model_fields.get(name)
        inner = section_in(field.annotation) if field else None
        if inner is None:
            return {}
        model = inner
    return model.model_fields


def section_in(annotation: object) -> type[Section] | None:
    """Return the section that a type is, or holds (an optional one, a list of them)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (section_in(part) for part in get_args(annotation))
    return next((part for part in found if part is not None), None)


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
