"""What steps really execute, by tracing: the slow reference for what a digest says they reach."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

from csrm_tasks.steps.code_digest import PACKAGE, closure_of, excluded
from csrm_tasks.steps.registry import REGISTRY, Step, all_steps, get_step


class Recorder:
    """Records, by step, the definitions of the package whose code ran: ``module:name``.

    What an excluded module runs is not the step's, nor is what the import of a module runs.
    """

    def __init__(self) -> None:
        self.by_step: dict[str, set[str]] = {}
        self._modules: dict[str, str | None] = {}  # by file

    def record_all(self) -> None:
        """From now on record every step that this process runs."""
        for name, spec in list(all_steps().items()):
            REGISTRY[name] = self._recorded(spec)

    def _recorded(self, spec: Step) -> Step:
        @wraps(spec.function)
        def function(*args: Any, **kwargs: Any) -> Any:
            with self._recording(self.by_step.setdefault(spec.name, set())):
                return spec.function(*args, **kwargs)

        return replace(spec, function=function)

    @contextmanager
    def _recording(self, seen: set[str]) -> Iterator[None]:
        known: set[tuple[str, str]] = set()

        def trace(frame: FrameType, event: str, arg: Any) -> None:
            code = frame.f_code
            module = self._module(code.co_filename)
            if module is None or (module, code.co_qualname) in known:
                return
            if self._is_the_steps_own(frame):
                known.add((module, code.co_qualname))
                seen.add(f"{module}:{code.co_qualname.partition('.')[0]}")

        sys.settrace(trace)
        threading.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]

    def _is_the_steps_own(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code.co_filename != __file__:
            module = self._module(frame.f_code.co_filename)
            if module and (excluded(module) or frame.f_code.co_name == "<module>"):
                return False
            frame = frame.f_back
        return True

    def _module(self, file: str) -> str | None:
        if file not in self._modules:
            path = Path(file)
            inside = path.suffix == ".py" and path.is_relative_to(PACKAGE)
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts if inside else ()
            name = ".".join(parts).removesuffix(".__init__")
            self._modules[file] = name or None
        return self._modules[file]


def missed(step: str, executed: set[str]) -> set[str]:
    """Return what of the executed definitions the step's digest does not count."""
    closure = closure_of(get_step(step).function)
    split = {name: name.partition(":")[::2] for name in executed}
    return {
        name
        for name, (module, definition) in split.items()
        if not closure.covers(module, definition)
        and not (definition.startswith("<") and module in closure.modules)
    }
