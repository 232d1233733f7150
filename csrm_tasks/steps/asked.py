"""What a run that a person started asks for otherwise than its market's file says.

Another base, fewer rounds of self-distillation, everything trained again, or stages of an earlier
run in place of new ones. What is asked for reaches the steps as the file does, through their
fingerprints, so a step that it does not concern is found as ever. Such a run is none of the
market's normal weeks: its verdict, MLflow run and ledger row say what was asked for and why, and it
releases only where the person who started it has said so.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from csrm_tasks.errors import ConfigError
from csrm_tasks.steps.classes import TRAINING

if TYPE_CHECKING:
    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.steps.declaration import Step

# Tasks whose artifact an earlier run may lend, by their step: the trainings
REUSABLE = frozenset({"pretrain_llm", "train_ebr", "train_llm", "train_towers"})


@dataclass(frozen=True)
class Asked:
    """What a run asks for; all empty: the market's normal run."""

    base: str = ""  # in place of llm.base
    rounds: int | None = None  # of self-distillation, in place of llm.distillation.rounds
    force: str = ""  # name of the run in which trainings and scorings are made again
    reuse: Mapping[str, str] = field(default_factory=dict)  # task → reference of an earlier run
    reason: str = ""  # why, of whoever started it
    task: str = ""  # whose step is run; said of no run as a whole

    def __bool__(self) -> bool:
        """Whether anything differs from the market's normal run."""
        return bool(self.base or self.rounds is not None or self.force or self.reuse)

    def as_text(self) -> str:
        """Return it as JSON, "" where nothing differs: what tasks hand to steps, and records say.

        :func:`from_text` reads it.
        """
        if not self:
            return ""
        said: dict[str, object] = {"base": self.base, "rounds": self.rounds, "force": self.force}
        said |= {"reuse": dict(self.reuse), "reason": self.reason}
        given = {k: v for k, v in said.items() if v not in ("", None, {})}
        return json.dumps(given, sort_keys=True, ensure_ascii=False)

    def in_words(self) -> str:
        """Say what differs, for people."""
        parts = [f"base {self.base}"] if self.base else []
        parts += [] if self.rounds is None else [f"{self.rounds} rounds of self-distillation"]
        parts += ["trained again"] if self.force else []
        parts += [f"{task} reused from {ref}" for task, ref in sorted(self.reuse.items())]
        return ", ".join(parts)


NORMAL = Asked()


def from_text(text: str) -> Asked:
    """Read what :meth:`Asked.as_text` wrote; raises :class:`ConfigError` for anything else."""
    if not text:
        return NORMAL
    try:
        return Asked(**json.loads(text))
    except (ValueError, TypeError) as e:
        raise ConfigError(f"what the run asks for cannot be read: {text!r}") from e


def asked_of(market: MarketConfig, params: Mapping[str, Any], run: str) -> Asked:
    """Return what the parameters of run ``run`` ask for; the market's own values ask for nothing.

    Raises :class:`ConfigError` where no reason is given, or a release is asked for and forbidden.
    """
    base, rounds = params.get("base"), params.get("rounds")
    found = Asked(
        "" if base in (None, market.llm.base) else str(base),
        None if rounds in (None, market.llm.distillation.rounds) else int(rounds),
        run if params.get("force") else "",
        dict(params.get("reuse") or {}),
        str(params.get("reason") or "").strip(),
    )
    if found and not found.reason:
        raise ConfigError(
            f"parameter 'reason': this run is none of the market's normal ones "
            f"({found.in_words()}); say why, it stands in the verdict and the ledger"
        )
    if params.get("dry_run") and params.get("release"):
        raise ConfigError("parameters 'dry_run' and 'release': one forbids what the other allows")
    return found if found else NORMAL


def refuse_unknown(
    conf: Mapping[str, Any], params: Mapping[str, Any], known: Collection[str]
) -> None:
    """Refuse what a run was given and no parameter takes: it would go its normal way, silently.

    ``conf``: what it was given; ``params``: what its tasks see. Raises :class:`ConfigError`.
    """
    for name, value in conf.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            rest = f"known: {', '.join(sorted(known)) or 'none'}"
            raise ConfigError(
                f"parameter {name!r}: this DAG has none of that name; "
                + (f"did you mean {near[0]!r}?" if near else rest)
            )
        if params.get(name) != value:
            raise ConfigError(
                f"parameter {name!r}: {value!r} was given and does not count; set "
                "AIRFLOW__CORE__DAG_RUN_CONF_OVERRIDES_PARAMS to true"
            )


def applied(market: MarketConfig, asked: Asked) -> MarketConfig:
    """Return the market as this run takes it. What ``rounds`` asks for reaches its steps as their
    parameter: the trainings before the last round are those of any week.
    """
    if not asked.base:
        return market
    from csrm_tasks.base_models import check_base

    check_base("parameter 'base'", asked.base)
    return market.model_copy(update={"llm": market.llm.model_copy(update={"base": asked.base})})


def again(asked: Asked, step: str) -> dict[str, str]:
    """Return what joins the fingerprint of a step that a forced run makes again: the run.

    Whoever is killed in it goes on where it was, and no other run finds it by that.
    """
    return {"again": asked.force} if asked.force and step in TRAINING else {}


def reused(store: ArtifactStore, spec: Step, about: Mapping[str, Any], ref: str) -> str:
    """Return ``ref``, which stands for what this step would make, after checking that it may.

    It must be of this market and step, with these parameters, made of inputs of the same content:
    only code and configuration may be others. Raises :class:`ConfigError` that says what is not.
    """
    old = store.require(ref)["about"]
    said = f"parameter 'reuse': {ref}"
    if (old["market"], old["step"]) != (about["market"], spec.name):
        raise ConfigError(f"{said} is no {spec.name} of market {about['market']}")
    defaults = {name: p.default for name, p in spec.params.items()}
    if (was := defaults | old["params"]) != about["params"]:
        raise ConfigError(f"{said} was made with parameters {was}, not with {about['params']}")
    ours, theirs = about["inputs"], old["inputs"]
    other = next((n for n in sorted({*ours, *theirs}) if ours.get(n) != theirs.get(n)), None)
    if other is not None:
        raise ConfigError(
            f"{said} was made of another {other} than this run's; what an earlier run made of the "
            "same data can be reused"
        )
    store.open(ref)  # its digests are checked before it is trusted again
    return ref
