"""Import the heavy libraries once, in the process that forks the tasks.

``torch``, ``transformers``, ``peft``, ``mlflow`` and ``pandera`` take seconds to import, and every
Airflow task is a process of its own. LocalExecutor and Celery's prefork pool fork their tasks, so
what the parent has imported costs a task nothing. Only third-party libraries belong here: our own
code is imported by the task itself, so that it is the code whose digest the fingerprint covers.
Import only; no tensor is made and no thread pool is started before the fork, but for the idle
threads that polars starts by being imported (docs/decisions/0010-forked-tasks.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

FORKING = (["scheduler"], ["celery", "worker"])  # `airflow …` components that fork tasks
MODULES = (
    "polars",
    "pandera.polars",
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.xlm_roberta.modeling_xlm_roberta",
    "peft",
    "mlflow.tracking",
)


def preload(argv: Sequence[str]) -> list[str]:
    """Import :data:`MODULES` if ``argv`` is an Airflow component that forks tasks.

    Returns what was imported; a library that cannot be imported is left to the task that needs it.
    """
    if not any(list(argv[1 : 1 + len(words)]) == words for words in FORKING):
        return []
    done = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        done.append(name)
    return done
