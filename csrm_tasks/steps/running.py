"""Running a step, or finding what it made before.

The fingerprint of a step's output covers the step's code (what its function reaches, see
:mod:`csrm_tasks.steps.code_digest`), the slice of the market's configuration it names, its
parameters and the digests of its inputs. The same fingerprint again is a no-op that says so.
"""

from __future__ import annotations

import inspect
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from filelock import FileLock

from csrm_tasks.artifacts import Artifact, ArtifactStore, json_digest
from csrm_tasks.errors import ArtifactError, ConfigError, CsrmError, disk_full_as_one_line
from csrm_tasks.file_state import digests_kept_in
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps.asked import NORMAL, Asked, again, applied, reused
from csrm_tasks.steps.code_digest import code_digest
from csrm_tasks.steps.declaration import Context, Metadata, Step, get_step
from csrm_tasks.threads import use_threads
from csrm_tasks.tracking import measured_step

log = logging.getLogger("csrm")


class ChangedInputError(Exception):
    """What a step reads outside its artifacts changed while it ran; a retry reads it anew."""


Inputs = Mapping[str, str | Sequence[str] | None]


def run_step(
    name: str,
    market: str | MarketConfig,
    inputs: Inputs | None = None,
    params: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    *,
    asked: Asked = NORMAL,
) -> str:
    """Run one step, or find its output, and return the artifact's reference.

    ``inputs`` maps input names to references (a sequence of them for a ``many`` input; None for an
    optional one that is absent). ``asked``: what its run asks for otherwise than the market's file.
    Raises :class:`ConfigError` for wrong names or types and
    :class:`ArtifactError` for missing or damaged inputs, :class:`AwayError` for a database or an
    object store that does not answer, :class:`DeniedError` for one that does not let us in,
    :class:`DiskFullError` for a disk, quota or tablespace.
    """
    whose = market if isinstance(market, str) else market.market
    settings = settings or load_settings(market=whose)
    config = load_market(market, settings.markets) if isinstance(market, str) else market
    try:
        with (
            disk_full_as_one_line(f"step {name}", settings.home),
            digests_kept_in(settings.cache / "digests"),
        ):
            return _run(name, applied(config, asked), inputs or {}, params or {}, settings, asked)
    except CsrmError:
        raise
    except Exception as e:
        from csrm_tasks.release import away

        who = away.which(e)
        if who is None or who == away.STORAGE:  # a file of a step: no matter of who answers
            raise
        raise away.told_of(settings, config.market, who, e) from e


def _run(
    name: str, config: MarketConfig, inputs: Inputs, params: Mapping[str, Any], settings: Settings,
    asked: Asked,
) -> str:  # fmt: skip
    spec = get_step(name)
    store = ArtifactStore(settings.artifacts, settings.cache)
    single, lists = _open_inputs(spec, store, inputs)
    values = _check_params(spec, params)
    about = _identity(spec, config, settings, single, lists, values) | again(asked, name)
    if asked.task in asked.reuse:
        first = reused(store, spec, about, asked.reuse[asked.task])
        log.info("step %s: %s is reused, as this run asks: %s", name, first, asked.reason)
        return first
    ref = f"{config.market}/{spec.name}/{json_digest(about)[:20]}"
    work = settings.work / ref
    work.parent.mkdir(parents=True, exist_ok=True)
    # Two attempts of one fingerprint (a task that Airflow believed dead) take turns; the kernel
    # lets go of the lock when its holder dies.
    with FileLock(work.with_name(f"{work.name}.lock")):
        if not spec.side_effect and store.manifest(ref) is not None:
            first = store.first_like(ref)
            store.open(first)  # its digests are checked before it is trusted again
            log.info("step %s: already done, %s", name, first)
            return first
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        log.info("step %s: running for %s", name, ref)
        use_threads(settings.threads)
        with measured_step(single.get("snapshot")) as begun:
            facts = spec.function(
                Context(config, settings, single, lists, out, work, ref, store), **values
            )
        _require_json(name, facts)
        if _external(spec, config, settings, values) != about["external_inputs"]:
            raise ChangedInputError(f"what step {name} reads changed while it ran; run it again")
        references = _references(single, lists)
        artifact = store.publish(
            ref, out, facts=facts, inputs=references, about=about, spent=begun.spent()
        )
        shutil.rmtree(work, ignore_errors=True)
    log.info("step %s: done, %s", name, artifact.ref)
    first = artifact.ref if spec.side_effect else store.first_like(artifact.ref)
    if first != artifact.ref:
        log.info("step %s: the same as %s, which stands for it", name, first)
    return first


def _open_inputs(
    spec: Step, store: ArtifactStore, given: Inputs
) -> tuple[dict[str, Artifact], dict[str, list[Artifact]]]:
    unknown = set(given) - {*spec.inputs, *spec.optional, *spec.many}
    if unknown:
        raise ConfigError(f"step {spec.name} has no input {sorted(unknown)[0]!r}")
    single: dict[str, Artifact] = {}
    for name in (*spec.inputs, *spec.optional):
        ref = _resolve(store, given.get(name))
        if ref is None:
            if name in spec.inputs:
                why = f"{given[name]} is null" if given.get(name) else "give its reference"
                raise ConfigError(f"step {spec.name} needs input {name!r}: {why}")
            continue
        single[name] = store.open(ref)
    lists: dict[str, list[Artifact]] = {}
    for name in spec.many:
        refs = given.get(name) or []
        resolved = (_resolve(store, r) for r in ([refs] if isinstance(refs, str) else refs))
        lists[name] = [store.open(r) for r in resolved if r is not None]
    return single, lists


def _resolve(store: ArtifactStore, ref: str | Sequence[str] | None) -> str | None:
    """Follow ``ref#fact`` to the reference that the artifact's facts hold under that name.

    So a step can be given "the LLM of the live release" (``…/champion/…#llm``) without anybody
    reading the ledger outside a step. A fact that is null (no live release) counts as absent.
    """
    if ref is None:
        return None
    if not isinstance(ref, str):
        raise ConfigError(f"expected one reference, not {len(ref)}: {list(ref)}")
    base, _, fact = ref.partition("#")
    if not fact:
        return ref
    facts = store.open(base).facts
    if fact not in facts:
        raise ArtifactError(f"artifact {base} has no fact {fact!r}; it has {sorted(facts)}")
    named: str | None = facts[fact]
    return named


def _check_params(spec: Step, given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(given) - set(spec.params)
    if unknown:
        raise ConfigError(f"step {spec.name} has no parameter {sorted(unknown)[0]!r}")
    values: dict[str, Any] = {}
    for name, parameter in spec.params.items():
        if name in given:
            values[name] = _cast(spec, name, given[name])
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"step {spec.name} needs parameter {name!r}")
        else:
            values[name] = parameter.default
    return values


def _cast(spec: Step, name: str, value: Any) -> Any:
    wanted = spec.types[name]
    if isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    if isinstance(value, str) and wanted in (int, float):
        try:
            return wanted(value)
        except ValueError:
            pass
    if wanted is bool and value in ("True", "False"):  # as Airflow renders a parameter of a run
        return value == "True"
    raise ConfigError(
        f"step {spec.name}: parameter {name!r} takes {wanted.__name__}, not {value!r}"
    )


def _identity(
    spec: Step,
    market: MarketConfig,
    settings: Settings,
    single: Mapping[str, Artifact],
    lists: Mapping[str, Sequence[Artifact]],
    params: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "step": spec.name,
        "market": market.market,
        "locales": [*market.source_locales, market.target_locale],
        **_evaluated(market),
        "code": code_digest(spec.function, settings.cache / "code"),
        "config": {key: _configured(market, key) for key in spec.config},
        "params": dict(params),
        "inputs": {k: a.digest for k, a in single.items()}
        | {k: [a.digest for a in v] for k, v in lists.items()},
        "external_inputs": _external(spec, market, settings, params),
    }


def _evaluated(market: MarketConfig) -> dict[str, Any]:
    """Return the languages that are only judged in; a market without any has no such key."""
    found = market.evaluation_locales
    return {"evaluation_locales": [*found]} if found else {}


def _configured(market: MarketConfig, key: str) -> Any:
    """Return what the market's file says, or leaves at its default, under a dotted key."""
    value: Any = market.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _external(
    spec: Step, market: MarketConfig, settings: Settings, params: Mapping[str, Any]
) -> Any:
    return spec.external_inputs(market, settings, params) if spec.external_inputs else None


def _references(
    single: Mapping[str, Artifact], lists: Mapping[str, Sequence[Artifact]]
) -> dict[str, Any]:
    return {k: a.ref for k, a in single.items()} | {k: [a.ref for a in v] for k, v in lists.items()}


def _require_json(name: str, facts: Metadata) -> None:
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise ArtifactError(f"step {name} returned facts that are not finite JSON: {e}") from e
