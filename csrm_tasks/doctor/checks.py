"""The checks by name, and one of them done in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from csrm_tasks.doctor import airflow, bases, machine, places, registry, store
from csrm_tasks.doctor.findings import Asked, Finding

Explain = Callable[[BaseException, Asked], tuple[str, str]]


@dataclass(frozen=True)
class Check:
    """One check."""

    look: Callable[[Asked], Iterator[Finding]]
    in_words: Explain  # what an error means, and the cure
    hangs: str  # what it means that no answer comes
    cure: str  # … and the cure


NETWORK = "see whether it answers from this machine: host and port, firewall, proxy"
CHECKS = {
    "store": Check(
        store.store, store.in_words, "the database of CSRM_DB_URL does not answer", NETWORK
    ),
    "storage": Check(
        places.storage, places.in_words,
        "a place of CSRM_ARTIFACTS, CSRM_LAKE or CSRM_ROUTING does not answer",
        f"{NETWORK}; of a network folder, whether it is still mounted",
    ),
    "mlflow": Check(
        registry.mlflow, registry.in_words, "the MLflow of MLFLOW_TRACKING_URI does not answer",
        NETWORK,
    ),
    "airflow": Check(
        airflow.airflow, airflow.in_words, f"the Airflow of {airflow.VARIABLE} does not answer",
        NETWORK,
    ),
    "bases": Check(
        bases.bases, bases.in_words, "the base models have not been read to their end",
        "give it longer (--timeout SECONDS); of a network folder, see whether it is still mounted",
    ),
    "machine": Check(
        machine.machine, machine.in_words, "this machine's disks do not answer",
        "see whether a network folder is still mounted",
    ),
}  # fmt: skip


def examine(name: str, asked: Asked) -> Iterator[Finding]:
    """Do one check; an error ends it, and is its last finding."""
    check = CHECKS[name]
    try:
        yield from check.look(asked)
    except Exception as e:  # noqa: BLE001 whatever it is, the other checks are done
        yield Finding(name, "fault", *check.in_words(e, asked))
