"""What is wrong with a market file, a line a fault: pydantic's words, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from csrm_tasks.sections.base import FORMS, Section

ONE_SOURCE = "source_locale"  # spells ``source_locales`` where there is one


def explained(config: type[Section], error: ValidationError) -> list[str]:
    """Return one line per fault of a file of ``config``: the key, what is wrong, what to do."""
    return [_explained(config, dict(one)) for one in error.errors()]


def _explained(config: type[Section], one: Mapping[str, Any]) -> str:
    loc = one["loc"][:1] if one["loc"][:1] == (ONE_SOURCE,) else one["loc"]
    loc = [part for part in loc if part not in FORMS]
    *section, last = map(str, loc) if loc else ("",)
    known = _fields_of(config, section)
    message = one["msg"].removeprefix("Value error, ")
    if one["type"] == "extra_forbidden" and last == ONE_SOURCE:
        message = "stands beside source_locales, which says the same of several; give one of them"
    elif one["type"] == "extra_forbidden" and known:
        near = difflib.get_close_matches(last, known, n=1)
        message = (
            f"there is no such key; did you mean {near[0]}?"
            if near
            else (f"there is no such key; known here: {', '.join(sorted(known))}")
        )
    elif one["type"] == "float_type" and isinstance(one["input"], str):
        message += f"; YAML reads {one['input']} as text, numbers need a point: 2.0e-5"
    elif one["type"] == "missing":
        message = "has no default, give it (docs/MARKET.md says what it is)"
    return ": ".join(part for part in (".".join([*section, last]), message) if part)


def _fields_of(config: type[Section], section: Sequence[str]) -> Mapping[str, FieldInfo]:
    """Return the keys that a section of ``config`` may have; none where it is none."""
    model: type[BaseModel] = config
    names = iter(section)
    for name in names:
        if name.isdecimal():
            continue
        field = model.model_fields.get(name)
        inner = section_in(field.annotation) if field else None
        if field is None or inner is None:
            return {}
        if get_origin(field.annotation) is dict and next(names, None) is None:
            return {}  # a mapping of sections has whatever keys
        model = inner
    return model.model_fields


def section_in(annotation: object) -> type[Section] | None:
    """Return the section that a type is, or holds (an optional one, a list of them)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (section_in(part) for part in get_args(annotation))
    return next((part for part in found if part is not None), None)
