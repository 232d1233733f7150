"""From artifacts to a sealed verdict: what the gate step does, and what replays it (A46).

Everything that a verdict depends on is an artifact or stands in the verdict itself (its policy),
so any verdict of the past can be reached again, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.errors import ConfigError, RefusedError
from csrm_tasks.release import verdicts
from csrm_tasks.release.bundle.manifest import SECOND_STAGE, release_id
from csrm_tasks.sections import Gate

if TYPE_CHECKING:
    from csrm_tasks.evaluation.checks import GateCheck, Verdict
    from csrm_tasks.evaluation.evidence import Second, Taught
    from csrm_tasks.evaluation.task_gate import TaskEvidence


@dataclass(frozen=True)
class Sides:
    """What is judged: the candidate's bundle, the finding of the live release, the evaluation."""

    candidate: Artifact
    champion: Artifact
    servability: Artifact  # of the candidate (A48)
    evaluation: Artifact | None
    tasks: Artifact | None = None  # evaluation of the tasks besides relevance, where there are any


def verdict(
    store: ArtifactStore, sides: Sides, stage: int, policy: Gate | None, asked: str = ""
) -> dict[str, Any]:
    """Judge and seal. Stage 1: a cold start, by source dev; 2: on gold against the champion.

    ``asked``: how its run differed from the market's normal one; it decides nothing here.
    """
    written = policy.model_dump(mode="json") if policy else None
    return _sealed(store, sides, stage, policy, written, asked)


def replay(store: ArtifactStore, gate: Artifact) -> dict[str, Any]:
    """Judge once more, from the inputs that a gate artifact names and the policy that it had.

    Returns the verdict, equal to the stored one; raises :class:`RefusedError` where it is not, or
    where an input is no longer what was judged.
    """
    old = verdicts.read(gate)
    parts = {
        name: store.open(gate.inputs[name])
        for name in ("bundle", "champion", "servability", "evaluation", "task_evaluation")
        if gate.inputs.get(name)
    }
    for name in ("bundle", "servability", "evaluation", "task_evaluation"):
        if old.get(f"{name}_digest") != (parts[name].digest if name in parts else None):
            raise RefusedError(f"{gate.ref}: its {name} is no longer what was judged")
    sides = Sides(
        parts["bundle"], parts["champion"], parts["servability"], parts.get("evaluation"),
        parts.get("task_evaluation"),
    )  # fmt: skip
    policy = Gate.model_validate_json(json.dumps(old["policy"]))
    new = _sealed(store, sides, old["stage"], policy, old["policy"], old.get("asked", ""))
    if new["digest"] != old["digest"]:
        raise RefusedError(f"{gate.ref} does not replay: {_first_difference(old, new)}")
    return new


def _first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    key = next(k for k in old if k != "digest" and old[k] != new.get(k))
    return f"{key} was {old[key]}, now {new.get(key)}; was the gate's code changed since?"


def _sealed(
    store: ArtifactStore, sides: Sides, stage: int, policy: Gate | None, written: object,
    asked: str,
) -> dict[str, Any]:  # fmt: skip
    if stage not in (1, 2):
        raise ConfigError(f"gate: stage is 1 or 2, not {stage}")
    from csrm_tasks.evaluation.checks import combine

    decision = (_cold_start if stage == 1 else _on_gold)(store, sides, policy)
    candidate, evaluation = sides.candidate, sides.evaluation
    checks = [*decision.checks, *_tasks(sides, policy), _servable(sides)]
    decision = replace(combine(checks), notes=decision.notes)
    return verdicts.seal(
        {
            "stage": stage,
            "release": release_id(candidate),
            "bundle": candidate.ref,
            "bundle_digest": candidate.digest,
            "champion": sides.champion.facts["release"],
            "servability": sides.servability.ref,
            "servability_digest": sides.servability.digest,
            "evaluation": evaluation.ref if evaluation else None,
            "evaluation_digest": evaluation.digest if evaluation else None,
            **_named(sides.tasks),
            "policy": written,
            **verdicts.marked(decision.as_json(), asked),
        }
    )


def _named(tasks: Artifact | None) -> dict[str, str]:
    """Return what the verdict says of its task evaluation: nothing where there is none."""
    if tasks is None:
        return {}
    return {"task_evaluation": tasks.ref, "task_evaluation_digest": tasks.digest}


def _tasks(sides: Sides, policy: Gate | None) -> list[GateCheck]:
    """Return the checks of the tasks besides relevance, judged of these very LLMs."""
    from csrm_tasks.evaluation.task_gate import task_checks

    if sides.tasks is None or policy is None:
        return []
    champion = sides.champion.facts
    asked = (sides.tasks.inputs["llm"], sides.tasks.inputs.get("champion_llm"))
    wanted = (sides.candidate.inputs["llm"], champion["llm"] if champion["release"] else None)
    if asked != wanted or not sides.tasks.shares_input("snapshot", sides.candidate):
        raise ConfigError(f"gate: {sides.tasks.ref} judged other models than bundle and champion")
    return task_checks(task_evidence(sides.tasks, sides.tasks.facts["tasks"]), policy)


def task_evidence(evaluation: Artifact, tasks: Sequence[str]) -> TaskEvidence:
    """Read what both sides said in ``tasks``; a champion that was not judged is none."""
    from csrm_tasks.evaluation.task_gate import TaskEvidence
    from csrm_tasks.evaluation.tasks import read_counts

    champion = None
    if evaluation.inputs.get("champion_llm"):
        champion = read_counts(evaluation.path, "champion", tasks)
    return TaskEvidence(read_counts(evaluation.path, "candidate", tasks), champion)


def _servable(sides: Sides) -> GateCheck:
    """Return the probe's finding as one more claim, without which nothing passes (A48)."""
    from csrm_tasks.evaluation.checks import GateCheck

    probed = sides.servability.inputs["bundle"]
    if not sides.servability.was_made_from("bundle", sides.candidate):
        raise ConfigError(f"gate: {sides.servability.ref} probed {probed}, another bundle")
    facts = sides.servability.facts
    return GateCheck("servability", facts["outcome"], f"servability: {'; '.join(facts['reasons'])}")


def same_weights(store: ArtifactStore, llm: str) -> list[str]:
    """The LLM and the trained one it was chosen from: they differ by a temperature only (A30)."""
    chosen = store.open(llm).facts.get("chosen_ref")
    return [llm, chosen] if chosen else [llm]


def _cold_start(store: ArtifactStore, sides: Sides, policy: Gate | None) -> Verdict:
    from csrm_tasks.evaluation.gate import ColdStart, decide_cold_start

    live = sides.champion.facts["bundle"]
    bundles = [sides.candidate, *([store.open(live)] if live else [])]
    one, *other = [ColdStart(a.facts["stage"], a.facts["source_dev_micro_f1"]) for a in bundles]
    return decide_cold_start(one, other[0] if other else None, policy)


def _on_gold(store: ArtifactStore, sides: Sides, policy: Gate | None) -> Verdict:
    """Gather both sides' evidence: the champion was scored again in the same evaluation."""
    from csrm_tasks.evaluation.evidence import BY_LLM, evidence
    from csrm_tasks.evaluation.gate import decide

    candidate, live, evaluation = sides.candidate, sides.champion.facts, sides.evaluation
    if evaluation is None:
        raise ConfigError("gate: stage 2 needs input 'evaluation'")
    if not evaluation.shares_input("snapshot", candidate):
        raise ConfigError(f"gate: {evaluation.ref} judged another snapshot than the bundle's")
    judged = [(release_id(candidate), candidate.inputs, _taught(store, candidate))]
    if live["release"] is not None:
        judged.append((live["release"], live, BY_LLM))  # nothing is claimed of who taught it
    one, *other = [
        evidence(
            evaluation.path,
            name,
            same_weights(store, of["llm"]),
            of["export"],
            taught,
            _second(store, of),
        )
        for name, of, taught in judged
    ]
    return decide(one, other[0] if other else None, policy)


def _second(store: ArtifactStore, parts: Mapping[str, Any]) -> Second:
    """Return the second stage among a bundle's parts, or among those of the live release."""
    from csrm_tasks.evaluation.evidence import NO_SECOND, Second

    ref = parts.get(SECOND_STAGE)
    return NO_SECOND if ref is None else Second(ref, bool(store.open(ref).facts["kept"]))


def _taught(store: ArtifactStore, candidate: Artifact) -> Taught:
    """Return who taught the candidate's towers; an LLM that is given to others answers itself."""
    from csrm_tasks.evaluation.evidence import BY_LLM, Taught

    about = store.open(candidate.inputs["export"]).facts
    by = about.get("taught_by", BY_LLM.by)  # exports from before do not say
    if by == "labels" and "llm_export" in candidate.inputs:
        return BY_LLM
    return Taught(by, about.get("teacher"))
