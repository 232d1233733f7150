"""Import the heavy libraries once, in the process that forks the tasks.

``torch``, ``transformers``, ``peft``, ``mlflow`` and ``pandera`` take seconds to import, and every
Airflow task is a process of its own. LocalExecutor and Celery's prefork pool fork their tasks, so
what the parent has imported costs a task nothing.

Of our own code only what a DAG file imports is among it, and a fork drops all of it where a file of
it has changed since: a task runs the code that lies there when it starts, which is the code whose
digest the fingerprint covers. Import only; no tensor is made and no thread pool is started before
the fork, but for the idle threads that polars starts by being imported
(docs/decisions/0010-forked-tasks.md).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

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
    # What the DAG files import of Airflow, and the process that forks them does not
    "airflow.sdk.definitions.decorators",
    "airflow.sdk.definitions.retry_policy",
    "airflow.sdk.lineage",
    "airflow.providers.standard.decorators.short_circuit",
)
PACKAGE = "csrm_tasks"
OWN = (
    f"{PACKAGE}.markets",
    f"{PACKAGE}.options",
    f"{PACKAGE}.connections",
    f"{PACKAGE}.steps",
    f"{PACKAGE}.steps.asked",
    f"{PACKAGE}.steps.classes",
    f"{PACKAGE}.steps.docs",
)
HERE = Path(__file__).parent
AT_WORK = "csrm_wiring"  # what every task's DAG file has imported
Stamp = tuple[int, ...]


def preload(argv: Sequence[str]) -> list[str]:
    """Import :data:`MODULES` and :data:`OWN` if ``argv`` is a component that forks tasks.

    Returns what was imported; what cannot be imported is left to the task that needs it.
    """
    if not any(list(argv[1 : 1 + len(words)]) == words for words in FORKING):
        return []
    taken = stamps()
    done = []
    for name in (*MODULES, *OWN):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        done.append(name)
    os.register_at_fork(after_in_child=partial(forget_if_changed, taken))
    return done


def stamps() -> dict[str, Stamp]:
    """Return path → stamp of all our modules, as their files lie there now."""
    return {str(path): stamp(path) for path in HERE.rglob("*.py")}


def stamp(path: Path) -> Stamp:
    """Return what tells a file from one that was put in its place; nothing where there is none.

    The numbers of :mod:`csrm_tasks.file_state`, which no process that only forks needs to import:
    a tool that copies sets the time of the content back, not that of the entry.
    """
    try:
        about = path.stat()
    except FileNotFoundError:
        return ()
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino


def forget_if_changed(taken: Mapping[str, Stamp]) -> None:
    """Drop our modules where a file of them is no longer as ``taken``; who needs one imports it.

    Not in a fork of a task at work, which goes on with the code that it has begun with.
    """
    if AT_WORK in sys.modules:
        return
    loaded = [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.")]
    files = (sys.modules[name].__file__ for name in loaded)
    if any(stamp(Path(file)) != taken.get(file) for file in files if file):
        for name in loaded:
            del sys.modules[name]
