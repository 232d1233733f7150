"""The digest of a step's code: of all that its function reaches (:mod:`.closure`), kept on disk."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from csrm_tasks.file_state import DIGEST, file_state
from csrm_tasks.steps.closure import WHOLE, Closure, Item, SourceTree

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def _own_tree() -> SourceTree:
    return SourceTree(PACKAGE)


def closure_of(function: Callable[..., Any], tree: SourceTree | None = None) -> Closure:
    """Return what a step function reaches; of one outside the package, its module does."""
    tree = tree or _own_tree()
    module, name = function.__module__, function.__qualname__.partition(".")[0]
    if module.partition(".")[0] == PACKAGE.name:
        return tree.closure(Item(module, name))
    tree.add(module, Path(inspect.getfile(function)))
    return tree.closure(Item(module, WHOLE))


@cache
def code_digest(function: Callable[..., Any], kept: Path) -> str:
    """Return the digest of a step function's code.

    Every task is a process of its own, and to read the source anew takes it a tenth of a second. So
    what was found is kept in the folder ``kept``, under the state of all files of the package: an
    edit of any of them has it found anew.
    """
    if not function.__module__.startswith(f"{PACKAGE.name}."):
        return closure_of(function).digest()
    path = kept / f"{function.__module__}.{function.__qualname__}-{own_stamp()}"
    known = path.read_text(encoding="utf-8") if path.exists() else ""
    if len(known) != DIGEST:  # a killed process may have left a part of it
        known = closure_of(function).digest()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(known, encoding="utf-8")
    return known


@cache
def own_stamp() -> str:
    """Return the state of this package's files, once a process: what it imported does not change.

    To look at every file takes 15 ms, and ``csrm demo`` asks for the digest of every step.
    """
    return stamp(PACKAGE)


def stamp(package: Path) -> str:
    """Return the state of every file of a package."""
    paths = (p for p in sorted(package.rglob("*")) if p.suffix != ".pyc" and p.is_file())
    return file_state(paths)
