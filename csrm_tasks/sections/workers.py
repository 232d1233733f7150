"""Where the tasks of a market's steps run: executor, queue, pool, and what a pod of theirs gets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from csrm_tasks.sections.base import Section, Unit
from csrm_tasks.sections.flow import Pool

DEFAULT, TRAINING = "default", "training"  # entries that are no step's
STEPS = Path(__file__).resolve().parents[1] / "steps"
DECLARED = re.compile(r'^@step\(\s*"(\w+)"', re.MULTILINE)
NO_QUEUES = ("LocalExecutor", "KubernetesExecutor")
NO_PODS = ("LocalExecutor", "CeleryExecutor")
LONGEST = 400  # characters of a name
OF_PODS = ("cpus", "memory_gb", "gpus", "node_selector", "image")

# As Kubernetes and container registries spell them
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_PREFIX = r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?"
_PATH = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+|/)[a-z0-9]+)*"
_TAG = r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"


def _spelt(pattern: str, what: str) -> AfterValidator:
    """Return a validator that refuses a text which is not spelt so, saying what it should be."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text) or len(text) > LONGEST:
            raise ValueError(f"{text!r} is no {what}")
        return text

    return AfterValidator(check)


Executor = Annotated[
    str,
    _spelt(r"[A-Za-z_][A-Za-z0-9_.]*", "executor; give its name in Airflow's core.executor"),
    Unit("Airflow executor"),
]
Queue = Annotated[
    str,
    _spelt(r"[A-Za-z0-9_.-]+", "queue; one name of letters, digits, _, . and -"),
    Unit("Airflow queue"),
]
Label = Annotated[
    str, _spelt(_PREFIX + _LABEL, "label of Kubernetes; give name or example.com/name")
]
LabelValue = Annotated[
    str,
    _spelt(f"(?:{_LABEL})?", "label's value; 63 letters, digits, _, . and -, in quotes"),
]
Image = Annotated[
    str,
    _spelt(_HOST + _PATH + _TAG, "image; give host/name:tag or host/name@sha256:…"),
    Unit("image"),
]


class Worker(Section):
    """Where the tasks of a step run. An entry is whole: it takes nothing over from another."""

    executor: Executor | None = None
    """Airflow's executor, by its name in `core.executor`; null: the first that is named there."""
    queue: Queue | None = None
    """Queue that Celery's workers listen to; null: `operators.default_queue`."""
    pool: Pool | None = None
    """Airflow pool; null: `schedule.training_pool`, of other steps the default pool."""
    cpus: Annotated[float, Field(ge=0.001, le=10_000), Unit("CPU cores")] | None = None
    """Cores that a pod asks for; it may use more where the node has more."""
    memory_gb: Annotated[float, Field(ge=0.001, le=100_000), Unit("GB")] | None = None
    """Memory that a pod gets: what it asks for and its limit, 10^9 bytes each."""
    gpus: Annotated[int, Field(gt=0, le=1024), Unit("GPUs")] | None = None
    """NVIDIA GPUs that a pod gets (`nvidia.com/gpu`)."""
    node_selector: dict[Label, LabelValue] = Field(default_factory=dict)
    """Labels that a pod's node must have."""
    image: Image | None = None
    """Image that a pod runs; null: that of the pod template."""

    @property
    def of_pods(self) -> tuple[str, ...]:
        """The keys that only a pod of Kubernetes can be given, of those that are set."""
        return tuple(name for name in OF_PODS if getattr(self, name))

    @model_validator(mode="after")
    def _executor_can(self) -> Self:
        """Refuse what the named executor would leave out without a word."""
        name = (self.executor or "").rsplit(".", 1)[-1]
        if self.of_pods and name in NO_PODS:
            raise ValueError(
                f"{name} has no pods to give {', '.join(self.of_pods)}; leave that out, or name "
                "KubernetesExecutor"
            )
        if self.queue and name in NO_QUEUES:
            raise ValueError(
                f"{name} has no queues; leave out queue {self.queue}, or name CeleryExecutor"
            )
        return self


def step_names() -> frozenset[str]:
    """Return the names of all steps, from the source: to import them is dear for a DAG file."""
    found = (DECLARED.findall(p.read_text(encoding="utf-8")) for p in STEPS.glob("*.py"))
    return frozenset(name for names in found for name in names)


def check_names(given: Iterable[str]) -> None:
    """Raise :class:`ValueError` for the first name that is neither a step nor a class of them."""
    names = list(given)
    known = sorted(step_names()) if names else []
    unknown = next((n for n in names if n not in (DEFAULT, TRAINING, *known)), None)
    if unknown is None:
        return
    near = difflib.get_close_matches(unknown, [DEFAULT, TRAINING, *known], n=1)
    said = f"did you mean {near[0]}?" if near else f"steps: {', '.join(known)}"
    raise ValueError(
        f"workers: {unknown!r} is neither {DEFAULT}, nor {TRAINING}, nor a step; {said}"
    )
