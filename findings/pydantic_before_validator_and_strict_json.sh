#!/usr/bin/env bash
# What: a strict pydantic model reads a JSON array into a tuple (JSON has nothing else). Give the
# model one `model_validator(mode="before")`, even one that returns its argument as it came, and the
# same JSON is refused: not only its own fields, every tuple of every model below it, too. A
# `BeforeValidator` on one field costs that field alone.
# Version: pydantic 2.14.3.
# Why it matters: a validator that renames one old key at the top of a configuration turns strict
# JSON mode off for the whole document, and the error names fields that nobody touched.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "pydantic==2.14.3"
cat >"$work/seen.py" <<'PY'
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

STRICT = ConfigDict(strict=True)
TEXT = '{"own": ["a"], "below": {"deep": ["b"]}}'


class Below(BaseModel):
    model_config = STRICT
    deep: tuple[str, ...]


class Plain(BaseModel):
    model_config = STRICT
    own: tuple[str, ...]
    below: Below


class Hooked(Plain):
    @model_validator(mode="before")
    @classmethod
    def as_it_came(cls, data: Any) -> Any:
        return data


class OneField(Plain):
    own: Annotated[tuple[str, ...], BeforeValidator(lambda v: tuple(v))]


def refused(model: type[BaseModel]) -> list[str]:
    try:
        model.model_validate_json(TEXT)
    except ValidationError as e:
        return [".".join(map(str, one["loc"])) for one in e.errors()]
    return []


seen = {model.__name__: refused(model) for model in (Plain, Hooked, OneField)}
print(seen)
assert seen == {"Plain": [], "Hooked": ["own", "below.deep"], "OneField": []}, "it has changed"
PY
"$work/venv/bin/python" "$work/seen.py"
