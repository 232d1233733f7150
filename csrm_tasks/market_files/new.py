"""``csrm market new``: a market file of what has no default, with a word on each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from csrm_tasks.base_models import check_base
from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import MarketConfig, bases_of, validated
from csrm_tasks.sections.faults import explained

LLM, ENCODER = "csrm_tasks/demo/bases/shipped/llm", "csrm_tasks/demo/bases/shipped/encoder"
HEAD = """\
# What has no default. Every other key: docs/MARKET.md. Then: csrm market check {name}
market: {name}
{sources}
target_locale: {target}  # the language to start in
schedule:
  timezone: {timezone}  # whose midnight a day ends at; fix it before the first delivery
llm:
  base: {llm}  # a causal model: base:name, a folder, or org/name@ and its commit
{llm_sizes}retrieval:
  ebr:
    encoder: {encoder}  # a multilingual encoder, named likewise
{ebr_sizes}towers:
  encoder: {encoder}
{tower_sizes}gate:
  margin: {margin}  # loss to be ruled out: 300 gold queries decide to 0.03, 0.01 takes 2,700
"""
# The shipped models are for trying out on two cores, in minutes: the papers' numbers would take
# weeks there.
LLM_SIZES = """\
  # For trying out with the shipped tiny model; leave these out with a base of your own.
  lora: {r: 32, alpha: 64, dropout: 0.0}
  lr: 2.0e-3
  steps: 100
  evaluate_every: 50
  patience: 2
  max_length: 192
"""
EBR_SIZES = """\
    dim: 64
    steps: 40
    batch: 64
    pool: 64
    lr: 5.0e-3
"""
TOWER_SIZES = """\
  dim: 64
  impressed: 4
  retrieved: 9
  random: 5
  steps: 100
  batch_products: 4
  lr: 1.5e-3
  lr_end: 1.5e-5
  thresholds: teacher
  evidence: true
"""


def new_market(
    name: str,
    sources: Sequence[str],
    target: str,
    timezone: str,
    llm: str | None,
    encoder: str | None,
) -> str:
    """Return the text of a market file; raises :class:`ConfigError` where it would be none."""
    trying = llm is None
    text = HEAD.format(
        name=name, sources=_learnt(sources), target=target, timezone=timezone,
        llm=_quoted(llm or LLM), encoder=_quoted(encoder or ENCODER),
        llm_sizes=LLM_SIZES if trying else "", ebr_sizes=EBR_SIZES if trying else "",
        tower_sizes=TOWER_SIZES if trying else "", margin=0.05 if trying else 0.03,
    )  # fmt: skip
    try:
        config = validated(yaml.safe_load(text))
    except yaml.YAMLError as e:
        raise ConfigError(f"{name}: cannot be written as YAML: {' '.join(str(e).split())}") from e
    except ValidationError as e:
        raise ConfigError("; ".join(explained(MarketConfig, e))) from e
    for key, base in bases_of(config).items():
        check_base(key, base)
    return text


def _learnt(sources: Sequence[str]) -> str:
    if len(sources) == 1:
        return f"source_locale: {sources[0]}  # the language with labels"
    return f"source_locales: [{', '.join(sources)}]  # the languages with labels"


def _quoted(value: str) -> str:
    """Return a text as YAML reads it back: a path may hold what YAML takes for its own."""
    return value if yaml.safe_load(value) == value else json.dumps(value)


def write_market(path: Path, text: str) -> None:
    """Write a new market file; raises :class:`ConfigError` where there is one already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError as e:
        raise ConfigError(f"{path} exists already; edit it, or choose another name") from e
