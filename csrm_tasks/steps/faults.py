"""Whether a failed task is worth another try, by the class of its fault, and when.

What does not answer (network, database, object store, MLflow) or has no room left (capacity) may
come back: it is tried again later and later. Wrong input, configuration and refusals stay as they
are. A step that runs out of memory meets the same at the same size: trainings make the pass again
at half of it by themselves (:mod:`csrm_tasks.llm.training.train`), the others are not tried again.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from csrm_tasks.errors import AwayError, CsrmError, DiskFullError, is_disk_full
from csrm_tasks.release import away, denied

RETRIES = 3  # at most, of any class
QUICK = (10.0, 10.0)  # seconds before the second and third try of what nothing is known about
PATIENT = (30.0, 180.0, 1080.0)  # … of what may come back: 21 minutes in all
MEMORY_TYPES = ("OutOfMemoryError", "OutOfMemoryException")  # of torch and DuckDB
MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


class Fault(Enum):
    """What kind of fault ended a task."""

    FINAL = "wrong input, configuration or a refusal"
    AWAY = "something does not answer, or has no room left"
    MEMORY = "out of memory"
    UNKNOWN = "not known"


def fault_of(error: BaseException) -> Fault:
    """Return the class of an error; what it came from counts where it says nothing itself."""
    if isinstance(error, (AwayError, DiskFullError)) or is_disk_full(error):
        return Fault.AWAY
    if isinstance(error, CsrmError) or denied.by(error) is not None:
        return Fault.FINAL
    if any(map(_of_memory, denied.causes(error))):
        return Fault.MEMORY
    if any(map(_of_network, denied.causes(error))):
        return Fault.AWAY
    return Fault.UNKNOWN


def waits(error: BaseException) -> Iterator[float]:
    """Yield the seconds to wait before each further try of a task that ``error`` ended."""
    kind = fault_of(error)
    if kind is Fault.AWAY:
        yield from PATIENT
    elif kind is Fault.UNKNOWN:
        yield from QUICK


def wait_after(error: BaseException, tries: int) -> float | None:
    """Return the seconds to wait after the ``tries``-th try (from 1); None: it is the last."""
    return next((s for n, s in enumerate(waits(error), start=1) if n == tries), None)


def out_of_memory(step: str) -> str:
    """Say what to do where a step does not fit into memory."""
    return (
        f"step {step} ran out of memory, and another try would meet the same: give its worker "
        "more, run less beside it (schedule.training_pool), or cut it smaller (llm.score_shards, "
        "retrieval.index_shards, llm.micro_batch), then clear this task"
    )


def _of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ in MEMORY_TYPES:
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in MEMORY_WORDS)


def _of_network(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    who = away.which(error)
    return who is not None and who != away.STORAGE
