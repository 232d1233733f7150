"""What Airflow shows of a task: its step's docstring, what it reads and makes, and if it fails.

Read from the source: importing the steps would load what no DAG file may load.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TypeGuard

from csrm_tasks.steps.declaration import MODULES

ROLE = re.compile(r":\w+:`[~.]*([^`]+)`")
FAILS = """\
**If it fails**: a last line that names a file, a key or a refusal is final, for no retry helps: do
what it says, then clear this task. So is one that memory ran out. What does not answer, or is full,
is tried again three times within 21 minutes, anything else twice. Cleared, it goes on where it was:
what is done is found by its fingerprint, a training resumes from its checkpoint."""
REPEATED = "It acts outside its artifact and always runs; to run it again does nothing twice."


def task_doc(step: str, inputs: Iterable[str]) -> str:
    """Return the Markdown of a task that runs ``step`` on ``inputs``; KeyError: no such step."""
    text, repeated = _found(step)
    reads = ", ".join(f"`{name}`" for name in inputs)
    parts = [
        text,
        f"**Reads**: {reads or 'no other artifact'}. **Makes**: the artifact "
        f"`MARKET/{step}/…`, whose reference it returns; `csrm show` prints what is in it.",
        *([REPEATED] if repeated else []),
        f"**By hand**: `csrm {step.replace('_', '-')} --market MARKET …` (`--help`).",
        FAILS,
    ]
    return "\n\n".join(parts)


def _found(step: str) -> tuple[str, bool]:
    """Return the docstring of ``step``, and whether it acts; only modules that name it are parsed.

    A task's own process asks for one step of eighty.
    """
    for module in MODULES:
        if f'"{step}"' in _text(module) and step in _steps(module):
            return _steps(module)[step]
    raise KeyError(step)


@cache
def _text(module: str) -> str:
    return (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")


@cache
def _steps(module: str) -> dict[str, tuple[str, bool]]:
    """Return step → its function's docstring as Markdown, and whether it has side effects."""
    found = {}
    tree = ast.parse(_text(module))
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef)):
        for call in filter(_declares, function.decorator_list):
            text = inspect.cleandoc(ast.get_docstring(function) or "")
            acts = any(k.arg == "side_effect" for k in call.keywords)
            name = str(ast.literal_eval(call.args[0]))
            found[name] = ROLE.sub(r"`\1`", text).replace("``", "`"), acts
    return found


def _declares(node: ast.expr) -> TypeGuard[ast.Call]:
    """Whether it is ``@step(name, …)``."""
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "step"
