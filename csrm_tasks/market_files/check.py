"""``csrm market check``: every fault of a market file, what of it surprises, what is in effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from csrm_tasks.base_models import check_base, local_folder
from csrm_tasks.errors import ConfigError
from csrm_tasks.ingest.contract.contracts import contract_of
from csrm_tasks.market_files.encoders import SHIPPED, of_encoders
from csrm_tasks.market_files.raters import rated_enough
from csrm_tasks.market_files.reference import flat, in_effect
from csrm_tasks.markets import MarketConfig, bases_of, read_keys, validated
from csrm_tasks.options import OPTIONS, ablation_arms, ablation_steps
from csrm_tasks.sections.faults import explained
from csrm_tasks.settings import Settings

WHOLE = ("ingest", "retrain", "refresh", "rollout")
# 300 gold queries decide to about three points (docs/GATE.md); intervals narrow with the root.
DECIDED_QUERIES, DECIDED_MARGIN = 300, 0.03
LONG_TRAINING = 20_000  # optimizer steps that no CPU makes in a night
MAX_SLICES = 50  # beyond which none could ever be refuted (docs/GATE.md)


@dataclass(frozen=True)
class Checked:
    """What was found; ``differs``: key, value and default of what is not as the defaults are."""

    faults: list[str]
    surprises: list[str] = field(default_factory=list)
    differs: list[tuple[str, str, str]] = field(default_factory=list)


def check(path: Path, settings: Settings) -> Checked:
    """Check one market file; faults begin with the key, and say what to do. Loads no model."""
    config, faults = faults_of(path)
    if config is None:
        return Checked(faults)
    return Checked(faults, list(_surprises(config, settings)), list(_differences(config)))


def faults_of(path: Path) -> tuple[MarketConfig | None, list[str]]:
    """Return a market file's configuration, None where it is none, and its faults."""
    try:
        config = validated(read_keys(path))
    except ConfigError as e:
        return None, [str(e).removeprefix(f"{path}: ")]
    except ValidationError as e:
        return None, explained(MarketConfig, e)
    except TypeError as e:
        return None, [f"{e}; put it in quotes"]
    return config, list(_faults(config, path))


def _faults(config: MarketConfig, path: Path) -> Iterator[str]:
    if config.market != path.stem:
        yield f"market: is {config.market!r}; it must equal the file's name, {path.stem!r}"
    for key, base in bases_of(config).items():
        try:
            check_base(key, base)
        except ConfigError as e:
            yield str(e)
    try:  # ingest refuses every file until then, whichever kind the names are of
        contract_of("labels", config.ingest.columns)
    except ConfigError as e:
        yield str(e)


def _surprises(config: MarketConfig, settings: Settings) -> Iterator[str]:
    yield from _of_bases(config)
    yield from of_encoders(config)
    yield from _of_gold(config)
    yield from _of_raters(config, settings)
    yield from _of_schedule(config)
    yield from _of_release(config)
    yield from _of_training(config)
    landing = settings.landing / config.market
    if not landing.is_dir():
        yield f"landing zone: {landing} does not exist yet; deliver files there (docs/DATA.md)"


def _of_bases(config: MarketConfig) -> Iterator[str]:
    bases = bases_of(config)
    shipped = [
        k for k, b in bases.items() if (local_folder(b) or Path("/")).is_relative_to(SHIPPED)
    ]
    if shipped:
        yield (
            f"{', '.join(shipped)}: the shipped tiny models have read nothing but the demo's "
            "made-up shop; they show that everything runs, not what a model can do"
        )
    for key, base in bases.items():
        folder = local_folder(base)
        if folder is None and "@" in base:
            yield (
                f"{key}: {base} is loaded from the Hugging Face hub by the first step that needs "
                "it; workers need the network, or have it in their cache (HF_HOME)"
            )
        elif folder is None:
            yield f"{key}: there is no folder {base} on this machine; every worker needs it"
        else:
            yield from of_folder(key, folder)


def of_folder(key: str, folder: Path) -> Iterator[str]:
    """Yield what a base's folder lacks to be one that can be trained."""
    about = folder / "config.json"
    if not about.is_file():
        yield f"{key}: {folder} has no config.json; it is no Hugging Face model"
        return
    try:
        config = json.loads(about.read_text(encoding="utf-8"))
    except ValueError as e:
        yield f"{key}: {about} cannot be read ({e}); fetch the base again"
        return
    if not any(folder.glob("*.safetensors")):
        yield f"{key}: {folder} has no weights in safetensors, the only format that is loaded"
    if "quantization_config" in config:
        yield f"{key}: {folder} is quantised; LoRA needs plain weights (bf16, fp16 or fp32)"
    if not (folder / "tokenizer.json").is_file():
        yield f"{key}: {folder} has no tokenizer.json; a fast tokenizer is needed"
    causal = any(a.endswith("ForCausalLM") for a in config.get("architectures") or ())
    if key == "llm.base" and not causal:
        yield f"{key}: {folder} names no causal language model in config.json (architectures)"


def _of_gold(config: MarketConfig) -> Iterator[str]:
    rules, gate = config.snapshot, config.gate
    if gate is None:
        yield "gate: there is no such section, so nothing is ever promoted; `gate: {}` is enough"
        return
    yield (
        f"snapshot.gold_raters: a {' or '.join(config.gold_locales)} pair becomes gold once "
        f"{rules.gold_raters} raters graded it and {rules.gold_agree} agree; without gold no "
        "weekly release passes the gate (the cold start needs none)"
    )
    if rules.gold_raters < 3 or 2 * rules.gold_agree <= rules.gold_raters:
        yield (
            f"snapshot.gold_agree: {rules.gold_agree} of {rules.gold_raters} is hardly a "
            "consensus; the gate is then as noisy as its raters"
        )
    queries = round(DECIDED_QUERIES * (DECIDED_MARGIN / gate.margin) ** 2, -2) if gate.margin else 0
    if gate.mode == "non_inferiority" and gate.margin < DECIDED_MARGIN:
        need = f"some {queries:,.0f} gold queries" if queries else "gold without end"
        yield f"gate.margin: {gate.margin:g} takes {need} between equals; with fewer, widen it"
    if gate.mode == "non_inferiority" and not (gate.floors or gate.not_below):
        yield (
            "gate: without floors and not_below, a PASS says no more than that it is no worse than "
            "what is live, however bad that is; docs/GATE.md"
        )
    if len(gate.slices) > MAX_SLICES:
        yield f"gate.slices: of more than {MAX_SLICES} none can be refuted"


def _of_raters(config: MarketConfig, settings: Settings) -> Iterator[str]:
    counted = rated_enough(config, settings)
    if counted is not None:
        pairs, queries = counted
        yield (
            f"gold: {pairs:,} {' and '.join(config.gold_locales)} pairs of {queries:,} queries in "
            f"the store have {config.snapshot.gold_raters} raters so far"
        )


def _of_schedule(config: MarketConfig) -> Iterator[str]:
    schedule = config.schedule
    if schedule.timezone == "UTC":
        yield (
            f"schedule.timezone: UTC; a day of {config.target_locale} shoppers then begins at "
            "midnight UTC. Choose it before the first delivery"
        )
    by_hand = [name for name in WHOLE if getattr(schedule, name) is None]
    if by_hand:
        yield f"schedule: {', '.join(by_hand)} run by hand only (null)"


def _of_release(config: MarketConfig) -> Iterator[str]:
    at_once = not config.rollout.steps
    if config.release.approval == "manual":
        yield "release.approval: manual; what passed the gate waits for csrm release approve"
    elif at_once:
        yield "release.approval: auto without rollout.steps; a PASS is live for everybody at once"
    audits = max((step.audits for step in config.rollout.steps), default=0)
    if not at_once and audits:
        yield (
            f"rollout.steps: need {audits} queries judged by your raters "
            f"({config.rollout.audit_queries} a day are sent out), and a server that logs UBI and "
            "figures (docs/ROUTING.md)"
        )
    if config.generated:
        yield "generated: true; every report and model card says that the data are made up"


def _of_training(config: MarketConfig) -> Iterator[str]:
    for key, steps in {
        "llm.steps": config.llm.steps,
        "retrieval.ebr.steps": config.retrieval.ebr.steps,
        "towers.steps": config.towers.steps,
    }.items():
        if steps >= LONG_TRAINING:
            yield f"{key}: {steps:,}, meant for a GPU; csrm llm-cost says what it takes"
    tried = ablation_arms(config)
    if tried:
        yield (
            f"ablation: {len(tried)} short trainings of at most {ablation_steps(config):,} steps "
            "before each run's own; what dev says does not help is off in these"
        )
    elif config.ablation.enabled:
        yield (
            f"ablation.enabled: nothing is tried; none of {', '.join(o.key for o in OPTIONS)} is on"
        )
    controls = [name for name, on in config.controls.model_dump().items() if on]
    if controls:
        yield f"controls: {', '.join(controls)} train models every week that are never served"
    if config.controls.prompt_connection:
        yield (
            f"controls.prompt_connection: Airflow needs a connection "
            f"{config.controls.prompt_connection!r}"
        )


def _differences(config: MarketConfig) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and default ("required" where there is none) of what differs."""
    least: dict[str, Any] = {
        "market": "m", "source_locales": ["aa-AA"], "target_locale": "bb-BB", "gate": {},
        "llm": {"base": "./b"}, "retrieval": {"ebr": {"encoder": "./e"}},
        "towers": {"encoder": "./e"},
    }  # fmt: skip
    required = set(flat({k: v for k, v in least.items() if k != "gate"}))
    default = in_effect(validated(least))
    for key, value in in_effect(config).items():
        if key in required:
            yield key, value, "required"
        elif value != default.get(key, "null"):
            yield key, value, default.get(key, "null")
