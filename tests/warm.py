"""A Python process that has imported what is costly to import, and forks for all that it is given.

Airflow's dag-processor does the same for every file. What runs in a fork finds modules imported
that it would have imported itself, and is otherwise alone: its environment, arguments, output and
exit status are its own, and nothing of it is left for the next.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Warm:
    """A warm process; it ends with the one that made it."""

    def __init__(self, imports: Iterable[str], env: Mapping[str, str], folder: str = "") -> None:
        """Start it in the project's folder, to import ``imports`` with the environment ``env``.

        It removes ``folder``, where one is given, when it ends.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", folder, *imports], cwd=ROOT, env=dict(env),
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(
        self, code: str, *argv: str, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run ``code`` as ``python -c CODE ARGV`` would, with what is imported here; waits."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with tempfile.TemporaryDirectory(prefix="csrm-warm-") as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            asked = {"code": code, "argv": argv, "env": dict(env), "files": [str(out), str(err)]}
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
            answer = stdout.readline()
            assert answer, "the warm process could not start, or ended: see its stderr"
            said = [path.read_text(encoding="utf-8") for path in (out, err)]
        return subprocess.CompletedProcess(["-c", *argv], int(answer), *said)


@cache
def warm_airflow() -> Warm:
    """Return a process that has imported what loads DAGs, and no DAG."""
    env = airflow_environment()
    return Warm(["airflow.dag_processing.dagbag"], env, env["AIRFLOW_HOME"])


@cache
def airflow_environment() -> dict[str, str]:
    """Return the environment in which :func:`warm_airflow` imports: a home of its own, plugins."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "CSRM"))}
    return env | {
        "AIRFLOW_HOME": tempfile.mkdtemp(prefix="csrm-airflow-"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false", "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "false", "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
    }  # fmt: skip


@cache
def warm_models() -> Warm:
    """Return a process that has imported what trains and runs models, and none of our code."""
    names = ("torch", "transformers", "peft", "polars", "onnxruntime", "sklearn", "scipy.stats")
    return Warm(names, os.environ | {"PYTHONPATH": str(ROOT)})


def main(folder: str, *imports: str) -> None:
    """Import, then run what comes until nobody asks any more; remove ``folder``."""
    for name in imports:
        import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints here prints no answer
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            carry_out(asked)
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()
    if folder:
        shutil.rmtree(folder)


def carry_out(asked: dict[str, Any]) -> None:
    """Run one code in this fork, and end it."""
    for place, path in zip((1, 2), asked["files"], strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, place)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = ["-c", *asked["argv"]]
    status = 0
    try:
        exec(compile(asked["code"], "<code>", "exec"), {"__name__": "__main__"})
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
