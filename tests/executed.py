"""What steps really execute and read, by tracing: the slow reference for their fingerprints."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, get_args

from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections.base import Section
from csrm_tasks.steps.closure import excluded
from csrm_tasks.steps.code_digest import PACKAGE, closure_of
from csrm_tasks.steps.declaration import REGISTRY, Step, all_steps, get_step


class Recorder:
    """Records, by step, the definitions of the package whose code ran and the keys it read.

    ``module:name``, and dotted keys of the market's file. What an excluded module does is not the
    step's, nor is what the import of a module does.
    """

    def __init__(self) -> None:
        self.code: dict[str, set[str]] = {}
        self.keys: dict[str, set[str]] = {}
        self._modules: dict[str, str | None] = {}  # by file
        self._steps: dict[str, Step] = {}

    def record_all(self) -> None:
        """From now on record every step that this process runs."""
        self._steps = dict(all_steps())
        REGISTRY.update({name: self._recorded(spec) for name, spec in self._steps.items()})

    def stop(self) -> None:
        """Let steps run unrecorded again."""
        REGISTRY.update(self._steps)

    def _recorded(self, spec: Step) -> Step:
        @wraps(spec.function)
        def function(*args: Any, **kwargs: Any) -> Any:
            code = self.code.setdefault(spec.name, set())
            keys = self.keys.setdefault(spec.name, set())
            with self._recording(code), self._reading(args[0].market, keys):
                return spec.function(*args, **kwargs)

        return replace(spec, function=function)

    @contextmanager
    def _recording(self, seen: set[str]) -> Iterator[None]:
        known: set[tuple[str, str]] = set()
        foreign: set[str] = set()  # files: first of all, for this is asked at every call

        def trace(frame: FrameType, event: str, arg: Any) -> None:
            code = frame.f_code
            if code.co_filename in foreign:
                return
            module = self._module(code.co_filename)
            if module is None or module == excluded.__module__:  # called by this very recorder
                foreign.add(code.co_filename)
                return
            if (module, code.co_qualname) in known:
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

    @contextmanager
    def _reading(self, market: MarketConfig, seen: set[str]) -> Iterator[None]:
        """Record what is read of ``market`` and its copies, not of what else has these types."""
        tracked = {id(s): (s, key) for s, key in _within(market)}  # held: an id is not given again
        copy = Section.model_copy

        def read(section: Any, name: str) -> Any:
            if id(section) in tracked and name in type(section).model_fields:
                key = f"{tracked[id(section)][1]}.{name}".lstrip(".")
                if key not in seen and self._is_the_steps_own(sys._getframe(1)):
                    seen.add(key)
            return object.__getattribute__(section, name)

        def copied(section: Section, **kwargs: Any) -> Any:
            made = copy(section, **kwargs)
            if id(section) in tracked:
                own = tracked[id(section)][1]
                tracked.update({id(s): (s, key) for s, key in _within(made, own)})
            return made

        Section.__getattribute__ = read  # type: ignore[method-assign, assignment]
        Section.model_copy = copied  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del Section.__getattribute__, Section.model_copy

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


def _within(value: Any, key: str = "") -> Iterator[tuple[Section, str]]:
    """Yield the sections that a value at ``key`` holds, itself among them, with their keys."""
    if isinstance(value, Section):
        yield value, key
        for name, part in dict(value).items():
            yield from _within(part, f"{key}.{name}".lstrip("."))
    if isinstance(value, tuple):
        for part in value:
            yield from _within(part, key)


def sections(
    of: type[Section] = MarketConfig, key: str = ""
) -> Iterator[tuple[type[Section], str]]:
    """Yield the sections of a market's file with their dotted keys; the file itself has none."""
    yield of, key
    for name, field in of.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from sections(kind, f"{key}.{name}".lstrip("."))


ALWAYS = {
    "market",
    "source_locales",
    "target_locale",
    "evaluation_locales",
}  # are in every fingerprint


def undeclared(step: str, read: set[str]) -> set[str]:
    """Return the keys that a step read and does not declare; one with a side effect always runs."""
    spec, places = get_step(step), {key for _, key in sections()}
    values = read - places - ALWAYS
    return set() if spec.side_effect else {k for k in values if not _below(k, spec.config)}


def unread(step: str, read: set[str]) -> set[str]:
    """Return the keys that a step declares without having read anything of them."""
    return {d for d in get_step(step).config if not any(_below(key, [d]) for key in read)}


def _below(key: str, declared: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{d}.") for d in declared)


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
